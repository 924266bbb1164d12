"""Where a run is trained: in its directory, or in the working folder of one in an object store."""

from __future__ import annotations

import contextlib
from pathlib import Path

from impasto.config.run import RunConfig
from impasto.errors import StorageError
from impasto.progress import Progress
from impasto.remote_paths import is_remote, shown
from impasto.runs import RunDirectory


def folder_of(config: RunConfig) -> Path:
    """The folder of this machine that a run of these settings is written into."""
    if not is_remote(config.output_dir):
        return config.output_dir
    from impasto.runs.remote.local_folders import working_folder

    return working_folder(config.output_dir)


def placed(config: RunConfig) -> RunConfig:
    """The settings with a folder of this machine as `output_dir`."""
    return config.model_copy(update={"output_dir": folder_of(config)})


class Home:
    """Where a run belongs, on the process that writes it; a store only of a run with a URL.

    Args:
        held: Keeps the run for this process, and sends what is left of it to its store in the end.
        place: Its URL as a path, or None.
        progress: Is told.
        is_new: Whether the run begins.
    """

    def __init__(
        self,
        held: contextlib.ExitStack,
        place: Path | None,
        progress: Progress,
        *,
        is_new: bool,
    ) -> None:
        self._kept = None
        if place is None:
            return
        from impasto.runs.remote.run_in_store import RunInStore

        try:
            self._kept = held.enter_context(RunInStore(place, progress, is_new=is_new))
        except OSError as error:
            raise StorageError(
                f"{shown(place)} could not be fetched: {error.strerror or error}. Try again."
            ) from error

    def named(self, run: RunDirectory) -> RunDirectory:
        """The run directory, with the place where it belongs."""
        return run if self._kept is None else self._kept.named(run)

    def begin(self) -> None:
        """Have what is written sent from now on: there is a run to keep."""
        if self._kept is not None:
            self._kept.start()
