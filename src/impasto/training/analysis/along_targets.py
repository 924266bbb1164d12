"""What `impasto merge --along` may write over: nothing of the run, its dataset or its models."""

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
    """The file name of a preview: the model's number and the prompt's, both from 0."""
    return f"{number:02d}-{row:03d}.png"


def require_targets(
    run: RunDirectory,
    output: Output | None,
    previews: Path | None,
    progress: Progress,
    *,
    overwrite: bool,
) -> None:
    """Make sure that what will be written replaces nothing else, before minutes go by.

    Args:
        run: The run that is measured.
        output: How the best model is written; None writes none.
        previews: The folder of previews; None draws none.
        progress: Who is told, where the base model has to be downloaded first.
        overwrite: Whether previews of an earlier walk are replaced.

    Raises:
        ConfigError: Something is there that stays.
        ModelError: The base model is gone.
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
    """Make sure that a folder of previews replaces nothing but such previews.

    Args:
        folder: Where they are to be.
        run: The run that is drawn.
        config: Its settings, which name the dataset and the models.
        out: Where a model will be written beside it; None if none is.
        overwrite: Whether earlier previews are replaced.

    Raises:
        ConfigError: It is, or holds, the run, a path of its settings or `out`; it is in a folder
            of images; or it holds a file that is no such preview.
    """
    own = folder.resolve()
    settings = list(_paths(config.model_dump(mode="json")))
    kept = [run.path, *(path for _, path in settings), *([] if out is None else [out])]
    for path in kept:
        if path.resolve().is_relative_to(own):
            raise ConfigError(
                f"{folder} is or holds {path}, which a folder of previews does not replace. "
                f"Nothing was changed. Take another name for --previews."
            )
    for key, path in settings:
        if key in _OF_IMAGES and own.is_relative_to(path.resolve()):
            raise ConfigError(
                f"{folder} is in {path}, where the run has its images ({key}). Nothing was "
                f"changed. Take another name for --previews."
            )
    if not folder.exists():
        return
    if not overwrite:
        raise ConfigError(
            f"{folder} is already there; nothing was changed. Take another name, or --overwrite."
        )
    _require_previews_alone(folder)


def _require_previews_alone(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is a file, and previews are a folder. Nothing was changed. Take another "
            f"name for --previews."
        )
    foreign = sorted(
        path.name
        for path in folder.iterdir()
        if not path.is_file() or (path.name != SHEET and not _IMAGE.fullmatch(path.name))
    )
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise ConfigError(
            f"{folder} is not replaced: it also holds {foreign[0]}{more}, which is no preview of "
            f"--along. Nothing was changed. Take another name for --previews."
        )


def _paths(settings: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Each setting that names something on the disk, and what it names."""
    waiting: list[tuple[str, Any]] = list(settings.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, str) and value and is_path_key(key):
            yield key, Path(value).expanduser()
