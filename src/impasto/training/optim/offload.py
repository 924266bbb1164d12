"""Optimizer states in RAM, brought to the GPU for their step and taken back.

The idea of ZeRO-Offload (Ren et al. 2021, arXiv:2101.06840), with the arithmetic left on the GPU:
for AdamW in float32 the way there and back is 16 bytes per weight and step.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from impasto.training.optim.pinned_memory import pinned_like

MIN_NUMEL = 4096  # numbers of a tensor; smaller ones stay where they are

States = Mapping[Tensor, MutableMapping[str, Any]]


class OffloadedStates:
    """Keeps the large tensors of an optimizer's state in RAM.

    Copies run beside the arithmetic, on a separate stream, from and to pinned memory. On a
    CPU both places are the same, and copies are made all the same.

    Args:
        device: Where the weights are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._stream = new_stream(device) if self._on_gpu else None
        self._home: dict[tuple[Tensor, str], Tensor] = {}
        self._in_flight: dict[Tensor, torch.cuda.Event | None] = {}

    def fetch(self, parameters: Sequence[Tensor], states: States) -> None:
        """Begin to bring the states of some weights to the device, if they are not on their way."""
        for parameter in parameters:
            if parameter in self._in_flight or not states.get(parameter):
                continue
            with torch.cuda.stream(self._stream):
                for name, value in _large(states[parameter]):
                    if value.device.type != "cpu":  # not taken away yet
                        continue
                    home = self._host_tensor(parameter, name, value)
                    states[parameter][name] = home.to(self._device, non_blocking=True, copy=True)
            self._in_flight[parameter] = self._stream.record_event() if self._stream else None

    def arrive(self, parameters: Sequence[Tensor]) -> None:
        """Have the arithmetic that follows wait until the states of some weights are there."""
        for parameter in parameters:
            event = self._in_flight.pop(parameter, None)
            if event is not None:
                torch.cuda.current_stream(self._device).wait_event(event)

    def store(self, parameters: Sequence[Tensor], states: States) -> None:
        """Begin to take the states of stepped weights away."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for parameter in parameters:
            for name, value in _large(states.get(parameter, {})):
                home = self._host_tensor(parameter, name, value)
                with torch.cuda.stream(self._stream):
                    home.copy_(value, non_blocking=True)
                if self._stream is not None:
                    value.record_stream(self._stream)
                states[parameter][name] = home

    def wait(self) -> None:
        """Wait until all is back, so that it can be read."""
        if self._stream is not None:
            self._stream.synchronize()

    def _host_tensor(self, parameter: Tensor, name: str, value: Tensor) -> Tensor:
        """Where an entry lives; a value that is there already becomes its own home."""
        if value.device.type == "cpu" and value.is_pinned() == self._on_gpu:
            return self._home.setdefault((parameter, name), value)
        if (parameter, name) not in self._home:
            self._home[parameter, name] = pinned_like(
                value, "training.offload_optimizer", pinned=self._on_gpu
            )
        if value.device.type == "cpu":  # set anew, as by a resume
            self._home[parameter, name].copy_(value)
        return self._home[parameter, name]


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream for copies beside the arithmetic."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _large(entries: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    return [
        (name, value)
        for name, value in entries.items()
        if isinstance(value, Tensor) and value.numel() >= MIN_NUMEL
    ]
