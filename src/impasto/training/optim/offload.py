"""Optimizer states in RAM, copied to the GPU for their step and back.

The idea of ZeRO-Offload (Ren et al. 2021, arXiv:2101.06840), with the arithmetic left on the GPU:
for AdamW in float32, 16 bytes per weight are transferred in each step, both directions together.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from impasto.training.optim.pinned_memory import pinned_like

MIN_NUMEL = 4096  # elements of the smallest tensor that is offloaded

States = Mapping[Tensor, MutableMapping[str, Any]]


class OffloadedStates:
    """Keeps the large tensors of an optimizer's state in RAM.

    Copies overlap with the arithmetic, on a separate stream, from and to pinned memory. With the
    weights on a CPU the states are copied within RAM.

    Args:
        device: The device that the weights are stepped on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._stream = new_stream(device) if self._on_gpu else None
        self._home: dict[tuple[Tensor, str], Tensor] = {}
        self._in_flight: dict[Tensor, torch.cuda.Event | None] = {}

    def fetch(self, parameters: Sequence[Tensor], states: States) -> None:
        """Start copying the states of some weights to the device, unless a copy is under way."""
        for parameter in parameters:
            if parameter in self._in_flight or not states.get(parameter):
                continue
            with torch.cuda.stream(self._stream):
                for name, value in _large(states[parameter]):
                    if value.device.type != "cpu":  # not offloaded yet
                        continue
                    home = self._host_tensor(parameter, name, value)
                    states[parameter][name] = home.to(self._device, non_blocking=True, copy=True)
            self._in_flight[parameter] = self._stream.record_event() if self._stream else None

    def arrive(self, parameters: Sequence[Tensor]) -> None:
        """Make later arithmetic wait until the states of some weights are on the device."""
        for parameter in parameters:
            event = self._in_flight.pop(parameter, None)
            if event is not None:
                torch.cuda.current_stream(self._device).wait_event(event)

    def store(self, parameters: Sequence[Tensor], states: States) -> None:
        """Start copying the states of stepped weights back to RAM."""
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
        """Block until all states are back in RAM, so that they can be read."""
        if self._stream is not None:
            self._stream.synchronize()

    def _host_tensor(self, parameter: Tensor, name: str, value: Tensor) -> Tensor:
        """Return the RAM tensor that stores a state entry; created on first use.

        A value that is already in suitable RAM is used itself.
        """
        if value.device.type == "cpu" and value.is_pinned() == self._on_gpu:
            return self._home.setdefault((parameter, name), value)
        if (parameter, name) not in self._home:
            self._home[parameter, name] = pinned_like(
                value, "training.offload_optimizer", pinned=self._on_gpu
            )
        if value.device.type == "cpu":  # replaced by the caller, as by a resume
            self._home[parameter, name].copy_(value)
        return self._home[parameter, name]


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a new CUDA stream on a device."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _large(entries: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    return [
        (name, value)
        for name, value in entries.items()
        if isinstance(value, Tensor) and value.numel() >= MIN_NUMEL
    ]
