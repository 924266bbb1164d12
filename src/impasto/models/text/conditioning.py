"""Text states and image sizes as keyword arguments of diffusers' `UNet2DConditionModel`.

The names of those arguments are written only here.
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
    """Return the keyword arguments of a U-Net call other than latents and timesteps.

    Args:
        states: Text states that cross-attention reads.
        pooled: Pooled text, for U-Nets with `addition_embed_type = "text_time"`.
        sizes: Sizes of the images, for the same U-Nets.
    """
    arguments: Arguments = {"encoder_hidden_states": states}
    if pooled is None or sizes is None:
        return Conditioning(arguments)
    added = {"text_embeds": pooled, "time_ids": sizes}
    return Conditioning({**arguments, "added_cond_kwargs": added})


def without_text(conditioning: Conditioning, empty: Sequence[bool]) -> Conditioning:
    """Replace the states and the pooled text of selected samples by zeros.

    The image sizes are unchanged. Stability-AI/generative-models,
    `sgm/modules/encoders/modules.py`, GeneralConditioner; diffusers, StableDiffusionXLPipeline with
    `force_zeros_for_empty_prompt`. No gradient flows through replaced values.

    Args:
        conditioning: Conditioning from `unet_conditioning`.
        empty: Whether the text of each sample of the batch is replaced.
    """
    if not any(empty):
        return conditioning
    states = conditioning.arguments["encoder_hidden_states"]
    assert isinstance(states, Tensor)  # noqa: S101 - `unet_conditioning` built it
    gone = to_device(torch.tensor(list(empty)), states.device)
    arguments = {
        **conditioning.arguments,
        "encoder_hidden_states": states.masked_fill(gone[:, None, None], 0),
    }
    added = conditioning.arguments.get("added_cond_kwargs")
    if isinstance(added, Mapping):
        pooled = added["text_embeds"]
        assert isinstance(pooled, Tensor)  # noqa: S101 - `unet_conditioning` built it
        arguments["added_cond_kwargs"] = {
            **added,
            "text_embeds": pooled.masked_fill(gone[:, None], 0),
        }
    return Conditioning(arguments)


@dataclass(frozen=True)
class ConditioningShape:
    """Shapes of a `Conditioning` without values, for dry runs.

    Attributes:
        positions: Number of text positions that cross-attention reads.
        width: Width of the state of each position.
        pooled: Width of the pooled text; 0 if the U-Net takes none.
        sizes: Number of image sizes; 0 for none.
    """

    positions: int
    width: int
    pooled: int = 0
    sizes: int = 0

    def stand_in(self, batch: int, make: Callable[[tuple[int, ...]], Tensor]) -> Conditioning:
        """Return a `Conditioning` for a batch, with tensors that `make` builds from shapes."""
        states = make((batch, self.positions, self.width))
        if not self.pooled:
            return unet_conditioning(states)
        return unet_conditioning(states, make((batch, self.pooled)), make((batch, self.sizes)))
