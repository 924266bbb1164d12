"""Notices when a GPU's VRAM overflows into RAM.

Since 2023 NVIDIA's driver for Windows does that where other systems say that memory ran out: the
run goes on at a tenth of its speed, and people look for the fault elsewhere (kohya_ss, thread
1285). WSL uses that driver too; other systems never overflow.
"""

from __future__ import annotations

import platform

import torch

FULL = 0.95  # of VRAM; below, nothing overflows
SLOWER = 3.0  # times the seconds per image of the fastest stretch so far


class VramOverflowWatch:
    """Compares stretches of a run.

    Args:
        total_bytes: VRAM.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._fastest: float | None = None
        self._has_told = False

    def look(self, images_per_s: float, data_wait: float, reserved_bytes: int) -> str | None:
        """What to say after a stretch, once.

        Args:
            images_per_s: Its speed; 0 where no image was trained on.
            data_wait: The share of its time that was spent waiting for data, which no GPU slows.
            reserved_bytes: What PyTorch has taken of VRAM.
        """
        if images_per_s <= 0:
            return None
        seconds = 1 / images_per_s
        # the GPU may compute while data is waited for: it takes no less than the rest of the time
        at_least = (1 - data_wait) * seconds
        is_slow = self._fastest is not None and at_least > SLOWER * self._fastest
        self._fastest = seconds if self._fastest is None else min(self._fastest, seconds)
        is_over = reserved_bytes > self._total
        if self._has_told or not (is_over or (is_slow and reserved_bytes > FULL * self._total)):
            return None
        self._has_told = True
        return (
            f"Warning: VRAM is full ({reserved_bytes / 2**30:.1f} of "
            f"{self._total / 2**30:.1f} GiB are taken), and what does not fit seems to be in RAM, "
            f"which is many times slower. Stop with Ctrl-C and begin with "
            f"smaller settings (training.memory chooses them), or close other programs that use "
            f"the GPU. In NVIDIA's control panel, CUDA - Sysmem Fallback Policy turns this off."
        )


def watch_for_overflow(device: torch.device) -> VramOverflowWatch | None:
    """A watch over a GPU where VRAM overflows; nothing for a CPU or another system."""
    if device.type != "cuda" or not _overflows(platform.system(), platform.release()):
        return None
    return VramOverflowWatch(torch.cuda.get_device_properties(device).total_memory)


def _overflows(system: str, release: str) -> bool:
    """Whether it is Windows, or Linux in WSL, whose kernels have Microsoft in their names."""
    return system == "Windows" or "microsoft" in release.lower()
