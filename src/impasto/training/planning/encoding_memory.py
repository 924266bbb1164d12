"""Chooses how many images the VAE encodes at once when nothing else is on the device."""

from __future__ import annotations

import copy
from typing import Any

import torch

from impasto.data.planning.plan import Plan
from impasto.training.planning.fake_step import encoding_peak
from impasto.training.planning.resolve import free_memory

FREE_FRACTION = 0.8
"""The fraction of a GPU's free memory for the VAE and its activations; the rest is left to CUDA
and cuDNN."""


def fitting_batch(vae: Any, plan: Plan, most: int, device: torch.device) -> int:
    """Return how many images, at most `most`, fit into a GPU's memory at once; on a CPU `most`.

    At 1024 pixels the VAE of Stable Diffusion takes 2.5 GiB an image in float32.

    Args:
        vae: diffusers' AutoencoderKL, in the dtype and with the tiling that it encodes with.
        plan: The plan of the images, whose largest bucket is measured.
        most: The largest number of images wanted.
        device: The device that encodes them.
    """
    if device.type != "cuda":
        return most
    largest = max(plan.bucket_counts, key=lambda size: size.area)
    room = FREE_FRACTION * free_memory(device) - sum(p.nbytes for p in vae.parameters())
    for number in range(most, 1, -1):
        if encoding_peak(copy.deepcopy(vae), largest, number) <= room:
            return number
    return 1
