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
"""Settings that have an effect only if text encoders are trained."""

_BLOCK = re.compile(
    r"(conv_in|time_embedding|add_embedding|conv_norm_out|conv_out"
    r"|(mid_block|(down|up)_blocks\.[0-3])(\.(resnets|attentions|downsamplers|upsamplers)\.\d+)?)"
)


def _require_block(name: str) -> str:
    if _BLOCK.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} is not a U-Net block; expected conv_in, time_embedding, add_embedding, "
            f"down_blocks.0 to .3, mid_block, up_blocks.0 to .3, conv_norm_out, conv_out, or a "
            f"layer in a block, as in down_blocks.1.attentions.0"
        )
    return name


BlockName = Annotated[str, AfterValidator(_require_block)]


class FullMethod(Section):
    """Trains the whole U-Net, and optionally the text encoder."""

    kind: Literal["full"] = "full"
    """Trains the U-Net itself."""

    train_text_encoder: bool = False
    """Train the text encoder too: the model learns new words better, and forgets known ones
    faster."""

    text_encoder_lr: Rate | None = None
    """Learning rate of the text encoder; off means `optimizer.lr`."""

    text_encoder_lrs: dict[EncoderName, RateOrFrozen] = Field(default_factory=dict)
    """Learning rates of individual text encoders, for SDXL, which has two: `{text_encoder = 1e-6,
    text_encoder_2 = 0}`. 0 freezes an encoder. An encoder without an entry uses
    `text_encoder_lr`."""

    text_encoder_layers: Positive | None = None
    """Number of the text encoder's last layers to train, counted back from the layer that
    `clip_skip` selects; off means all layers and the embeddings."""

    text_encoder_from_step: Annotated[int, Field(ge=0)] = 0
    """First optimizer step in which the text encoder is trained."""

    text_encoder_until_step: Positive | None = None
    """First optimizer step in which the text encoder is no longer trained; off means that it is
    trained to the end of the run."""

    block_lrs: dict[BlockName, RateOrFrozen] = Field(default_factory=dict)
    """Learning rates of U-Net blocks by name, such as `{"down_blocks.0" = 1e-6, "mid_block" =
    5e-6}`: `conv_in`, `time_embedding`, `add_embedding` (SDXL), `down_blocks.0` to `.3`,
    `mid_block`, `up_blocks.0` to `.3`, `conv_norm_out`, `conv_out`. A layer in a block can be named
    too, such as `down_blocks.1.attentions.0`; its rate takes precedence over the block's. 0 freezes
    a block, whose weights are then kept in `training.weight_dtype`. All other blocks use
    `optimizer.lr`."""

    train_only: tuple[str, ...] = ()
    """Train only the U-Net tensors whose names match one of these patterns, in which `*` matches
    anything: `["*.attn2.*"]` selects the cross-attention layers, which read the caption,
    `["*.attn1.*", "*.attn2.*"]` all attention. `--plan` reports what each pattern matches; a
    pattern that matches nothing is refused. Empty means all. Blocks that `block_lrs` freezes stay
    frozen; text encoders follow their own settings."""

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
        """Return the learning rate of the text encoder `name`; `usual` is the optimizer's."""
        rates: dict[str, float] = {str(key): rate for key, rate in self.text_encoder_lrs.items()}
        return rates.get(name, self.text_encoder_lr or usual)

    @property
    def frozen_text_encoders(self) -> frozenset[str]:
        """The names of the text encoders whose rate is 0, even if others are trained."""
        return frozenset(name for name, rate in self.text_encoder_lrs.items() if rate == 0)


METHODS: dict[str, type[Section]] = {"full": FullMethod, "hypernetwork": HypernetworkMethod}


def _of_the_other(name: str, kind: str) -> str:
    if kind == "full":
        return f'{name} has no effect without method.kind = "hypernetwork". Add that, or remove it'
    return f"{name} belongs to the kind full: a hypernetwork leaves the model unchanged"


MethodConfig = Annotated[
    FullMethod | HypernetworkMethod,
    Field(discriminator="kind"),
    of_its_kind(METHODS, "full", _of_the_other),
]
