"""A running average of the weights, which draws and validates better than the last ones.

Polyak and Juditsky 1992; decay per update as in Ho et al. 2020 (arXiv:2006.11239), appendix B,
with a warm-up of (1 + n) / (10 + n) as TensorFlow's ExponentialMovingAverage has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from impasto.errors import RunError


class WeightAverage:
    """Averages of some parameters.

    Args:
        parameters: What to average, by name.
        decay: The share of the old average that an update keeps, in (0, 1).
        power: The share rises as 1 - (1 + updates)^-power; crowsonkb/k-diffusion, `EMAWarmup`.
        on_cpu: Whether the averages are kept in the computer's memory.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decay: float,
        *,
        power: float | None = None,
        on_cpu: bool = False,
    ) -> None:
        self._parameters = dict(parameters)
        self._decay, self._power, self._on_cpu = decay, power, on_cpu
        self._averages = {
            name: parameter.detach().to(
                "cpu" if on_cpu else parameter.device, torch.float32, copy=True
            )
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the update `step`, counted from 0."""
        rising = (1 + step) / (10 + step)
        if self._power is not None:
            rising = 1 - (1 + step) ** -self._power
        averages = list(self._averages.values())
        weights = [
            p.detach().to(a) for p, a in zip(self._parameters.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, weights, 1 - min(self._decay, rising))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages in the place of the weights, and these back at the end, bit for bit."""
        if self._on_cpu:
            kept = [p.detach().to("cpu", copy=True) for p in self._parameters.values()]
            self._overwrite(self._averages.values())
        else:
            self._exchange()
        try:
            yield
        finally:
            if self._on_cpu:
                self._overwrite(kept)
            else:
                self._exchange()

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name, as they are."""
        return dict(self._averages)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put saved averages back.

        Raises:
            RunError: Their names are not those of this run.
        """
        if tensors.keys() != self._averages.keys():
            raise RunError("The saved weight average does not fit the parts that this run trains.")
        for name, average in self._averages.items():
            average.copy_(tensors[name])

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._averages[name] = self._averages[name], parameter.data

    @torch.no_grad()
    def _overwrite(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self._parameters.values(), values, strict=True):
            parameter.copy_(value)
