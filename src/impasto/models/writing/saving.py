"""Writes a model in any of its forms: LDM `.safetensors`, LDM `.ckpt`, or a Diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from impasto import files
from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.modelspec import ZERO_TERMINAL_SNR_KEY, ModelSpec
from impasto.checkpoints.tensors import LazyTensor, Tensors, total_bytes
from impasto.checkpoints.writing import HASH_KEY, write_ckpt, write_safetensors
from impasto.models.family import Component
from impasto.models.networks.loading import BaseModel
from impasto.models.reading.configs import metadata_for
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.diffusers_folder import LDM_ONLY_FILE, METADATA_FILE
from impasto.models.reading.native_size import native_size
from impasto.models.reading.pipeline_files import SCHEDULER_FILE, component_config, model_index
from impasto.models.tokenization.text_metadata import EMPTY_TEXT_KEY, ZEROS
from impasto.models.tokenization.vocabulary import write_tokenizer
from impasto.progress import Advance, Progress, SilentProgress, in_mib

Form = Literal["safetensors", "ckpt", "diffusers"]
SUFFIXES: dict[Form, str] = {"safetensors": ".safetensors", "ckpt": ".ckpt", "diffusers": ""}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class About:
    """The metadata of a model's file that does not follow from its tensors.

    Attributes:
        title: Title of the model.
        resolution: `WIDTHxHEIGHT` that it was trained at; None means that of its configuration.
        encoder_layer: CLIP layer, counted from the end, that it was trained with.
        others: Further `modelspec` texts, such as author and license.
        more: Texts under keys other than `modelspec`, such as the training summary.
    """

    title: str
    resolution: str | None = None
    encoder_layer: int = 1
    others: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MergedWithBase:
    """The base that a trained model is merged with at export, as `impasto merge` mixes two models.

    Attributes:
        base: Network -> its tensors before training, stored where training does not change them
            (the memory of a loaded model is what training changes).
        ratio: Fraction of the trained model, above 0 and below 1.
    """

    base: Mapping[str, Tensors]
    ratio: float

    def mixed(self, component: str, trained: Tensors) -> dict[str, LazyTensor]:
        """Return a network between the two, in float32; values equal in both are unchanged."""
        base = self.base[component]
        return {name: self._between(base[name], tensor) for name, tensor in trained.items()}

    def _between(self, base: LazyTensor, trained: LazyTensor) -> LazyTensor:
        if not trained.dtype.is_floating_point:
            return trained

        def read() -> Tensor:
            ends = base.read_as(torch.float32), trained.read_as(torch.float32)
            return torch.lerp(*ends, self.ratio)

        return LazyTensor(trained.shape, torch.float32, read, owns_memory=True)


def write_model(
    contents: ModelContents,
    target: Path,
    form: Form,
    about: About,
    progress: Progress | None = None,
) -> None:
    """Write a model, whole or not at all.

    Tensors are read, checked and written in turn: beside the model, memory is needed for the tensor
    that is read and for up to 16 MiB, or one larger tensor, that wait to be written.

    Raises:
        ModelError: A value is NaN or infinite, or becomes so in the requested dtype.
        StorageError: The disk is full or `target` cannot be written; an earlier `target` is
            unchanged.
    """
    progress = progress or SilentProgress()
    save = _save_diffusers if form == "diffusers" else _save_ldm
    size = sum(map(total_bytes, (*contents.components.values(), contents.ldm_only)))
    with progress.stage(f"Writing {target.name}", size >> 20, "MiB") as advance:
        save(contents, target, form, about, in_mib(advance))


def trained_contents(
    model: BaseModel,
    trained: Mapping[str, Mapping[str, Tensor]],
    dtypes: Mapping[str, torch.dtype],
    *,
    trained_dtype: torch.dtype | None,
    merged: MergedWithBase | None = None,
) -> ModelContents:
    """Return a base model with its trained components replaced, the others as stored, bit for bit.

    Args:
        model: The base model.
        trained: Component -> its tensors by name.
        dtypes: Component -> dtype, for components with a requested dtype.
        trained_dtype: Dtype of trained components that `dtypes` does not name; None means as
            stored, but at least 16 bits.
        merged: Merges the trained components with their base; None leaves them as trained.
    """
    components: dict[str, Tensors] = {}
    for component, tensors in model.contents.components.items():
        stored = model.stored[component]
        components[component] = {
            name: tensor.cast(stored[name]) for name, tensor in tensors.items()
        }
        if component in trained:
            own = {
                n.removeprefix("text_model."): LazyTensor.of(t)
                for n, t in trained[component].items()
            }
            if merged is not None:
                own = merged.mixed(component, own)
            dtype = dtypes.get(component, trained_dtype)
            components[component] = {
                name: own[name].cast(dtype or at_least_16_bits(stored[name])) for name in tensors
            }
    return replace(model.contents, components=components).cast(dtypes)


def at_least_16_bits(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for storing new values: 8-bit types would lose what was learned or mixed."""
    return torch.float16 if dtype.is_floating_point and dtype.itemsize < 2 else dtype


