"""Writes a model in another form or precision, tensor by tensor, without building networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from impasto import files
from impasto.checkpoints import hypernetworks
from impasto.checkpoints.file_names import model_name
from impasto.checkpoints.hypernetwork_writing import write_hypernetwork
from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.modelspec import read_encoder_layer
from impasto.checkpoints.scaled import QUANTIZATION_KEY
from impasto.errors import ConfigError, ModelError
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.making import needed_tensors
from impasto.models.reading.completeness import require_complete
from impasto.models.reading.configs import CONFIGS_KEY
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.reading.recorded import RANDOM_KEY
from impasto.models.writing.saving import About, Form, trained_contents, write_model
from impasto.models.writing.targets import form_of, require_free, sources_of
from impasto.progress import Progress, SilentProgress, in_mib

__all__ = [
    "convert_hypernetwork",
    "convert_model",
    "converted_info",
    "form_of",
    "hash_file",
    "save_model",
]

MADE_ANEW = {
    f"modelspec.{key}"
    for key in (
        "sai_model_spec", "architecture", "implementation", "title", "resolution", "date",
        "hash_sha256", "prediction_type", "encoder_layer",
    )
}  # fmt: skip

OF_TRAINING = ("impasto.training", "ss_")
"""Prefixes of metadata keys that describe a model's training: no longer true once it has been
trained further. The second is sd-scripts'."""

MERGE_KEY = "impasto.merge"
"""Metadata key under which a file records the merge that it is from, as JSON."""


