"""A recorder that emulates CUDA graphs on tensors, without a GPU.

While it records, it stores every operator with the tensors and numbers that it is called with, and
afterwards restores all memory, as if nothing had been computed. A replay calls the same operators
on the same tensors with the same numbers, and writes the results where the recorded ones were. So a
number that the host computed for one step stays that of this step, and a tensor that replaces a
recorded one is ignored: as on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from impasto.training.optim.graph_recorder import NotRecordableError

WAITING = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero"}


class Recording(TorchDispatchMode):
    """Records operators, and the previous values of the memory that they write to.

    Attributes:
        calls: Operator, arguments and results.
        memories: The memory records of created tensors, on a pretended GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.memories: list[Any] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name in WAITING:
            raise NotRecordableError(f"{func._schema.name} waits for the device")
        for tensor in written(func, args, kwargs):
            self._keep(tensor)
        given = {address(tensor) for tensor in tensors_in((args, kwargs))}
        result = func(*args, **kwargs)
        made = list(tensors_in(result))
        self._made |= {address(tensor) for tensor in made} - given
        self.memories += [x.memory for x in made if hasattr(x, "memory")]
        self.calls.append((func, args, kwargs, made))
        return result

    def undo(self) -> None:
        """Restore the values from before the recording."""
        for tensor, value in self._before.values():
            tensor.copy_(value)

    def replay(self) -> None:
        """Call all operators again."""
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                for place, value in zip(made, tensors_in(func(*args, **kwargs)), strict=True):
                    if place is not value and address(place) != address(value):
                        place.copy_(value)

    def _keep(self, tensor: Tensor) -> None:
        place = address(tensor)
        if place and place not in self._made and place not in self._before:
            whole = on_cpu(tensor).detach().new_empty(0)
            whole.set_(on_cpu(tensor).untyped_storage())
            self._before[place] = whole, whole.clone()


class RecordedGraphs:
    """A `GraphRecorder` for any device.

    Attributes:
        ran: How often work was run eagerly.
        recorded: How often it was recorded.
        replayed: How often a recording was replayed.
        marked: How often the end of a step was marked.
    """

    def __init__(self) -> None:
        self.ran = self.recorded = self.replayed = self.marked = 0

    def run(self, work):
        self.ran += 1
        work()

    def record(self, work):
        self.recorded += 1
        recording = Recording()
        with without_random_states(), recording:
            work()
        recording.undo()

        def replay():
            self.replayed += 1
            recording.replay()

        return replay

    def mark(self):
        self.marked += 1
        return Done()


class Done:
    """An event that is always complete, since a CPU runs operators at once."""

    def query(self):
        return True

    def synchronize(self):
        raise AssertionError("no wait was expected")


@contextlib.contextmanager
def without_random_states() -> Iterator[None]:
    """Refuse to return the random state while a graph is recorded, as a GPU's generator does."""
    real = torch.get_rng_state

    def refused():
        raise NotRecordableError("the generator's state was read")

    torch.get_rng_state = refused
    try:
        yield
    finally:
        torch.get_rng_state = real


def on_cpu(tensor: Tensor) -> Tensor:
    """Return a tensor with values: that of a pretended GPU stores them in an attribute."""
    return getattr(tensor, "values", None) if hasattr(tensor, "memory") else tensor


def address(tensor: Tensor) -> int:
    return on_cpu(tensor).untyped_storage().data_ptr()


def written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Yield the tensors that an operator changes."""
    for number, declared in enumerate(func._schema.arguments):
        if declared.alias_info is not None and declared.alias_info.is_write:
            given = args[number] if number < len(args) else kwargs.get(declared.name)
            yield from tensors_in(given)


def tensors_in(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
