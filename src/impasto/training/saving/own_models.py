"""Which model files a run has written: those it may replace and remove, and no others.

A folder of models (`saving.model_dir`) may hold those of earlier runs and whatever else the user
keeps there.
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
    """The models of a run, remembered in `models.json` of its directory.

    Args:
        run: The run.
        overwrite: Whether other files of the same names may be replaced.
    """

    def __init__(self, run: RunDirectory, *, overwrite: bool = False) -> None:
        self._run, self._overwrite = run, overwrite
        recorded = run.read_json(RECORD)
        # paths of earlier versions are absolute
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
        """The models that the run has written, some of which may be gone."""
        return tuple(self._run.at(key) for key in (*self._written, *self._earlier))

    def staying(self, planned: Iterable[Path], *, keeps_newest: bool) -> tuple[Path, ...]:
        """The models of an attempt that was given up which stay where they are.

        Args:
            planned: The models that the run is going to write, which replace those of their names.
            keeps_newest: Whether the run removes its older models on the way: it is through with
                those before it comes to the names of the attempt.
        """
        goes_on = bool(self._run.saved_steps())
        given_up = self._earlier if goes_on else (*self._earlier, *self._written)
        replaced = set() if keeps_newest else {self._key(target) for target in planned}
        return tuple(self._run.at(key) for key in given_up if key not in replaced)

    def require_free(self, targets: Iterable[Path]) -> None:
        """Make sure that nothing of others is where this run is going to write.

        Raises:
            RunError: Something is.
        """
        taken = [target for target in targets if self._is_foreign(target)]
        if taken and self._overwrite:
            raise RunError(
                f"{taken[0]} is not replaced: {self._fault(taken[0])}. Nothing was begun. Choose "
                f"another saving.name (--output_name), or move it away."
            )
        if taken:
            more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
            raise RunError(
                f"{taken[0]}{more} is already there, and this run did not write it. Nothing was "
                f"begun. Choose another saving.name (--output_name), move it away, or, with "
                f"`impasto train`, set saving.overwrite = true to have it replaced."
            )

    def begin(self) -> None:
        """Begin the record, so that what the run writes from now on is known to be its own."""
        if self._knows:
            self._write()

    def claim(self, target: Path, ratio: float = 1.0) -> Path:
        """Where a model goes: `target`, or a name beside it if another run took that meanwhile.

        Args:
            target: Where it is asked for.
            ratio: The share of what was trained in it; the rest is the base model.
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
        """Say that the best model is being replaced, so that nobody takes it for another step's."""
        self._best[self._key(target)] = {}
        self._write()

    def end_best(self, target: Path, step: int, loss: float) -> None:
        """Say which step the best model is of now, and its validation loss."""
        self._best[self._key(target)] = {"step": step, "loss": loss}
        self._write()

    def begin_anew(self) -> int:
        """Set apart the models of an attempt that was given up: the run begins at its first step.

        They are not models of what is trained now, nor counted among those that are kept. It may
        still replace them; those that were moved away are no longer its own. Which step the best
        one is of is forgotten.

        Returns:
            How many there are.
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
        """Forget the models outside of the run's directory, which are those of another run."""
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
        """Whether a model is where it was written; maybe, while its folder cannot be reached."""
        return self._run.has(model) or not presence.exists(model.parent)

    def remove_oldest(
        self, name: str, ending: str, suffix: str, folder: Path, keep: int
    ) -> list[Path]:
        """Of this run's models on the way that are called alike, keep the newest.

        What cannot be removed, as on Windows where another program has it open, stays in the
        record: it is tried again the next time.

        Args:
            name: The model's name, before the ending.
            ending: Of the newest: `-step00000500` or `-000003`, with its variant (`-ema`) after it.
            suffix: The suffix of the file's name; empty for folders.
            folder: Where they are.
            keep: How many stay.

        Returns:
            Those that could not be removed, each the first time alone.
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
