"""The random numbers of a batch, each a function of (seed, step, position, purpose).

A sample's noise does not depend on which process, worker or micro-batch it meets, and numbers for
one purpose never shift those for another. Drawn on the CPU, so every device sees the same.
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
        seed: The run's seed.
        step: The optimizer step, counted from 0.
        positions: Each sample's place in the step, in [0, update_size).
        samples_in_step: Samples in the whole step: all micro-batches of all processes.
        ahead: Purpose -> normal numbers that are drawn already, wherever they are by now.
    """

    seed: int
    step: int
    positions: tuple[int, ...]
    samples_in_step: int
    ahead: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def normal(self, shape: tuple[int, ...], purpose: str) -> Float[Tensor, "b *shape"]:
        """Standard normal numbers of `shape` for each sample, float32.

        On the CPU, or where `to_device` has put those that were drawn ahead.
        """
        known = self.ahead.get(purpose)
        if known is not None and known.shape[1:] == shape:
            return known
        numbers = torch.empty((len(self.positions), *shape))
        for row, generator in zip(numbers, self._generators(purpose), strict=True):
            torch.randn(shape, generator=generator, out=row)
        return numbers

    def generate_ahead(self, shape: tuple[int, ...], purpose: str) -> None:
        """Have these numbers drawn now, by the thread that is here."""
        self.ahead[purpose] = self.normal(shape, purpose)

    def to_device(self, send: Callable[[Tensor], Tensor]) -> PerSampleRandomness:
        """Send the numbers that are drawn ahead to a device; the draws stay the same."""
        return replace(self, ahead={name: send(numbers) for name, numbers in self.ahead.items()})

    def uniform(self, purpose: str) -> Float[Tensor, "b"]:
        """One number in [0, 1) for each sample, float64 on the CPU."""
        return torch.stack(
            [torch.rand((), generator=g, dtype=torch.float64) for g in self._generators(purpose)]
        )

    def uniform_of_step(self, purpose: str) -> float:
        """One number in [0, 1) for the whole step, the same for all its samples."""
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
