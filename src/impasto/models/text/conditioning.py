"""Text and sizes as keyword arguments of diffusers' `UNet2DConditionModel`.

The only place that spells their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from impasto.diffusion.conditioning import Arguments, Conditioning
from impasto.diffusion.transfer import to_device


def unet_conditioning(
    states: Float[Tensor, "b n d"],
    pooled: Float[Tensor, "b p"] | None = None,
    sizes: Float[Tensor, "b s"] | None = None,
) -> Conditioning:
    """Build what a U-Net is called with beside latents and timesteps.

    Args:
        states: What its cross-attention reads.
        pooled: The pooled text, for U-Nets with `addition_embed_type = "text_time"`.
        sizes: Numbers about the images' sizes, for the same.
    """
    arguments: Arguments = {"encoder_hidden_states": states}
    if pooled is None or sizes is None:
        return Conditioning(arguments)
    added = {"text_embeds": pooled, "time_ids": sizes}
    return Conditioning({**arguments, "added_cond_kwargs": added})


def without_text(conditioning: Conditioning, empty: Sequence[bool]) -> Conditioning:
    """Put zeros in the place of the states and the pooled text of some samples.

    The numbers about images' sizes stay as they are. Stability-AI/generative-models,
    `sgm/modules/encoders/modules.py`, GeneralConditioner; diffusers, StableDiffusionXLPipeline with
    `force_zeros_for_empty_prompt`. No gradient flows through what was replaced.

    Args:
        conditioning: As `unet_conditioning` builds it.
        empty: Of each sample of the batch, whether its text is replaced.
    """
    if not any(empty):
        return conditioning
    states = conditioning.arguments["encoder_hidden_states"]
    assert isinstance(states, Tensor)  # noqa: S101 - as it was built
    gone = to_device(torch.tensor(list(empty)), states.device)
    arguments = {
        **conditioning.arguments,
        "encoder_hidden_states": states.masked_fill(gone[:, None, None], 0),
    }
    added = conditioning.arguments.get("added_cond_kwargs")
    if isinstance(added, Mapping):
        pooled = added["text_embeds"]
        assert isinstance(pooled, Tensor)  # noqa: S101 - as it was built
        arguments["added_cond_kwargs"] = {
            **added,
            "text_embeds": pooled.masked_fill(gone[:, None], 0),
        }
    return Conditioning(arguments)


@dataclass(frozen=True)
class ConditioningShape:
    """Shapes of a `Conditioning` without a value, for dry runs.

    Attributes:
        positions: Positions of the text that cross-attention reads.
        width: Numbers of each.
        pooled: Numbers of the pooled text; 0 where the U-Net takes none.
        sizes: Numbers of the size conditioning; 0 for none.
    """

    positions: int
    width: int
    pooled: int = 0
    sizes: int = 0

    def stand_in(self, batch: int, make: Callable[[tuple[int, ...]], Tensor]) -> Conditioning:
        """A `Conditioning` for a batch, of tensors that `make` makes of their shapes."""
        states = make((batch, self.positions, self.width))
        if not self.pooled:
            return unet_conditioning(states)
        return unet_conditioning(states, make((batch, self.pooled)), make((batch, self.sizes)))
