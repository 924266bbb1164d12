"""The folder that a run is written to: its directory, or a working folder mirrored to a store."""

from __future__ import annotations

import contextlib
from pathlib import Path

from impasto.config.run import RunConfig
from impasto.errors import StorageError
from impasto.progress import Progress
from impasto.remote_paths import is_remote, shown
from impasto.runs import RunDirectory


def local_output_dir(config: RunConfig) -> Path:
    """Return the local folder that a run of these settings is written to."""
    if not is_remote(config.output_dir):
        return config.output_dir
    from impasto.runs.remote.local_folders import working_folder

    return working_folder(config.output_dir)


def with_local_output_dir(config: RunConfig) -> RunConfig:
    """Return the settings with a local folder as `output_dir`."""
    return config.model_copy(update={"output_dir": local_output_dir(config)})


class RunStorage:
    """Mirrors a run to its object store, if it has one, on the process that writes it.

    Args:
        stack: Holds the run for this process; on closing, the remaining files are uploaded.
        location: The URL of the run as a path, or None for a run on this machine.
        progress: Receives the progress of downloads and uploads.
        is_new: Whether the run is new, rather than resumed.

    Raises:
        StorageError: The run cannot be fetched.
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
        """Return the run directory with its location in the store; unchanged if it has none."""
        return run if self._in_store is None else self._in_store.attach(run)

    def start_sending(self) -> None:
        """Begin to upload files as they are written, now that the run is worth keeping."""
        if self._in_store is not None:
            self._in_store.start()
