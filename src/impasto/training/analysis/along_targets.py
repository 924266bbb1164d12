"""Checks that `impasto merge --along` overwrites no file of the run, its dataset or its models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from impasto.config.load import load_begun_config
from impasto.config.run import RunConfig
from impasto.errors import ConfigError
from impasto.models.merging.merging import Output, require_output_free
from impasto.progress import Progress
from impasto.publishing import is_path_key
from impasto.runs import RunDirectory
from impasto.training.builders.model import build_open_options

SHEET = "sheet.png"
_IMAGE = re.compile(r"\d{2,}-\d{3,}\.png", re.ASCII)
_OF_IMAGES = frozenset({"image_dir", "mask_dir", "train_data_dir", "reg_data_dir"})


def image_name(number: int, row: int) -> str:
    """Return the file name of a preview, from the indexes of model and prompt, both from 0."""
    return f"{number:02d}-{row:03d}.png"


def require_targets(
    run: RunDirectory,
    output: Output | None,
    previews: Path | None,
    progress: Progress,
    *,
    overwrite: bool,
) -> None:
    """Check, before the slow work starts, that the files to be written replace nothing else.

    Args:
        run: The run that is measured.
        output: Where and how the best model is written; None writes none.
        previews: The folder of previews; None draws none.
        progress: Receives progress if the base model has to be downloaded first.
        overwrite: Whether previews of an earlier call are replaced.

    Raises:
        ConfigError: A target exists and may not be replaced.
        ModelError: The base model is missing.
    """
    config = load_begun_config(run.config_file)
    if previews is not None:
        out = None if output is None else output.target
        require_previews_free(previews, run, config, out, overwrite=overwrite)
    if output is not None:
        exported = run.exported_model()
        models = [config.model.path, *([] if exported is None else [str(exported)])]
        require_output_free(models, output, build_open_options(config), progress)


def require_previews_free(
    folder: Path,
    run: RunDirectory,
    config: RunConfig,
    out: Path | None = None,
    *,
    overwrite: bool,
) -> None:
    """Check that a new folder of previews would replace nothing but such previews.

    Args:
        folder: The folder for the previews.
        run: The run whose prompts are drawn.
        config: The run's settings, which name the dataset and the models.
        out: The path of the model that will be written too; None if none is.
        overwrite: Whether earlier previews are replaced.

    Raises:
        ConfigError: The folder is or contains the run, a path of its settings or `out`; it is in a
            folder of images; it exists without `overwrite`; or it has a file that is not such a
            preview.
    """
    own = folder.resolve()
    settings = list(_paths(config.model_dump(mode="json")))
    kept = [run.path, *(path for _, path in settings), *([] if out is None else [out])]
    for path in kept:
        if path.resolve().is_relative_to(own):
            raise ConfigError(
                f"{folder} is or contains {path}, which previews must not replace. Nothing was "
                f"changed. Choose another folder for --previews."
            )
    for key, path in settings:
        if key in _OF_IMAGES and own.is_relative_to(path.resolve()):
            raise ConfigError(
                f"{folder} is in {path}, a folder of the run's images ({key}). Nothing was "
                f"changed. Choose another folder for --previews."
            )
    if not folder.exists():
        return
    if not overwrite:
        raise ConfigError(
            f"{folder} already exists. Nothing was changed. Choose another folder for --previews, "
            f"or add --overwrite."
        )
    _require_previews_alone(folder)


def _require_previews_alone(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is a file, but --previews expects a folder. Nothing was changed. Choose "
            f"another folder for --previews."
        )
    foreign = sorted(
        path.name
        for path in folder.iterdir()
        if not path.is_file() or (path.name != SHEET and not _IMAGE.fullmatch(path.name))
    )
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise ConfigError(
            f"{folder} is not replaced: it also has {foreign[0]}{more}, which is not a preview of "
            f"--along. Nothing was changed. Choose another folder for --previews."
        )


def _paths(settings: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yield the name and path of each setting that is a path on disk."""
    waiting: list[tuple[str, Any]] = list(settings.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, str) and value and is_path_key(key):
            yield key, Path(value).expanduser()
