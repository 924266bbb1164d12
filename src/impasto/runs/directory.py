"""The paths of a run directory, and the reading and writing of its small files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from impasto import files, locks, presence, temporary_names
from impasto.errors import RunError
from impasto.lock_file import LockHolder
from impasto.parsing import parse_json, read_text
from impasto.remote_paths import shown
from impasto.runs.commands import discard_commands
from impasto.runs.given_code import how_to_resume
from impasto.runs.metrics_file import append_metrics, read_metrics, truncate_metrics
from impasto.runs.schema import CHANGED_SETTINGS, fault_in, with_current_names
from impasto.runs.status import Phase, RunState, StatusWriter, state_of
from impasto.runs.steps import steps_in
from impasto.runs.vacancy import require_empty

_BEFORE_TRAINING = (
    "config.toml", "environment.json", "status.json", "events.jsonl", "dataset.json",
    CHANGED_SETTINGS,
)  # fmt: skip


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run, and the reading and writing of its small files.

    Attributes:
        path: The directory.
        lock: The lock that excludes other processes, if this one trains the run.
        live_status: The writer of `status.json`, if this process trains the run.
        location: The URL of the run, if it belongs in an object store (`runs/remote/`).
        taken_over: Returns a description of the process that has taken over such a run, or empty.
        older: Fetches an older state of such a run, and returns its step, if there is one.
        in_store: Returns whether the store has a key of such a run that is missing on this machine.
        elsewhere: The process on another machine that trains such a run, if this is a copy of it.
    """

    path: Path
    lock: locks.FolderLock | None = field(default=None, compare=False, repr=False)
    live_status: StatusWriter | None = field(default=None, compare=False, repr=False)
    location: Path | None = field(default=None, compare=False, repr=False)
    taken_over: Callable[[], str] | None = field(default=None, compare=False, repr=False)
    older: Callable[[], list[int]] | None = field(default=None, compare=False, repr=False)
    in_store: Callable[[str], bool] | None = field(default=None, compare=False, repr=False)
    elsewhere: LockHolder | None = field(default=None, compare=False, repr=False)

    @classmethod
    @contextlib.contextmanager
    def begun(cls, path: Path) -> Iterator[RunDirectory]:
        """Create a run directory, which is locked by this process while the context is open.

        Raises:
            RunError: Something already exists there, or another process is starting a run there.
            StorageError: It cannot be written.
        """
        run = cls(path)
        holder = locks.lock_holder(path) if path.is_dir() else None
        if holder is not None:
            run._refuse(holder)
        require_empty(path)
        was_there = path.is_dir()
        files.require_writable(path)
        try:
            with run.held() as held:
                require_empty(path)  # again, now that the lock excludes other processes
                yield held
        finally:
            if not was_there:
                with contextlib.suppress(OSError):  # not empty: it has the run
                    path.rmdir()

    @contextlib.contextmanager
    def held(self) -> Iterator[RunDirectory]:
        """Lock the directory, so that no other process trains in it.

        Raises:
            RunError: Another process is training the run.
            StorageError: It cannot be written.
        """
        with (
            locks.FolderLock(self.path, "training", self._refuse) as lock,
            StatusWriter(self.status_file) as status,
        ):
            yield replace(self, lock=lock, live_status=status)

    def require_locked(self) -> None:
        """Check that no other process has taken over the run meanwhile.

        Raises:
            RunError: One has: on a network disk, while this machine was asleep for minutes.
        """
        if self.lock is not None and self.lock.is_lost:
            raise RunError(
                f"Another process has taken over {self.path} while this one did not respond "
                f"for minutes, so this one stops and writes nothing more."
            )

        if self.taken_over is not None and (who := self.taken_over()):
            raise RunError(
                f"{self.address} has been taken over by {who}, while this process sent no "
                "heartbeat to the store for minutes. It stops, and sends nothing more. Its results "
                f"are in {self.path}."
            )

    @property
    def address(self) -> str:
        """The run's path for display: its URL if it belongs in an object store."""
        return str(self.path) if self.location is None else shown(self.location)

    def address_of(self, path: Path) -> str:
        """Return a path for display: below the run's URL if it is within a run in a store."""
        if self.location is None or not path.is_relative_to(self.path):
            return str(path)
        return shown(self.location / path.relative_to(self.path))

    def discard(self) -> None:
        """Remove the files of a run that has not started to train, leaving anything else."""
        if self.live_status is not None:
            self.live_status.drop()
        discard_commands(self.commands)
        for name in _BEFORE_TRAINING:
            (self.path / name).unlink(missing_ok=True)
        for waiting in self.path.glob("waiting-*.safetensors"):
            waiting.unlink(missing_ok=True)
        for partial in temporary_names.partial_files_in(self.path):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)

    def _refuse(self, holder: LockHolder) -> None:
        raise RunError(
            f"{self.path} is being trained just now by {holder.description}. Nothing was changed. "
            f"Wait until it has ended, or stop it with Ctrl-C where it runs; then the run can be "
            f"continued with: {how_to_resume(self.path, self.path)}"
        )

    @classmethod
    def require_free(cls, path: Path) -> None:
        """Check that a new run can use this directory.

        Raises:
            RunError: Something already exists there, or another process is training there.
        """
        if (holder := locks.lock_holder(path)) is not None:
            cls(path)._refuse(holder)
        require_empty(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            RunError: It is missing or not a run directory.
        """
        run = cls(path)
        if not run.config_file.is_file():
            found = "no config.toml in it" if path.is_dir() else "no such folder"
            raise RunError(
                f"{path} is not a run directory ({found}). Give the folder that a training run "
                f"wrote as its output_dir."
            )
        return run

    def is_there(self) -> bool:
        """Return whether the directory is that of a run that has started, and can be read."""
        return presence.is_file(self.config_file) and presence.is_file(self.status_file)

    @property
    def config_file(self) -> Path:
        """The file of the resolved settings."""
        return self.path / "config.toml"

    @property
    def status_file(self) -> Path:
        """The file with the phase and progress of the run, or how it ended."""
        return self.path / "status.json"

    @property
    def events_file(self) -> Path:
        """The file with the events of the run, one JSON object per line."""
        return self.path / "events.jsonl"

    @property
    def commands(self) -> Path:
        """The folder of commands to the run."""
        return self.path / "commands"

    @property
    def metrics_file(self) -> Path:
        """The file with the metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def base_losses_file(self) -> Path:
        """The file with the base model's loss on each held-out image, for `validation.by`."""
        return self.path / "base-losses.json"

    @property
    def image_losses_file(self) -> Path:
        """The file with the loss of each image each time it was shown."""
        return self.path / "image_losses.csv"

    @property
    def states(self) -> Path:
        """The folder of training states."""
        return self.path / "states"

    @property
    def samples(self) -> Path:
        """The folder of previews."""
        return self.path / "samples"

    @property
    def averages(self) -> Path:
        """The folder of averages of the weights from which others are computed after training."""
        return self.path / "averages"

    @property
    def export(self) -> Path:
        """The folder of the trained model."""
        return self.path / "export"

    def abandon(self, folder: Path) -> Path:
        """Rename a folder of an abandoned attempt; returns its new path."""
        return folder.rename(presence.free_path(folder.with_name(f"{folder.name}-abandoned")))

    def exported_model(self) -> Path | None:
        """Return the trained model: a file or a Diffusers folder; None before the run's end."""
        recorded = self.status().get("model")
        with contextlib.suppress(OSError, ValueError):  # not a valid path on this system
            if recorded and self.at(recorded).exists():
                return self.at(recorded)
        try:
            entries = sorted(self.export.iterdir())
        except OSError:
            return None
        return next((entry for entry in entries if not entry.name.startswith(".")), None)

    def model_address(self) -> str | None:
        """Return the trained model's path for display, even if only its record was fetched."""
        recorded, found = self.status().get("model"), self.exported_model()
        if found is None and recorded and self.location is not None:
            return self.address_of(self.at(str(recorded)))
        return None if found is None else self.address_of(found)

    def has(self, path: Path) -> bool:
        """Return whether a file or folder exists, on this machine or in the run's store."""
        if path.exists() or self.in_store is None or not path.is_relative_to(self.path):
            return path.exists()
        return self.in_store(path.relative_to(self.path).as_posix())

    def record_of(self, path: Path) -> str:
        """Return a path as it is recorded in files of the run, so that both can be moved together.

        Relative to the run directory; absolute if it is on another drive of Windows.
        """
        real = os.path.realpath(path)
        try:
            return Path(os.path.relpath(real, os.path.realpath(self.path))).as_posix()
        except ValueError:
            return real

    def at(self, record: str) -> Path:
        """Return the path for a record of `record_of`, or for an absolute path."""
        inside = Path(record)
        return inside if inside.is_absolute() else Path(os.path.normpath(self.path / inside))

    def status(self) -> dict[str, Any]:
        """Return the content of `status.json`; empty if damaged, as no number depends on it."""
        try:
            return self.read_json(self.status_file.name)
        except RunError:
            return {}

    @property
    def report(self) -> Path:
        """The HTML report of the run."""
        return self.path / "report.html"

    def state(self) -> RunState:
        """Return the true state of the run: from its status, and whether its process is alive."""
        found = self._state_now()
        return self._state_now() if found.state == "killed" else found  # it may just have ended

    def _state_now(self) -> RunState:
        """Return the state from the lock and the files that were written before it was read."""
        holder, saved = self.elsewhere or locks.lock_holder(self.path), self.saved_steps()
        return state_of(self.status(), holder, saved[-1] if saved else 0, self.path)

    def write_status(self, phase: Phase, **details: Any) -> None:
        """Start a phase of the run, and write `status.json` at once, if possible."""
        (self.live_status or StatusWriter(self.status_file)).write(phase, **details)

    def note_status(self, **details: Any) -> None:
        """Set entries that `status.json` will have at its next heartbeat; None removes an entry."""
        if self.live_status is not None:
            self.live_status.note(**details)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the small JSON files; an empty mapping if it does not exist yet.

        Raises:
            RunError: The file is damaged.
        """
        file = self.path / name
        if not file.is_file():
            return {}
        try:
            value = with_current_names(parse_json(read_text(file)), name)
            fault = fault_in(value, name)
        except (OSError, ValueError) as error:
            raise RunError(f"{file} is damaged: {type(error).__name__}: {error}.") from error
        if fault:
            raise RunError(f"{file} is damaged: {fault}.")
        found: dict[str, Any] = value
        return found

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append one line of metrics and flush it to the operating system at once.

        Raises:
            StorageError: The disk is full or the file cannot be written.
        """
        append_metrics(self.metrics_file, record)

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the metrics; a line that is cut off or damaged is skipped."""
        return read_metrics(self.metrics_file)

    def truncate_metrics(self, step: int) -> None:
        """Remove the metrics after `step`, since a resumed run is about to repeat those steps."""
        truncate_metrics(self.metrics_file, step)

    def saved_steps(self) -> list[int]:
        """Return the steps with a complete training state, in ascending order."""
        return steps_in(self.states)

    def sampled_steps(self) -> list[int]:
        """Return the steps with previews, in ascending order."""
        return steps_in(self.samples)
