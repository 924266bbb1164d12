"""The types that describe a model family, and of which the table in `families.py` is made.

A family is a row of that table: its networks (`Component`), and how they are used. `Marks` are the
properties by which families are distinguished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from impasto.checkpoints.keymap import ComponentKind, FileLayout, NamedComponent, Naming
from impasto.checkpoints.weight_files import FolderLayout, Stems
from impasto.data.caching.npz import SD_ENDINGS
from impasto.data.records import CELL, Geometry
from impasto.diffusion.prediction import Prediction

T = TypeVar("T")
Library = Literal["diffusers", "transformers"]


@dataclass(frozen=True)
class Reading:
    """Settings for the use of a text encoder's output.

    Attributes:
        width: Width of the encoder's hidden states at full size.
        activation: Activation function: OpenAI's CLIP has quick_gelu, OpenCLIP gelu.
        tokenizer: Folder of the encoder's tokenizer in a Diffusers folder.
        pad_token: Token with which the tokenizer pads a text.
        pad_id: Token id of `pad_token`.
        layer: Layer whose hidden states are used, counted from the end; 1 is the last.
        final_norm: Whether the final layer norm is applied to those states.
        pooled: Whether the pooled text (the projected state of the EOS token) is used too.
        eats_pad: Whether the tokenizer that sd-scripts trains with removes `pad_token` from inside
            words.
    """

    width: int
    activation: str
    tokenizer: str
    pad_token: str
    pad_id: int
    layer: int = 1
    final_norm: bool = True
    pooled: bool = False
    eats_pad: bool = False


@dataclass(frozen=True)
class Component:
    """A network of a family: U-Net, VAE or text encoder.

    Attributes:
        name: Name of the network in states, exports, logs and configurations.
        kind: Role of the network.
        naming: How single files name its tensors: a prefix and a key map.
        folder: Its folder in a Diffusers folder.
        stems: File names of its weights there, without suffixes.
        library: Python package that has its class.
        class_name: Name of its class.
        channels: Widths of the levels of a U-Net or VAE at full size. Networks of other widths need
            a configuration file.
        reading: How the output of a text encoder is used; None for other networks.
    """

    name: str
    kind: ComponentKind
    naming: Naming
    folder: str
    stems: Stems
    library: Library
    class_name: str
    channels: tuple[int, ...] = ()
    reading: Reading | None = None

    @property
    def file(self) -> str:
        """The path of its weights within a Diffusers folder."""
        return f"{self.folder}/{self.stems.name}.safetensors"

    @property
    def text(self) -> Reading:
        """The settings for the use of its output; the component must be a text encoder."""
        assert self.reading is not None, f"{self.name} is not a text encoder"  # noqa: S101
        return self.reading


@dataclass(frozen=True)
class SizeConditioning:
    """Image sizes that a U-Net takes besides the text, each as a sinusoidal embedding.

    Podell et al. 2023 (arXiv:2307.01952), 2.2: the size of the original, the pixels cropped off at
    the top and left, and the training resolution.

    Attributes:
        width: Width of each embedding.
        count: Number of sizes.
        as_drawn: Whether every image is described as a generated one: original size equal to the
            target, not cropped.
    """

    width: int
    count: int = 6
    as_drawn: bool = False

    def numbers(self, geometry: Geometry) -> tuple[int, ...]:
        """Return the sizes of an image in pixels, in the order of diffusers' `add_time_ids`."""
        if self.as_drawn:
            geometry = Geometry.whole(geometry.target)
        return geometry.numbers


@dataclass(frozen=True)
class Pipeline:
    """The names that diffusers uses for the whole model.

    Attributes:
        class_name: Name of the pipeline class.
        others: Further entries of `model_index.json`, for optional components that the model does
            not have.
        empty_text_entry: Entry of `model_index.json` that states whether an empty negative prompt
            is zeros instead of the encoded empty text; None if the class has no such entry.
    """

    class_name: str
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)
    empty_text_entry: str | None = None

    def zeroes_empty_text(self, index: Mapping[str, Any]) -> bool:
        """Return whether a `model_index.json` states that an empty negative prompt is zeros."""
        return self.empty_text_entry is not None and index.get(self.empty_text_entry) is True


