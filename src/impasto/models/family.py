"""What a model family is: the words that the table of `families.py` is written in.

A family is a row: its networks (`Component`), and what they are used with. `Marks` are what tells
one from another.
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
    """How the output of a text encoder is read.

    Attributes:
        width: Numbers of each state at full size.
        activation: OpenAI's CLIP has quick_gelu, OpenCLIP gelu.
        tokenizer: The folder of its tokenizer in diffusers' form.
        pad_token: What that fills a text up with.
        pad_id: Its id.
        layer: Which layer's states are taken, counted from the end; 1 is the last.
        final_norm: Whether the final layer norm is applied to them.
        pooled: Whether its projection of the text's end is taken too.
        eats_pad: Whether the tokenizer that sd-scripts trains with takes `pad_token` out of words.
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
        name: What it is called in states, exports, logs and configurations.
        kind: What it does.
        naming: How single files name it: the prefix, and the map of names.
        folder: Its folder in diffusers' form.
        stems: What its weight files are called there.
        library: Where its class is.
        class_name: The class.
        channels: Widths of the levels of a U-Net or VAE at full size. Networks of other widths
            have to come with their configuration.
        reading: How it is used; of a text encoder.
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
        """The file name of its weights in diffusers' form."""
        return f"{self.folder}/{self.stems.name}.safetensors"

    @property
    def text(self) -> Reading:
        """How it is used, of what is a text encoder."""
        assert self.reading is not None, f"{self.name} is no text encoder"  # noqa: S101
        return self.reading


@dataclass(frozen=True)
class SizeConditioning:
    """Sizes of the image that a U-Net is told beside the text, each as a sinusoidal embedding.

    Podell et al. 2023 (arXiv:2307.01952), 2.2: the size of the original, what the crop leaves out
    above and to the left, and the size that is trained on.

    Attributes:
        width: Of each embedding.
        as_drawn: Whether every image counts as one that is drawn: of its size, and not cropped.
    """

    width: int
    count: int = 6
    as_drawn: bool = False

    def numbers(self, geometry: Geometry) -> tuple[int, ...]:
        """The numbers, in the order of diffusers' `add_time_ids`."""
        if self.as_drawn:
            geometry = Geometry.whole(geometry.target)
        return geometry.numbers


