"""What form of model a path asks for, and what may be replaced there: one rule for all verbs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from impasto.checkpoints.file_names import FILE_ENDINGS
from impasto.errors import ConfigError
from impasto.models import families
from impasto.models.reading.diffusers_folder import LDM_ONLY_FILE, METADATA_FILE
from impasto.models.reading.opening import OpenOptions, locate
from impasto.models.reading.pipeline_files import SCHEDULER
from impasto.models.writing.saving import SUFFIXES, Form
from impasto.progress import Progress

BY_ENDING: dict[str, Form] = {".safetensors": "safetensors", ".ckpt": "ckpt"}

_OF_PICKLES = frozenset({".pt", ".pth", ".bin"})
"""Endings of files that PyTorch writes: near `.ckpt` in letters, and no misspelling of it."""


def form_of(target: Path, asked: str | None) -> Form:
    """What to write, as asked or by the target's ending, in upper or lower case.

    A Diffusers folder is written where the name has no ending. A part after a dot that has a digit
    in it, as in `model-v1.5`, belongs to the name.

    Raises:
        ConfigError: The two contradict each other, or the ending is of no form that is written.
    """
    ending = target.suffix.lower()
    by_ending = BY_ENDING.get(ending)
    form = next((f for f in SUFFIXES if f == asked), by_ending or "diffusers")
    if by_ending is not None and form != by_ending:
        raise ConfigError(f"{target} ends in {target.suffix}, but --to says {form}. Change one.")
    if by_ending is None and _is_of_a_file(ending, was_asked=asked is not None):
        near = difflib.get_close_matches(ending, BY_ENDING, 1, 0.7)
        is_misspelt = near and ending not in _OF_PICKLES
        meant = near[0] if is_misspelt else " or ".join(BY_ENDING)
        raise ConfigError(
            f"{target} ends in {target.suffix}, which is not a form of model that Impasto writes. "
            f"Let it end in {meant}, or in nothing for a Diffusers folder."
        )
    return form


def require_folder_name(target: Path) -> None:
    """Make sure that a path is the name of a folder, not of a file.

    Raises:
        ConfigError: It ends as a file does.
    """
    if target.suffix.lower() in BY_ENDING or _is_of_a_file(target.suffix.lower(), was_asked=False):
        raise ConfigError(
            f"{target} ends in {target.suffix}, but what is written is a Diffusers folder. Take a "
            f"name without an ending, and make a file of it with impasto convert."
        )


def sources_of(
    models: Sequence[str], options: OpenOptions, progress: Progress | None = None
) -> list[Path]:
    """Every file and folder on the disk that models are read from, as named and as found.

    Raises:
        ModelError: There is no model of a name.
    """
    named = [Path(model).expanduser() for model in models]
    found = [locate(model, options, progress) for model in models]
    vae = None if options.vae is None else Path(options.vae).expanduser()
    if vae is None or not vae.exists():  # one of the Hub is in its cache
        return [*named, *found]
    return [*named, *found, vae, locate(str(vae), options, progress)]


def require_free(
    source: Path,
    target: Path,
    *,
    overwrite: bool,
    by_folder: bool = False,
    replacing: str = "--overwrite",
) -> None:
    """Make sure that a target may be written, and that it is not what is read.

    Args:
        source: What is read.
        target: What is to be written.
        overwrite: Whether a model at the target is replaced.
        by_folder: Whether a folder is to be written.
        replacing: How the caller asks for that, for the error.

    Raises:
        ConfigError: It is the source, holds it, or is there and not to be replaced.
    """
    if source.exists() and target.exists() and source.resolve() == target.resolve():
        raise ConfigError(f"{target} is the source itself; nothing was changed. Take another name.")
    if target.exists() and not overwrite:
        raise ConfigError(
            f"{target} is already there; nothing was changed. Take another name, or {replacing}."
        )
    if source.exists() and target.exists() and source.resolve().is_relative_to(target.resolve()):
        raise ConfigError(f"{source} is in {target}; nothing was changed. Take another name.")
    if fault := why_not_replaced(target, by_folder=by_folder):
        raise ConfigError(
            f"{target} is not replaced: {fault}. Nothing was changed. Take another name."
        )


def why_not_replaced(target: Path, *, by_folder: bool) -> str:
    """Why what is at a target may not be replaced by a model, asked for or not; empty if it may.

    A folder is replaced whole. So only one goes that holds a Diffusers model and nothing besides.

    Args:
        target: Where the model is to be.
        by_folder: Whether it is a Diffusers folder.
    """
    if not target.exists():
        return ""
    if target.is_dir() != by_folder:
        found, wanted = ("folder", "file") if target.is_dir() else ("file", "folder")
        return f"it is a {found}, and what is written is a {wanted}"
    if not by_folder:
        return ""
    foreign = [path for path in sorted(target.rglob("*")) if not _is_of_a_model(path, target)]
    if foreign:
        name = foreign[0].relative_to(target).as_posix()
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        return f"the folder also holds {name}{more}, which is of no Diffusers model"
    return ""


def _is_of_a_model(path: Path, folder: Path) -> bool:
    """Whether a file or folder is one of those that make a Diffusers model."""
    first, *inner = path.relative_to(folder).parts
    if first in _folders():
        return len(inner) < 2 and (not inner or path.suffix in _MODEL_ENDINGS)
    return not inner and first in ("model_index.json", METADATA_FILE, LDM_ONLY_FILE)


def _folders() -> set[str]:
    """The folders that a model of any family may have."""
    layouts = families.folder_layouts()
    own = {folder for layout in layouts for folder in (*layout.folders, *layout.tokenizers)}
    return {*own, SCHEDULER}


_MODEL_ENDINGS = (".json", ".safetensors", ".bin", ".txt")


def _is_of_a_file(ending: str, *, was_asked: bool) -> bool:
    """Whether an ending says that a file is meant; any word does, unless the form was asked for."""
    return ending in FILE_ENDINGS or (ending[1:].isalpha() and not was_asked)
