"""Stages for tests of the engines: picklable, and importable by workers under this name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from impasto.data.engines.stages import Failure

if TYPE_CHECKING:
    from impasto.data.caching.encoding import MomentsEncoder


def end_once(marker: Path) -> None:
    """Kill this process, as the system would, on the first call for `marker`."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Square:
    """Squares numbers; fails for sevens, and ends its process for 13."""

    pause: float = 0.0

    def __call__(self, batch):
        time.sleep(self.pause)
        if 13 in batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Failure("seven") if n == 7 else n * n for n in batch]


@dataclass(frozen=True)
class Halve:
    """A stage with a model, opened separately in each process; halves squared numbers."""

    marker: Path
    uses_gpu: bool = False
    prepare: Square = field(default_factory=Square)

    def open(self):
        with self.marker.open("a", encoding="utf-8") as file:
            file.write("opened\n")

        def halve(items, prepared):
            if 21 in items:
                end_once(self.marker.with_suffix(".ended"))
            return [made if isinstance(made, Failure) else made / 2 for made in prepared]

        return halve


@dataclass(frozen=True)
class Break:
    """Raises a programming error for 40."""

    def __call__(self, batch):
        if 40 in batch:
            raise ValueError("broken at 40")
        return list(batch)


@dataclass(frozen=True)
class NotingThreads:
    """Builds a recipe's encoder that also records how many threads PyTorch uses."""

    recipe: Callable
    file: Path

    def __call__(self):
        speaker = self.recipe()
        annotate = speaker.annotate

        def noting(prepared, records):
            import torch

            self.file.write_text(str(torch.get_num_threads()), encoding="utf-8")
            return annotate(prepared, records)

        speaker.annotate = noting
        return speaker


def encode(pixels):
    """Return moments computed from the pixels, different for each."""
    import torch

    mean = torch.nn.functional.avg_pool2d(pixels, 8)
    mean = torch.cat([mean, mean[:, :1] * 0.7], dim=1)
    return mean, mean.abs() * 0.3 - 6


@dataclass(frozen=True)
class Recipe:
    """Builds an encoder whose first call in a worker ends the process."""

    marker: Path | None = None
    fingerprint: str = "vae-1"

    def __call__(self) -> MomentsEncoder:
        from impasto.data.caching.encoding import MomentsEncoder

        def ending(pixels):
            if self.marker is not None:
                end_once(self.marker)
            return encode(pixels)

        return MomentsEncoder(ending, self.fingerprint, 2)


def encoder_of(recipe: Recipe, fingerprint: str = "vae-1") -> MomentsEncoder:
    """Return this process's encoder, with the recipe by which others build it."""
    from impasto.data.caching.encoding import MomentsEncoder

    return MomentsEncoder(encode, fingerprint, 2, recipe=recipe)