@dataclass(frozen=True)
class Pipeline:
    """The names that diffusers has for the whole model.

    Attributes:
        class_name: Its class.
        others: What `model_index.json` has besides, of what is not there.
        empty_text_entry: The entry of `model_index.json` that says whether an empty negative
            prompt is zeros instead of the encoded empty text; None where there is no such entry.
    """

    class_name: str
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)
    empty_text_entry: str | None = None

    def zeroes_empty_text(self, index: Mapping[str, Any]) -> bool:
        """Whether a `model_index.json` says that an empty negative prompt is zeros."""
        return self.empty_text_entry is not None and index.get(self.empty_text_entry) is True


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        key: How settings name it.
        name: What it is called in reports.
        generation: What it is called together with those that have the same networks.
        components: Its networks, in the order in which they are written.
        prediction: What the U-Net predicts.
        linear_projection: Whether attention is entered by a linear layer, not a 1x1 convolution.
        head_count: Attention heads of the U-Net, where their number is fixed, else None.
        upcast_attention: Whether attention overflows float16 (SD 2.1 does, and its files cannot be
            told from 2.0's).
        takes_any_layer: Whether models of it were trained on other layers of the text encoder, so
            that it counts what a file says of that.
        architecture: Its name in `modelspec.architecture`.
        resolution: Pixels per side that the original was trained at.
        pipeline: What diffusers calls it.
        scaling_factor: Scaled latents = this times the VAE's.
        sizes: The size conditioning of the U-Net; None for none.
        cell: Pixels per side of a latent.
        mark: The empty tensor that single files of this row have and others of its generation
            have not; None where files are told apart by other things, or by its absence.
        depths: Transformer blocks of each attention, by level on the way down, at full size; None
            where no other model is told apart by them.
        npz_endings: What names of sd-scripts' files of its latents end on; the first is written.
        text_npz_ending: What names of sd-scripts' files of its texts end on; None for none.
        base_version: What sd-scripts calls it in `ss_base_model_version` of a LoRA.
        lora_by_file_names: Whether LoRAs name layers of the U-Net as single files do, not as
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
        """The components of a kind."""
        return tuple(component for component in self.components if component.kind is kind)

    @property
    def unet(self) -> Component:
        """The component that predicts noise or velocity."""
        return self.of_kind(ComponentKind.UNET)[0]

    @property
    def vae(self) -> Component:
        """The component between pixels and latents."""
        return self.of_kind(ComponentKind.VAE)[0]

    @property
    def text_encoders(self) -> tuple[Component, ...]:
        """The networks that read, in the order in which their states are put together."""
        return self.of_kind(ComponentKind.TEXT)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the components."""
        return tuple(component.name for component in self.components)

    @property
    def context_width(self) -> int:
        """Width of the states that the U-Net attends to, at full size."""
        return sum(component.text.width for component in self.text_encoders)

    @property
    def takes_pooled(self) -> bool:
        """Whether the U-Net takes a pooled text besides."""
        return any(component.text.pooled for component in self.text_encoders)

    @property
    def takes_clip_skip(self) -> bool:
        """Whether a run may choose the layer that its text is read at; one of two encoders not."""
        return len(self.text_encoders) == 1

    def heads(self, channels: list[int]) -> int | list[int]:
        """For `attention_head_dim`, which in these models counts heads: 8, or one per 64."""
        return self.head_count or [width // 64 for width in channels]

    def by_name(self, values: Mapping[ComponentKind, T]) -> dict[str, T]:
        """Values given for kinds of networks, by the name of each network."""
        return {
            component.name: values[component.kind]
            for component in self.components
            if component.kind in values
        }

    @property
    def layout(self) -> FileLayout:
        """How single files name the components."""
        components = (
            NamedComponent(component.name, component.kind, component.naming)
            for component in self.components
        )
        return FileLayout(tuple(components))

    @property
    def folders(self) -> FolderLayout:
        """The folder of each component in diffusers' form."""
        weights = tuple((component.folder, component.stems) for component in self.components)
        return FolderLayout(
            weights,
            tokenizers=tuple(component.text.tokenizer for component in self.text_encoders),
            vae=self.vae.folder,
            averaged=tuple(c.folder for c in self.components if c.naming.is_averaged),
        )

    @property
    def marks(self) -> Marks:
        """The properties that tell this family from others."""
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
"""What is before attention, by whether it is linear."""

CONDITIONED_BY = {
    "add_embedding": "a pooled text and sizes",
    "class_embedding": "a class or another image",
    "encoder_hid_proj": "states that it projects itself",
    "position_net": "places of things",
}
"""Modules of diffusers' U-Nets that take something besides noise, time and text -> what."""


@dataclass(frozen=True)
class Marks:
    """What a model's files show, or what a family's files would: the same words for both.

    Attributes:
        encoders: Name of each text encoder, and whose it is.
        entry: What is before attention.
        besides: Which of `CONDITIONED_BY` the U-Net has.
        context_width: Width of what it attends to; counts for networks of full size.
        depths: Transformer blocks of each attention by level; count where a family has them, for
            networks of full size.
    """

    encoders: tuple[tuple[str, str], ...]
    entry: str
    besides: tuple[str, ...]
    context_width: int
    depths: tuple[int, ...] | None = None

    def descriptions(self) -> dict[str, str]:
        """What is looked at -> what is there, in words."""
        dialects = " and ".join(dialect for _, dialect in self.encoders) or "no"
        besides = " and ".join(CONDITIONED_BY[module] for module in self.besides)
        return {
            "encoders": f"{dialects} text encoder{'s' if len(self.encoders) > 1 else ''}",
            "context_width": f"context width {self.context_width}",
            "entry": f"{self.entry} before attention",
            "besides": f"conditioned by {besides} too" if besides else "conditioned by text alone",
            "depths": f"{' + '.join(map(str, self.depths or ()))} transformer blocks by level",
        }

    def __str__(self) -> str:
        descriptions = self.descriptions()
        told = {"besides": bool(self.besides), "depths": len(set(self.depths or ()) - {0}) > 1}
        return ", ".join(descriptions[name] for name in descriptions if told.get(name, True))

    def against(self, family: Marks, *, full_size: bool) -> list[str]:
        """What is otherwise than in a family, as that family has it, in words."""
        compared = ["encoders", "entry", "besides"]
        if full_size:
            compared += ["context_width", *(["depths"] if family.depths is not None else [])]
        expected = family.descriptions()
        return [expected[n] for n in compared if getattr(self, n) != getattr(family, n)]
