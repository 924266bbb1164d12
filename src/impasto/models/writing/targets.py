"""Decides the form of a model to write, and whether its target may be replaced: for any command."""

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
"""Extensions of files that PyTorch writes: similar to `.ckpt`, but no misspelling of it."""


def form_of(target: Path, asked: str | None) -> Form:
    """Return the form to write, as requested or by the target's extension, in upper or lower case.

    A name without an extension gives a Diffusers folder. A part after a dot that has a digit in it,
    as in `model-v1.5`, belongs to the name.

    Raises:
        ConfigError: The two contradict each other, or no form has this extension.
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
            f"{target} ends in {target.suffix}, but Impasto writes no models in such files. "
            f"Use the extension {meant}, or none for a Diffusers folder."
        )
    return form


def require_folder_name(target: Path) -> None:
    """Check that a path is the name of a folder, not of a file.

    Raises:
        ConfigError: It has the extension of a file.
    """
    if target.suffix.lower() in BY_ENDING or _is_of_a_file(target.suffix.lower(), was_asked=False):
        raise ConfigError(
            f"{target} ends in {target.suffix}, but the output is a Diffusers folder. Use a name "
            f"without an extension, and convert the folder to a file with impasto convert."
        )


def sources_of(
    models: Sequence[str], options: OpenOptions, progress: Progress | None = None
) -> list[Path]:
    """Return every file and folder that models are read from, as named and as resolved.

    Raises:
        ModelError: A model does not exist.
    """
    named = [Path(model).expanduser() for model in models]
    found = [locate(model, options, progress) for model in models]
    vae = None if options.vae is None else Path(options.vae).expanduser()
    if vae is None or not vae.exists():  # a VAE from the Hub is in the Hub's cache
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
    """Check that a target may be written, and that it is not the source.

    Args:
        source: Path that is read.
        target: Path that is to be written.
        overwrite: Whether a model at the target is replaced.
        by_folder: Whether a folder is to be written.
        replacing: How the caller requests replacement, for the error.

    Raises:
        ConfigError: The target is the source, contains it, or exists and is not to be replaced.
    """
    if source.exists() and target.exists() and source.resolve() == target.resolve():
        raise ConfigError(f"{target} is the source itself; nothing was changed. Use another name.")
    if target.exists() and not overwrite:
        raise ConfigError(
            f"{target} already exists; nothing was changed. Use another name, or {replacing}."
        )
    if source.exists() and target.exists() and source.resolve().is_relative_to(target.resolve()):
        raise ConfigError(f"{source} is in {target}; nothing was changed. Use another name.")
    if fault := why_not_replaced(target, by_folder=by_folder):
        raise ConfigError(
            f"{target} is not replaced: {fault}. Nothing was changed. Use another name."
        )


def why_not_replaced(target: Path, *, by_folder: bool) -> str:
    """Return why a model may not replace what is at a target, even on request; empty if it may.

    A folder is replaced whole, so it must hold a Diffusers model and nothing else.

    Args:
        target: Target path of the model.
        by_folder: Whether the model is a Diffusers folder.
    """
    if not target.exists():
        return ""
    if target.is_dir() != by_folder:
        found, wanted = ("folder", "file") if target.is_dir() else ("file", "folder")
        return f"it is a {found}, and the output is a {wanted}"
    if not by_folder:
        return ""
    foreign = [path for path in sorted(target.rglob("*")) if not _is_of_a_model(path, target)]
    if foreign:
        name = foreign[0].relative_to(target).as_posix()
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        return f"the folder also holds {name}{more}, which is not part of a Diffusers model"
    return ""


def _is_of_a_model(path: Path, folder: Path) -> bool:
    """Return whether a file or folder is part of a Diffusers model."""
    first, *inner = path.relative_to(folder).parts
    if first in _folders():
        return len(inner) < 2 and (not inner or path.suffix in _MODEL_ENDINGS)
    return not inner and first in ("model_index.json", METADATA_FILE, LDM_ONLY_FILE)


def _folders() -> set[str]:
    """Return the names of all folders that a model of any family may have."""
    layouts = families.folder_layouts()
    own = {folder for layout in layouts for folder in (*layout.folders, *layout.tokenizers)}
    return {*own, SCHEDULER}


_MODEL_ENDINGS = (".json", ".safetensors", ".bin", ".txt")


def _is_of_a_file(ending: str, *, was_asked: bool) -> bool:
    """Return whether an extension is that of a file; any word is, unless a form was requested."""
    return ending in FILE_ENDINGS or (ending[1:].isalpha() and not was_asked)
