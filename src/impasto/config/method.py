"""Settings of what is trained: the model itself, or a hypernetwork beside it."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from impasto.config.base import Section
from impasto.config.hypernetwork import HypernetworkMethod
from impasto.config.kinds import of_its_kind
from impasto.config.optimizer import Rate

Positive = Annotated[int, Field(ge=1)]
RateOrFrozen = Annotated[float, Field(ge=0, le=10)]
EncoderName = Literal["text_encoder", "text_encoder_2"]

TEXT_ENCODER_SETTINGS = (
    "text_encoder_lr",
    "text_encoder_lrs",
    "text_encoder_layers",
    "text_encoder_from_step",
    "text_encoder_until_step",
)
"""What has an effect only where text encoders are trained."""

_BLOCK = re.compile(
    r"(conv_in|time_embedding|add_embedding|conv_norm_out|conv_out"
    r"|(mid_block|(down|up)_blocks\.[0-3])(\.(resnets|attentions|downsamplers|upsamplers)\.\d+)?)"
)


def _require_block(name: str) -> str:
    if _BLOCK.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} is no block of a U-Net; expected conv_in, time_embedding, add_embedding, "
            f"down_blocks.0 to .3, mid_block, up_blocks.0 to .3, conv_norm_out, conv_out, or a "
            f"layer in a block, as in down_blocks.1.attentions.0"
        )
    return name


BlockName = Annotated[str, AfterValidator(_require_block)]


class FullMethod(Section):
    """The whole U-Net is trained, and the text encoder if asked."""

    kind: Literal["full"] = "full"
    """Trains the U-Net itself."""

    train_text_encoder: bool = False
    """Train the text encoder too: learns new words better, forgets old ones faster."""

    text_encoder_lr: Rate | None = None
    """Learning rate of the text encoder; off means the optimizer's."""

    text_encoder_lrs: dict[EncoderName, RateOrFrozen] = Field(default_factory=dict)
    """Learning rates of single text encoders, for SDXL, which has two: `{text_encoder = 1e-6,
    text_encoder_2 = 0}`. 0 leaves one as it is. One that is not named has `text_encoder_lr`."""

    text_encoder_layers: Positive | None = None
    """Train only this many of its last layers, counted from the one that `clip_skip` takes; off
    means all, and its embeddings."""

    text_encoder_from_step: Annotated[int, Field(ge=0)] = 0
    """The optimizer step from which it learns."""

    text_encoder_until_step: Positive | None = None
    """The optimizer step from which it learns no more; off means to the end."""

    block_lrs: dict[BlockName, RateOrFrozen] = Field(default_factory=dict)
    """Learning rates of blocks of the U-Net by their names, such as `{"down_blocks.0" = 1e-6,
    "mid_block" = 5e-6}`: `conv_in`, `time_embedding`, `add_embedding` (SDXL), `down_blocks.0` to
    `.3`, `mid_block`, `up_blocks.0` to `.3`, `conv_norm_out`, `conv_out`. A layer in a block has a
    name too, as `down_blocks.1.attentions.0`, and its rate goes before the block's. 0 leaves a
    block as it is, in the width of `training.weight_dtype`. The others have the optimizer's."""

    train_only: tuple[str, ...] = ()
    """Train only those tensors of the U-Net whose names fit one of these patterns, where `*` stands
    for anything: `["*.attn2.*"]` are the layers that read the words, `["*.attn1.*", "*.attn2.*"]`
    all attention. `--plan` tells what each pattern finds; one that finds nothing is refused. Empty
    means all. Blocks that `block_lrs` leaves as they are stay so; text encoders go by their own
    settings."""

    @model_validator(mode="after")
    def _text_encoder_is_trained(self) -> FullMethod:
        given = [name for name in TEXT_ENCODER_SETTINGS if getattr(self, name)]
        if given and not self.train_text_encoder:
            raise ValueError(f"{given[0]} has no effect without train_text_encoder")
        own = self.text_encoder_lrs
        if self.text_encoder_lr is not None and own.keys() == set(get_args(EncoderName)):
            raise ValueError("text_encoder_lr has no effect: text_encoder_lrs names both encoders")
        end = self.text_encoder_until_step
        if end is not None and end <= self.text_encoder_from_step:
            raise ValueError(
                f"text_encoder_until_step {end} is not after text_encoder_from_step "
                f"{self.text_encoder_from_step}"
            )
        return self

    def text_encoder_rate(self, name: str, usual: float) -> float:
        """The learning rate of a text encoder; `usual` is the optimizer's."""
        rates: dict[str, float] = {str(key): rate for key, rate in self.text_encoder_lrs.items()}
        return rates.get(name, self.text_encoder_lr or usual)

    @property
    def frozen_text_encoders(self) -> frozenset[str]:
        """The names of text encoders that are left as they are, though others may learn."""
        return frozenset(name for name, rate in self.text_encoder_lrs.items() if rate == 0)


METHODS: dict[str, type[Section]] = {"full": FullMethod, "hypernetwork": HypernetworkMethod}


def _of_the_other(name: str, kind: str) -> str:
    if kind == "full":
        return (
            f'{name} has no effect without method.kind = "hypernetwork". Add that, or take it out'
        )
    return f"{name} belongs to the kind full: a hypernetwork leaves the model as it is"


MethodConfig = Annotated[
    FullMethod | HypernetworkMethod,
    Field(discriminator="kind"),
    of_its_kind(METHODS, "full", _of_the_other),
]
