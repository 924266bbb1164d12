"""Detects when a GPU's VRAM overflows into RAM.

Since 2023 NVIDIA's driver for Windows moves memory to RAM where other systems report that VRAM ran
out: the run continues at a tenth of its speed, and users look for the cause elsewhere (kohya_ss,
thread 1285). WSL uses that driver too; other systems never overflow.
"""

from __future__ import annotations

import platform

import torch

FULL = 0.95  # fraction of VRAM; with less in use, nothing overflows
SLOWER = 3.0  # times the seconds per image of the fastest interval so far


class VramOverflowWatch:
    """Compares the speed and VRAM use of intervals of a run.

    Args:
        total_bytes: The GPU's VRAM.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._fastest: float | None = None
        self._has_told = False

    def look(self, images_per_s: float, data_wait: float, reserved_bytes: int) -> str | None:
        """Return a warning if VRAM seems to have overflowed in an interval, the first time only.

        Args:
            images_per_s: The interval's speed; 0 if no image was trained on.
            data_wait: The fraction of its time spent waiting for data, which an overflow does not
                slow down.
            reserved_bytes: The VRAM that PyTorch has reserved.
        """
        if images_per_s <= 0:
            return None
        seconds = 1 / images_per_s
        # the GPU may also compute during the wait for data, so this is a lower bound of its time
        at_least = (1 - data_wait) * seconds
        is_slow = self._fastest is not None and at_least > SLOWER * self._fastest
        self._fastest = seconds if self._fastest is None else min(self._fastest, seconds)
        is_over = reserved_bytes > self._total
        if self._has_told or not (is_over or (is_slow and reserved_bytes > FULL * self._total)):
            return None
        self._has_told = True
        return (
            f"Warning: VRAM is full ({reserved_bytes / 2**30:.1f} of "
            f"{self._total / 2**30:.1f} GiB in use), and the rest seems to be in RAM, which is "
            f"many times slower. Stop with Ctrl-C and start again with smaller settings "
            f"(training.memory chooses them), or close other programs that use the GPU. In "
            f"NVIDIA's control panel, CUDA - Sysmem Fallback Policy turns this off."
        )


def watch_for_overflow(device: torch.device) -> VramOverflowWatch | None:
    """Return a watch for a GPU whose VRAM can overflow; None for a CPU or another system."""
    if device.type != "cuda" or not _overflows(platform.system(), platform.release()):
        return None
    return VramOverflowWatch(torch.cuda.get_device_properties(device).total_memory)


def _overflows(system: str, release: str) -> bool:
    """Return whether VRAM overflows on a system: Windows, or WSL, whose releases name Microsoft."""
    return system == "Windows" or "microsoft" in release.lower()
