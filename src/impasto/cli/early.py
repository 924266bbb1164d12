"""Early checks of a run's settings, before PyTorch is imported.

The run checks the same things again when it uses them; this only reports errors sooner.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from impasto.checkpoints.hub import require_source
from impasto.invocation import is_first_process, missing_extra
from impasto.remote_paths import is_remote
from impasto.runs import RunDirectory

if TYPE_CHECKING:
    from impasto.config.run import RunConfig


def check_run(config: RunConfig, *, is_new: bool = True) -> None:
    """Make sure that the files and folders in a run's settings exist, and its directory is free.

    Args:
        config: The settings.
        is_new: Whether a new run directory will be created, which must not exist yet.

    Raises:
        DatasetError: A folder of images is missing.
        ModelError: The model or the separate VAE is missing.
        RunError: The run directory already exists.
        StorageError: The run's object store cannot be used.
        MissingDependencyError: A tracker in the settings is not installed.
    """
    require_folders(config)
    require_source(config.model.path)
    if config.model.vae is not None:
        require_source(config.model.vae)
    if is_new and is_first_process():  # the others find the directory that the first has made
        _require_free(config.output_dir)
    for name in config.logging.trackers:
        if importlib.util.find_spec(name) is None:
            raise missing_extra(
                "trackers",
                f"logging.trackers asks for {name}, which is not installed.",
                "Or remove it from logging.trackers.",
            )


def _require_free(output_dir: Path) -> None:
    if not is_remote(output_dir):
        RunDirectory.require_free(output_dir)
        return
    from impasto.runs.remote.run_in_store import require_free

    require_free(output_dir)


def require_folders(config: RunConfig) -> None:
    """Make sure that the folders of training and validation images exist.

    Raises:
        DatasetError: A folder is missing.
    """
    from impasto.data.scanning.image_locations import require_images

    subsets = [s for entry in config.dataset.entries for s in entry.subsets if s.num_repeats]
    folders = [subset.image_dir for subset in subsets] + [config.validation.image_dir]
    for folder in folders:
        if folder is not None:
            require_images(folder)
