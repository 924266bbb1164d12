"""The record of the model files that a run has written, and may therefore replace and remove.

A folder of models (`saving.model_dir`) may also hold models of other runs and any other files of
the user.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

from impasto import files, presence
from impasto.checkpoints.file_names import is_file_name, name_and_ending
from impasto.errors import RunError
from impasto.models.writing.targets import why_not_replaced
from impasto.runs import RunDirectory

RECORD = "models.json"


class OwnModels:
    """Records the models of a run in `models.json` of its directory.

    Args:
        run: The run.
        overwrite: Whether models that others wrote may be replaced if they have the same name.
    """

    def __init__(self, run: RunDirectory, *, overwrite: bool = False) -> None:
        self._run, self._overwrite = run, overwrite
        recorded = run.read_json(RECORD)
        # earlier versions recorded absolute paths
        self._written, self._earlier = (
            [self._key(run.at(record)) for record in recorded.get(of, [])]
            for of in ("written", "earlier")
        )
        self._best: dict[str, dict[str, float]] = dict(recorded.get("best", {}))
        self._mixed: dict[str, float] = dict(recorded.get("mixed", {}))
        self._stuck: set[Path] = set()
        began_before_records = not recorded and bool(run.saved_steps())
        self._knows = not began_before_records

    def paths(self) -> tuple[Path, ...]:
        """Return the paths of all models that the run has written; some may be deleted since."""
        return tuple(self._run.at(key) for key in (*self._written, *self._earlier))

    def staying(self, planned: Iterable[Path], *, keeps_newest: bool) -> tuple[Path, ...]:
        """Return the models of an abandoned attempt that will still take up room on the disk.

        Args:
            planned: The models that the run is going to write; each replaces one of the same name.
            keeps_newest: Whether the run keeps only its newest intermediate models. It then
                reaches the names of the abandoned ones late, so all of them count.
        """
        goes_on = bool(self._run.saved_steps())
        given_up = self._earlier if goes_on else (*self._earlier, *self._written)
        replaced = set() if keeps_newest else {self._key(target) for target in planned}
        return tuple(self._run.at(key) for key in given_up if key not in replaced)

    def require_free(self, targets: Iterable[Path]) -> None:
        """Make sure that this run is not going to replace files that others wrote.

        Raises:
            RunError: A target exists that this run did not write, and `overwrite` is off or the
                target is not a model.
        """
        taken = [target for target in targets if self._is_foreign(target)]
        if taken and self._overwrite:
            raise RunError(
                f"{taken[0]} is not replaced: {self._fault(taken[0])}. Nothing was started. Choose "
                f"another saving.name (--output_name), or move it away."
            )
        if taken:
            more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
            raise RunError(
                f"{taken[0]}{more} already exists, and this run did not write it. Nothing was "
                f"started. Choose another saving.name (--output_name), move it away, or, with "
                f"`impasto train`, set saving.overwrite = true to replace it."
            )

    def begin(self) -> None:
        """Write the record before the first model, so that later ones are known to be the run's.

        Does nothing in a run of an earlier version that kept no record.
        """
        if self._knows:
            self._write()

    def claim(self, target: Path, ratio: float = 1.0) -> Path:
        """Record a model as the run's, and return its path.

        The path is `target`, or with a number added to its name if another run has written a file
        of that name meanwhile.

        Args:
            target: The requested path.
            ratio: The fraction of the trained weights in it; the rest is the base model.
        """
        number, claimed = 1, target
        name, ending = name_and_ending(target)
        while self._is_foreign(claimed):
            number += 1
            claimed = target.with_name(f"{name}-{number}{ending}")
        key = self._key(claimed)
        if key not in self._written or self._mixed.get(key, 1.0) != ratio:
            self._written = [*(other for other in self._written if other != key), key]
            self._earlier = [other for other in self._earlier if other != key]
            self._mixed = {n: r for n, r in self._mixed.items() if n != key}
            self._mixed |= {} if ratio == 1 else {key: ratio}
            self._write()
        return claimed

    def begin_best(self, target: Path) -> None:
        """Clear the recorded step of the best model while it is being replaced."""
        self._best[self._key(target)] = {}
        self._write()

    def end_best(self, target: Path, step: int, loss: float) -> None:
        """Record the step of the new best model, and its validation loss."""
        self._best[self._key(target)] = {"step": step, "loss": loss}
        self._write()

    def restart(self) -> int:
        """Mark all models as those of an abandoned attempt, since the run starts at its first step.

        They no longer count as models of this run, nor towards the number of models to keep, but it
        may still replace them. Models that were moved or deleted are forgotten, and so is the step
        of the best model.

        Returns:
            The number of models of abandoned attempts.
        """
        if not (self._best or self._written):
            return len(self._earlier)
        self._best = {key: {} for key in self._best}
        before = dict.fromkeys((*self._earlier, *self._written))
        self._earlier = [key for key in before if self._may_be_there(self._run.at(key))]
        self._written = []
        self._mixed = {key: ratio for key, ratio in self._mixed.items() if key in self._earlier}
        self._write()
        return len(self._earlier)

    def leave_those_outside(self) -> None:
        """Forget the models outside of the run's directory; in a copy they are the original's."""
        self._written, self._earlier = (
            [key for key in keys if self._is_inside(self._run.at(key))]
            for keys in (self._written, self._earlier)
        )
        left = {*self._written, *self._earlier}
        self._best = {key: best for key, best in self._best.items() if key in left}
        self._mixed = {key: ratio for key, ratio in self._mixed.items() if key in left}
        self._write()

    def _is_inside(self, model: Path) -> bool:
        return self._run.path.resolve() in model.resolve().parents

    def _may_be_there(self, model: Path) -> bool:
        """Return whether a model exists; also True if its folder cannot be reached."""
        return self._run.has(model) or not presence.exists(model.parent)

    def remove_oldest(
        self, name: str, ending: str, suffix: str, folder: Path, keep: int
    ) -> list[Path]:
        """Remove all but the newest of this run's intermediate models of one series.

        Models that cannot be removed, such as those that another program has open on Windows, stay
        in the record, and removal is tried again the next time.

        Args:
            name: The model's name, before `ending`.
            ending: The newest model's: `-step00000500` or `-000003`, followed by its variant
                (`-ema`). Models that differ only in the number are of the same series.
            suffix: The file extension; empty for folders.
            folder: The folder of the models.
            keep: Number of models to keep.

        Returns:
            Models that could not be removed; each is returned only the first time.
        """
        numbered = re.sub(r"\d+", r"(\\d+)", re.escape(ending), count=1)
        shape = re.compile(re.escape(name) + numbered + re.escape(suffix))
        alike: dict[int, Path] = {}
        for key in self._written:
            path = self._run.at(key)
            match = shape.fullmatch(path.name)
            if match and path.parent.resolve() == folder.resolve() and path.exists():
                alike[int(match[1])] = path
        stuck = []
        for number in sorted(alike)[:-keep]:
            old = alike[number]
            with contextlib.suppress(OSError):
                files.remove_folder(old) if old.is_dir() else old.unlink()
            if presence.exists(old):
                stuck.append(old)
                continue
            self._written.remove(self._key(old))
            self._mixed.pop(self._key(old), None)
        self._write()
        new = [path for path in stuck if path not in self._stuck]
        self._stuck.update(new)
        return new

    def _is_foreign(self, target: Path) -> bool:
        own = (*self._written, *self._earlier)
        if self._is_inside(target) or not target.exists() or self._key(target) in own:
            return False
        return bool(self._fault(target)) if self._overwrite or not self._knows else True

    @staticmethod
    def _fault(target: Path) -> str:
        return why_not_replaced(target, by_folder=not is_file_name(target))

    def _write(self) -> None:
        more = {"earlier": self._earlier, "best": self._best, "mixed": self._mixed}
        known = {name: value for name, value in more.items() if value}
        files.write_json(self._run.path / RECORD, {"written": self._written, **known})

    def _key(self, target: Path) -> str:
        return self._run.record_of(target)