def _save_ldm(
    contents: ModelContents, target: Path, form: Form, about: About, advance: Advance
) -> None:
    write = {"safetensors": write_safetensors, "ckpt": write_ckpt}[form]
    texts = _metadata(contents, about, "ldm")
    write(target, contents.ldm_tensors(), texts, advance, unchecked=contents.ldm_only.keys())


def _save_diffusers(
    contents: ModelContents, target: Path, _: Form, about: About, advance: Advance
) -> None:
    with files.replace_folder(target) as partial:
        for component in contents.identity.family.components:
            folder = partial / component.folder
            folder.mkdir()
            config = component_config(component, contents.configs[component.name])
            files.write_json(folder / "config.json", config)
            tensors = {
                _as_on_the_hub(component, n): t
                for n, t in contents.components[component.name].items()
            }
            write_safetensors(partial / component.file, tensors, {"format": "pt"}, advance)
        if contents.ldm_only:
            kept = contents.ldm_only
            write_safetensors(partial / LDM_ONLY_FILE, kept, {}, advance, unchecked=kept.keys())
        _write_small_files(contents, partial, about)


def _write_small_files(contents: ModelContents, folder: Path, about: About) -> None:
    family = contents.identity.family
    for component in family.text_encoders:
        tokenizer = folder / component.text.tokenizer
        own = contents.tokenizer_files.get(component.text.tokenizer)
        if own:
            tokenizer.mkdir()
            for name, content in own.items():
                (tokenizer / name).write_bytes(content)
        else:
            write_tokenizer(tokenizer, pad_token=component.text.pad_token)
    files.write_json(folder / SCHEDULER_FILE, dict(contents.scheduler_config))
    files.write_json(
        folder / "model_index.json",
        model_index(family, zeroes_empty_text=contents.zeroes_empty_text),
    )
    metadata = _metadata(contents, about, "diffusers")
    files.write_json(folder / METADATA_FILE, {k: v for k, v in metadata.items() if k != HASH_KEY})


def _metadata(contents: ModelContents, about: About, layout: str) -> dict[str, str]:
    family = contents.identity.family
    texts_of = {component.name for component in family.text_encoders}
    spec = ModelSpec(
        architecture=family.architecture,
        prediction_type=contents.identity.prediction.name,
        title=about.title,
        resolution=about.resolution or "{}x{}".format(*native_size(contents)),
        encoder_layer=about.encoder_layer,
        dtypes={
            component: dtype
            for component, dtype in contents.dtypes().items()
            if component not in texts_of
        },
        others=about.others,
    )
    texts = {**spec.metadata(layout), **about.more}
    texts.pop(EMPTY_TEXT_KEY, None)
    if contents.zeroes_empty_text:
        texts[EMPTY_TEXT_KEY] = ZEROS
    if contents.scheduler_config.get("rescale_betas_zero_snr"):
        texts[ZERO_TERMINAL_SNR_KEY] = "true"
    if layout == "ldm":
        texts |= {"format": "pt", **metadata_for(contents.configs, contents.components, family)}
    return texts


def _as_on_the_hub(component: Component, name: str) -> str:
    """Return a name with the prefix of the Hub's files, which both transformers 4 and 5 read.

    The projection of the pooled text has no such prefix.
    """
    is_inside = component.kind is ComponentKind.TEXT and not name.startswith("text_projection.")
    return f"text_model.{name}" if is_inside else name
