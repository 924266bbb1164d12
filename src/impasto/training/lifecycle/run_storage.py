"""Where a run is written: its directory, or a working folder that is mirrored to a store."""

from __future__ import annotations

import contextlib
from pathlib import Path

from impasto.config.run import RunConfig
from impasto.errors import StorageError
from impasto.progress import Progress
from impasto.remote_paths import is_remote, shown
from impasto.runs import RunDirectory


def local_output_dir(config: RunConfig) -> Path:
    """The folder of this machine that a run of these settings is written into."""
    if not is_remote(config.output_dir):
        return config.output_dir
    from impasto.runs.remote.local_folders import working_folder

    return working_folder(config.output_dir)


def with_local_output_dir(config: RunConfig) -> RunConfig:
    """The settings with a folder of this machine as `output_dir`."""
    return config.model_copy(update={"output_dir": local_output_dir(config)})


class RunStorage:
    """Mirrors a run to its object store, if it has one, on the process that writes it.

    Args:
        stack: Keeps the run for this process, and sends the rest of it to its store when it closes.
        location: The URL of the run as a path, or None for a run on this machine.
        progress: Shows what is fetched and sent.
        is_new: Whether the run is a new one, not one that is resumed.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        location: Path | None,
        progress: Progress,
        *,
        is_new: bool,
    ) -> None:
        self._in_store = None
        if location is None:
            return
        from impasto.runs.remote.run_in_store import RunInStore

        try:
            self._in_store = stack.enter_context(RunInStore(location, progress, is_new=is_new))
        except OSError as error:
            raise StorageError(
                f"{shown(location)} could not be fetched: {error.strerror or error}. Try again."
            ) from error

    def attach(self, run: RunDirectory) -> RunDirectory:
        """The run directory with its location in the store, if it has one."""
        return run if self._in_store is None else self._in_store.attach(run)

    def start_sending(self) -> None:
        """Begin to send what is written: there is a run to keep."""
        if self._in_store is not None:
            self._in_store.start()
