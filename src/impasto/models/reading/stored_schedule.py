"""The noise schedule that a single file stores beside its weights, compared with its family's.

LDM registers `alphas_cumprod` as a buffer, so it is in most files, and A1111 samples with the one
of the file (`modules/sd_models.py`, load_model_weights: load_state_dict replaces the buffer).
Diffusers and ComfyUI compute it from the betas.
"""

from __future__ import annotations

import torch

from impasto.checkpoints.tensors import Tensors
from impasto.diffusion.schedule import NoiseSchedule

STORED = "alphas_cumprod"

ENDS_IN_NOISE = 1e-4
"""The last value below which a schedule ends in pure noise: 0.0047 for Stable Diffusion's own, 0
after rescaling (Lin et al. 2023, arXiv:2305.08891), and 5e-8 as A1111 rescales."""

TOLERANCE = 5e-3
"""The largest difference of a value, which are in (0, 1); storing them in float16 or bfloat16 takes
4e-3 at most."""


def stores_zero_terminal_snr(ldm_only: Tensors) -> bool:
    """Return whether the stored schedule ends in pure noise; False if none is stored.

    Args:
        ldm_only: The tensors of a single file that no network uses.
    """
    stored = _stored(ldm_only)
    return stored is not None and bool(stored[-1] < ENDS_IN_NOISE)


def unusual_schedule(ldm_only: Tensors, *, zero_terminal_snr: bool) -> tuple[str, ...]:
    """Return a note if the stored schedule is not the one that will be used.

    Args:
        ldm_only: The tensors of a single file that no network uses.
        zero_terminal_snr: Whether the schedule that will be used ends in pure noise.
    """
    stored = _stored(ldm_only)
    if stored is None:
        return ()
    used = NoiseSchedule.scaled_linear()
    if zero_terminal_snr:
        used = used.to_zero_terminal_snr()
    if stored.shape == used.alphas_cumprod.shape:
        apart = float((stored - used.alphas_cumprod).abs().max())
        if apart <= TOLERANCE:
            return ()
    return (
        f"stores another noise schedule than the one used: its {STORED} has {len(stored)} values "
        f"from {float(stored[0]):.4g} to {float(stored[-1]):.4g}, that of Stable Diffusion "
        f"{len(used.alphas_cumprod)} from {float(used.alphas_cumprod[0]):.4g} to "
        f"{float(used.alphas_cumprod[-1]):.4g}. A1111 draws with the one in the file",
    )


def _stored(ldm_only: Tensors) -> torch.Tensor | None:
    tensor = ldm_only.get(STORED)
    if tensor is None or len(tensor.shape) != 1 or not 2 <= tensor.shape[0] <= 100_000:
        return None
    return tensor.read().float()