@dataclass(frozen=True)
class Family:
    """One row of the table of model families.

    Attributes:
        key: Name of the family in settings.
        name: Name of the family in reports.
        generation: Common name of the families that have the same networks.
        components: Networks of the family, in the order in which they are written.
        prediction: What the U-Net predicts.
        linear_projection: Whether the input projection of attention is a linear layer instead of a
            1x1 convolution.
        head_count: Number of attention heads of the U-Net if it is fixed, else None.
        upcast_attention: Whether attention overflows float16 (SD 2.1's does, and its files cannot
            be distinguished from 2.0's).
        takes_any_layer: Whether models of the family were trained on different layers of the text
            encoder, so that a layer stated in a file is respected.
        architecture: Name of the family in `modelspec.architecture`.
        resolution: Pixels per side that the original model was trained at.
        pipeline: Names that diffusers uses for the model.
        scaling_factor: Factor by which the VAE's latents are multiplied to get scaled latents.
        sizes: Size conditioning of the U-Net; None for none.
        cell: Pixels per side of a latent.
        mark: Name of the empty tensor that single files of this family have and others of its
            generation have not; None if the files are distinguished by other things, or by the
            absence of a mark.
        depths: Transformer blocks of each attention module, by level on the way down, at full size;
            None if no other model is distinguished by them.
        npz_endings: Suffixes of the names of sd-scripts' files of latents for the family; the first
            is written.
        text_npz_ending: Suffix of the names of sd-scripts' files of text encoder outputs; None for
            none.
        base_version: Name of the family in `ss_base_model_version` of a LoRA, as sd-scripts writes
            it.
        lora_by_file_names: Whether LoRAs name layers of the U-Net as single files do instead of as
            diffusers does.
    """

    key: str
    name: str
    generation: str
    components: tuple[Component, ...]
    prediction: Prediction
    linear_projection: bool
    head_count: int | None
    upcast_attention: bool
    takes_any_layer: bool
    architecture: str
    resolution: int
    pipeline: Pipeline
    scaling_factor: float = 0.18215
    sizes: SizeConditioning | None = None
    cell: int = CELL
    mark: str | None = None
    depths: tuple[int, ...] | None = None
    npz_endings: tuple[str, ...] = SD_ENDINGS
    text_npz_ending: str | None = None
    base_version: str = ""
    lora_by_file_names: bool = False

    def of_kind(self, kind: ComponentKind) -> tuple[Component, ...]:
        """Return the components of a kind."""
        return tuple(component for component in self.components if component.kind is kind)

    @property
    def unet(self) -> Component:
        """The component that predicts noise or velocity."""
        return self.of_kind(ComponentKind.UNET)[0]

    @property
    def vae(self) -> Component:
        """The component that encodes pixels to latents and decodes latents to pixels."""
        return self.of_kind(ComponentKind.VAE)[0]

    @property
    def text_encoders(self) -> tuple[Component, ...]:
        """The text encoders, in the order in which their states are concatenated."""
        return self.of_kind(ComponentKind.TEXT)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the components."""
        return tuple(component.name for component in self.components)

    @property
    def context_width(self) -> int:
        """The width of the states that the U-Net attends to, at full size."""
        return sum(component.text.width for component in self.text_encoders)

    @property
    def takes_pooled(self) -> bool:
        """Whether the U-Net takes a pooled text in addition to the text states."""
        return any(component.text.pooled for component in self.text_encoders)

    @property
    def takes_clip_skip(self) -> bool:
        """Whether a run may choose the text encoder layer; false for families with two encoders."""
        return len(self.text_encoders) == 1

    def heads(self, channels: list[int]) -> int | list[int]:
        """Return `attention_head_dim`, here a head count: `head_count`, or one per 64 channels."""
        return self.head_count or [width // 64 for width in channels]

    def by_name(self, values: Mapping[ComponentKind, T]) -> dict[str, T]:
        """Return values given per kind as values per network name, leaving out kinds not given."""
        return {
            component.name: values[component.kind]
            for component in self.components
            if component.kind in values
        }

    @property
    def layout(self) -> FileLayout:
        """The naming of the components in single files."""
        components = (
            NamedComponent(component.name, component.kind, component.naming)
            for component in self.components
        )
        return FileLayout(tuple(components))

    @property
    def folders(self) -> FolderLayout:
        """The folders of the components in a Diffusers folder."""
        weights = tuple((component.folder, component.stems) for component in self.components)
        return FolderLayout(
            weights,
            tokenizers=tuple(component.text.tokenizer for component in self.text_encoders),
            vae=self.vae.folder,
            averaged=tuple(c.folder for c in self.components if c.naming.is_averaged),
        )

    @property
    def marks(self) -> Marks:
        """The properties that distinguish this family from others."""
        return Marks(
            encoders=tuple(
                (component.name, component.naming.dialect) for component in self.text_encoders
            ),
            entry=ENTRIES[self.linear_projection],
            besides=("add_embedding",) if self.takes_pooled else (),
            context_width=self.context_width,
            depths=self.depths,
        )


ENTRIES = {False: "convolution", True: "linear"}
"""Kind of the input projection of attention, by whether it is linear."""

CONDITIONED_BY = {
    "add_embedding": "a pooled text and sizes",
    "class_embedding": "a class or another image",
    "encoder_hid_proj": "text states with a separate projection",
    "position_net": "positions of objects",
}
"""Modules of diffusers' U-Nets for inputs other than noise, timestep and text -> the input."""


