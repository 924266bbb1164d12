"""The VAE's encoder as a stage of the cache: from pixels to moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from impasto.data.caching.latent_cache import latent_source
from impasto.data.caching.npz import SD_ENDINGS
from impasto.data.engines.stages import Failure
from impasto.progress import counted

ARITHMETICS = ("", "tf32")
"""Allowed values of `MomentsEncoder.arithmetic`."""

EncodeMoments = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MomentsEncoder:
    """The VAE's encoder, with the properties that the cache needs.

    Attributes:
        encode: pixels [B, 3, H, W] in [-1, 1] -> unscaled (mean, logvar), each [B, 4, H/8, W/8].
        fingerprint: A hash of the VAE's weights.
        batch_size: Images per call.
        encode_exactly: The same in float32, to redo images with NaN or infinite latents; None if
            `encode` computes in float32 already.
        arithmetic: `tf32` if it computes in TF32, which changes latents by more than the rounding
            on storage does; empty otherwise.
        npz_endings: Endings of the names of sd-scripts' files with latents of this model.
        recipe: Picklable function that makes the same encoder in another process; None if the
            encoder exists in memory only.
        device_type: Where it computes: `cuda` or `cpu`.
    """

    encode: EncodeMoments
    fingerprint: str
    batch_size: int = 1
    encode_exactly: EncodeMoments | None = None
    arithmetic: str = ""
    npz_endings: tuple[str, ...] = SD_ENDINGS
    recipe: Callable[[], MomentsEncoder] | None = None
    device_type: str = "cpu"

    @property
    def source(self) -> str:
        """The name of what made the latents, which is part of each latent's key."""
        return latent_source(self.fingerprint, self.arithmetic)


@dataclass(frozen=True)
class BatchInFlight:
    """A batch that a device is working on.

    Attributes:
        pixels: [B, 3, H, W] in [-1, 1], in RAM.
        mean: [B, 4, H/8, W/8] on the device; reading it waits for the device.
        logvar: Likewise.
        remade: Indices of images that were encoded again in float32 and then were finite; complete
            once the batch is finished.
    """

    pixels: Tensor
    mean: Tensor
    logvar: Tensor
    remade: set[int] = field(default_factory=set)


class Encode:
    """Stage: pixels, uint8 [H, W, 3] of one size -> (mean, logvar), each [4, H/8, W/8] float32.

    A GPU computes beside the caller between `begin` and `finish`.
    """

    def __init__(self, encoder: MomentsEncoder) -> None:
        self._encoder = encoder

    def __call__(self, batch: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor] | Failure]:
        """Encode a batch; images with NaN or infinite latents are tried once more in float32."""
        return self.finish(self.begin(batch))

    def begin(self, batch: Sequence[np.ndarray]) -> BatchInFlight:
        """Start to encode a batch, without waiting for the GPU."""
        return self._begun(self._encoder.encode, to_model_range(batch))

    def finish(self, begun: BatchInFlight) -> list[tuple[Tensor, Tensor] | Failure]:
        """Wait for a batch and return its moments in RAM, or a Failure if they are not finite."""
        outcomes = _arrived(begun)
        exactly = self._encoder.encode_exactly
        if exactly is not None:
            bad = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]
            if bad:
                again = _arrived(self._begun(exactly, begun.pixels[bad]))
                for i, outcome in zip(bad, again, strict=True):
                    outcomes[i] = outcome
                    if not isinstance(outcome, Failure):
                        begun.remade.add(i)
        return outcomes

    def _begun(self, encode: EncodeMoments, pixels: Tensor) -> BatchInFlight:
        return BatchInFlight(pixels, *encode(pixels))


def _arrived(begun: BatchInFlight) -> list[tuple[Tensor, Tensor] | Failure]:
    mean, logvar = begun.mean.float().cpu(), begun.logvar.float().cpu()
    finite = (torch.isfinite(mean) & torch.isfinite(logvar)).flatten(1).all(1).tolist()
    return [
        (mean[i], logvar[i]) if good else Failure("the VAE encodes it to NaN or infinite latents")
        for i, good in enumerate(finite)
    ]


def to_model_range(pixels: Iterable[np.ndarray]) -> Tensor:
    """Convert uint8 images [H, W, 3] of one size to float32 [B, 3, H, W] in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(list(pixels)))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def said_of_remade(number: int, total: int) -> str:
    """Return the note about images whose latents overflowed in half precision."""
    return (
        f"{number} of {counted(total, 'images')} had latents that were NaN or infinite in half "
        "precision: they were encoded again in float32. Set dataset.vae_precision to fp32 to "
        "encode all images in float32."
    )
