"""Settings of what is trained: the model itself, or a hypernetwork beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from impasto.config.base import Section
from impasto.config.hypernetwork import HypernetworkMethod
from impasto.config.kinds import of_its_kind
from impasto.config.optimizer import Rate

Positive = Annotated[int, Field(ge=1)]
BlockName = Literal[
    "conv_in", "time_embedding", "down_blocks.0", "down_blocks.1", "down_blocks.2", "down_blocks.3",
    "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2", "up_blocks.3", "conv_norm_out",
    "conv_out",
]  # fmt: skip


class FullMethod(Section):
    """The whole U-Net is trained, and the text encoder if asked."""

    kind: Literal["full"] = "full"
    """Trains the U-Net itself."""

    train_text_encoder: bool = False
    """Train the text encoder too: learns new words better, forgets old ones faster."""

    text_encoder_lr: Rate | None = None
    """Learning rate of the text encoder; off means the optimizer's."""

    text_encoder_layers: Positive | None = None
    """Train only so many of its last layers, those that `clip_skip` uses; off means all, and its
    embeddings."""

    text_encoder_from_step: Annotated[int, Field(ge=0)] = 0
    """The optimizer step from which it learns."""

    text_encoder_until_step: Positive | None = None
    """The optimizer step from which it learns no more; off means to the end."""

    block_lrs: dict[BlockName, Rate] = Field(default_factory=dict)
    """Learning rates of blocks of the U-Net by their names, such as `{"down_blocks.0" = 1e-6,
    "mid_block" = 5e-6}`: `conv_in`, `time_embedding`, `down_blocks.0` to `.3`, `mid_block`,
    `up_blocks.0` to `.3`, `conv_norm_out`, `conv_out`. The others have the optimizer's."""

    @model_validator(mode="after")
    def _text_encoder_is_trained(self) -> FullMethod:
        names = ("lr", "layers", "from_step", "until_step")
        given = [n for n in (f"text_encoder_{name}" for name in names) if getattr(self, n)]
        if given and not self.train_text_encoder:
            raise ValueError(f"{given[0]} has no effect without train_text_encoder")
        end = self.text_encoder_until_step
        if end is not None and end <= self.text_encoder_from_step:
            raise ValueError(
                f"text_encoder_until_step {end} is not after text_encoder_from_step "
                f"{self.text_encoder_from_step}"
            )
        return self


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