@dataclass(frozen=True)
class Marks:
    """Properties found in a model's files, or expected of a family's files, in the same form.

    Attributes:
        encoders: Name of each text encoder, and its dialect (OpenAI's or OpenCLIP's).
        entry: Kind of the input projection of attention.
        besides: Modules of `CONDITIONED_BY` that the U-Net has.
        context_width: Width of the states that the U-Net attends to; compared only for networks of
            full size.
        depths: Transformer blocks of each attention module by level; compared only if the family
            states them, for networks of full size.
    """

    encoders: tuple[tuple[str, str], ...]
    entry: str
    besides: tuple[str, ...]
    context_width: int
    depths: tuple[int, ...] | None = None

    def descriptions(self) -> dict[str, str]:
        """Return a description in words of each property, by its name."""
        dialects = " and ".join(dialect for _, dialect in self.encoders) or "no"
        besides = " and ".join(CONDITIONED_BY[module] for module in self.besides)
        return {
            "encoders": f"{dialects} text encoder{'s' if len(self.encoders) > 1 else ''}",
            "context_width": f"context width {self.context_width}",
            "entry": f"{self.entry} before attention",
            "besides": f"conditioned on {besides} too" if besides else "conditioned on text alone",
            "depths": f"{' + '.join(map(str, self.depths or ()))} transformer blocks by level",
        }

    def __str__(self) -> str:
        descriptions = self.descriptions()
        told = {"besides": bool(self.besides), "depths": len(set(self.depths or ()) - {0}) > 1}
        return ", ".join(descriptions[name] for name in descriptions if told.get(name, True))

    def against(self, family: Marks, *, full_size: bool) -> list[str]:
        """Return a family's properties that differ from these, as descriptions in words."""
        compared = ["encoders", "entry", "besides"]
        if full_size:
            compared += ["context_width", *(["depths"] if family.depths is not None else [])]
        expected = family.descriptions()
        return [expected[n] for n in compared if getattr(self, n) != getattr(family, n)]