def convert_model(
    source: str,
    target: Path,
    form: Form,
    dtypes: Mapping[ComponentKind, torch.dtype],
    options: OpenOptions,
    *,
    title: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Read a model and write it; return facts about the result to show to the user.

    Raises:
        ConfigError: Something exists at `target` already, or `target` is a source.
        ModelError: The source cannot be used.
        StorageError: The target cannot be written.
    """
    by_folder = form == "diffusers"
    require_free(
        Path(source), target, overwrite=overwrite, by_folder=by_folder
    )  # before a download
    for found in sources_of([source], options, progress):
        require_free(found, target, overwrite=overwrite, by_folder=by_folder)
    contents = open_model(source, options, progress)
    asked = contents.identity.family.by_name(dtypes)
    contents = require_complete(contents, needed_tensors(contents)).cast(asked)
    write_model(contents, target, form, converted_info(contents, target, title), progress)
    summary = {
        "Wrote": str(target),
        "Family": contents.identity.family.name,
        "Predicts": f"{contents.identity.prediction.name} ({contents.identity.evidence})",
        "Precision": ", ".join(
            f"{component} {dtype}" for component, dtype in contents.dtypes().items()
        ),
        **({"Note": "; ".join(contents.notes)} if contents.notes else {}),
    }
    if target.is_file():
        summary["SHA-256"] = hash_file(target, progress)
    return summary


def save_model(
    model: BaseModel,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    title: str | None = None,
    clip_skip: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a model with its networks' current weights, in the form given by the target's name.

    A name with the extension `.safetensors` or `.ckpt` gives a single file, one without extension a
    Diffusers folder.

    Args:
        model: The model, as loaded or trained since.
        target: Path to write to.
        dtype: Dtype of all networks; None means that of each tensor in the model's own files, so
            that frozen tensors are unchanged, bit for bit, but at least 16 bits for trained ones.
        title: Title of the model in its file; None means the target's name.
        clip_skip: CLIP layer that it was trained with; None means that stated in its own file.
        overwrite: Whether a model at the target is replaced.
        progress: Shows the progress.

    Raises:
        ConfigError: Something exists at the target already, or the model or its VAE was loaded from
            it; its extension is of no form; or there is no such layer.
        ModelError: A network has other tensors than it was loaded with; a weight is NaN or
            infinite, or becomes so in the dtype.
        StorageError: The target cannot be written; an earlier one is unchanged.
    """
    target = Path(target)
    form = form_of(target, None)
    source = Path(model.contents.source).expanduser()
    there = [str(source)] if source.exists() else []
    for found in (source, *sources_of(there, OpenOptions(vae=model.contents.vae_source))):
        require_free(
            found, target, overwrite=overwrite, by_folder=form == "diffusers",
            replacing="overwrite=True",
        )  # fmt: skip
    now = {
        component: {name: tensor.cpu() for name, tensor in network.state_dict().items()}
        for component, network in model.networks.items()
    }
    for component, tensors in now.items():
        _require_same_tensors(component, tensors, model)
    asked = {} if dtype is None else dict.fromkeys(now, dtype)
    contents = trained_contents(model, now, asked, trained_dtype=None)
    about = converted_info(model.contents, target, title or model_name(target))
    untrue = (*OF_TRAINING, MERGE_KEY, RANDOM_KEY)  # no longer true of changed weights
    more = {key: text for key, text in about.more.items() if not key.startswith(untrue)}
    if clip_skip is not None and clip_skip < 1:
        raise ConfigError(f"clip_skip is {clip_skip}; expected 1, the last layer, or more.")
    layer = clip_skip or about.encoder_layer
    write_model(contents, target, form, replace(about, more=more, encoder_layer=layer), progress)
    return target


def _require_same_tensors(component: str, tensors: Mapping[str, object], model: BaseModel) -> None:
    own = {name.removeprefix("text_model.") for name in tensors}
    expected = set(model.contents.components[component])
    if odd := sorted(own ^ expected):
        found = "is new" if odd[0] in own else "is missing"
        more = f", and {len(odd) - 1} more names differ" if len(odd) > 1 else ""
        raise ModelError(
            f"The {component} is not as it was loaded: {odd[0]} {found}{more}. Nothing was "
            f"written. Merge its attachments (such as a LoRA) into its weights first."
        )


def convert_hypernetwork(
    source: Path,
    target: Path,
    asked: str | None,
    dtype: torch.dtype | None,
    *,
    title: str | None = None,
    overwrite: bool = False,
) -> dict[str, str]:
    """Read a hypernetwork and write it; return facts about the result to show to the user.

    Raises:
        ConfigError: Something exists at `target` already, or its extension does not fit.
        ModelError: The source cannot be used, or the form cannot represent it.
        StorageError: The target cannot be written.
    """
    require_free(source, target, overwrite=overwrite)
    ending = target.suffix.lower()
    by_ending = "safetensors" if ending == ".safetensors" else "a1111"
    dialect = next((d for d in hypernetworks.SUFFIXES if d == (asked or by_ending)), None)
    if dialect is None:
        raise ConfigError(
            f"{source} is a hypernetwork, which cannot be written as {asked}; choose one of "
            f"{', '.join(hypernetworks.SUFFIXES)}."
        )
    if ending != hypernetworks.SUFFIXES[dialect]:
        raise ConfigError(
            f"{target} ends in {target.suffix or 'nothing'}, but a hypernetwork as {dialect} is a "
            f"{hypernetworks.SUFFIXES[dialect]} file. Change one of them."
        )
    contents = hypernetworks.read_hypernetwork(source).cast(dtype)
    contents = replace(contents, name=title) if title else contents
    lost = write_hypernetwork(contents, target, dialect)
    return {
        "Wrote": str(target),
        "From": contents.form,
        "As": dialect,
        "Widths": ", ".join(map(str, contents.widths)),
        **({"Note": " ".join(lost)} if lost else {}),
    }


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal; A1111 shows its first ten digits."""
    with (progress or SilentProgress()).stage(
        f"Hashing {path.name}", path.stat().st_size >> 20, "MiB"
    ) as advance:
        return files.sha256_of(path, in_mib(advance))


def converted_info(contents: ModelContents, target: Path, title: str | None) -> About:
    """Return the metadata of the new file: the old file's, without entries that are made again."""
    said = contents.metadata
    anew = {
        *MADE_ANEW,
        *(f"modelspec.{component}_dtype" for component in contents.identity.family.names),
    }
    if contents.vae_source is not None:
        anew.add(RANDOM_KEY)  # the other VAE was trained
    kept = {key: text for key, text in said.items() if key not in anew}
    return About(
        title=title or said.get("modelspec.title", model_name(target)),
        resolution=said.get("modelspec.resolution"),
        encoder_layer=read_encoder_layer(said) or 1,
        others={
            key.removeprefix("modelspec."): text
            for key, text in kept.items()
            if key.startswith("modelspec.")
        },
        more={
            key: text
            for key, text in kept.items()
            if not key.startswith("modelspec.")
            and key not in ("format", CONFIGS_KEY, QUANTIZATION_KEY)
        },
    )
