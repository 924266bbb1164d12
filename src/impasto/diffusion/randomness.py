"""The random numbers of a batch, each a function of (seed, step, position, purpose).

A sample's noise does not depend on its process, worker or micro-batch, and numbers for one purpose
never shift those for another. They are drawn on the CPU, so that every device gets the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from impasto.randomness import derive_seed


@dataclass(frozen=True, slots=True)
class PerSampleRandomness:
    """The source of randomness of some samples of one step.

    Attributes:
        seed: Seed of the run.
        step: Optimizer step, counted from 0.
        positions: Each sample's position in the step, in [0, update_size).
        samples_in_step: Number of samples in the whole step: all micro-batches of all processes.
        ahead: Purpose -> normal numbers that have been drawn already, on any device.
    """

    seed: int
    step: int
    positions: tuple[int, ...]
    samples_in_step: int
    ahead: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def normal(self, shape: tuple[int, ...], purpose: str) -> Float[Tensor, "b *shape"]:
        """Return standard normal numbers of `shape` per sample, float32.

        They are on the CPU or, if they were drawn ahead, where `to_device` has put them.
        """
        known = self.ahead.get(purpose)
        if known is not None and known.shape[1:] == shape:
            return known
        numbers = torch.empty((len(self.positions), *shape))
        for row, generator in zip(numbers, self._generators(purpose), strict=True):
            torch.randn(shape, generator=generator, out=row)
        return numbers

    def generate_ahead(self, shape: tuple[int, ...], purpose: str) -> None:
        """Draw these numbers now, on the calling thread."""
        self.ahead[purpose] = self.normal(shape, purpose)

    def to_device(self, send: Callable[[Tensor], Tensor]) -> PerSampleRandomness:
        """Return a copy whose numbers drawn ahead are on a device; their values are the same."""
        return replace(self, ahead={name: send(numbers) for name, numbers in self.ahead.items()})

    def uniform(self, purpose: str) -> Float[Tensor, "b"]:
        """Return one number in [0, 1) per sample, float64 on the CPU."""
        return torch.stack(
            [torch.rand((), generator=g, dtype=torch.float64) for g in self._generators(purpose)]
        )

    def uniform_of_step(self, purpose: str) -> float:
        """Return one number in [0, 1) for the whole step, the same for all its samples."""
        seed = derive_seed(self.seed, purpose, self.step, "update")
        return float(torch.rand((), generator=torch.Generator().manual_seed(seed)))

    @property
    def ranks(self) -> Int[Tensor, "b"]:
        """The samples' positions in the step as a tensor."""
        return torch.tensor(self.positions)

    def _generators(self, purpose: str) -> list[torch.Generator]:
        return [
            torch.Generator().manual_seed(derive_seed(self.seed, purpose, self.step, position))
            for position in self.positions
        ]
