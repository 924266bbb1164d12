"""Tensors with device `cuda:0` that compute on the CPU."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from clocks import (
    FINDINGS,
    LOCK,
    Memory,
    Stream,
    current_stream,
    host,
    host_waits_for,
    project_line,
)
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
COPIES = {"aten::copy_", "aten::_to_copy"}
INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}
WAITING = {
    "aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero",
    "aten::masked_select", "aten::_unique2",
}  # fmt: skip
"""Operators whose result the host needs, for its value or its shape."""
VIEWS = {"aten::detach", "aten::alias", "aten::view", "aten::t", "aten::transpose", "aten::set_"}


class PretendTensor(torch.Tensor):
    """A tensor on the pretended GPU.

    Attributes:
        values: The same tensor on the CPU.
        memory: The memory record, shared by all views.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    values: torch.Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, values: torch.Tensor, memory: Memory, requires_grad: bool = False):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=GPU,
            requires_grad=requires_grad,
        )
        made.values, made.memory = values, memory
        return made

    def __tensor_flatten__(self):
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner, _meta, _size, _stride):
        return PretendTensor(inner["values"], Memory(current_stream()))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)
        self.values, self.memory = other.values, other.memory

    def tolist(self):
        host_waits_for(current_stream().clock, "tolist")
        return self.values.tolist()

    def record_stream(self, stream: Stream) -> None:
        self.memory.recorded.add(stream)

    def pin_memory(self, device=None):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor'")

    def is_pinned(self, device=None):
        return False

    def __deepcopy__(self, memo):
        return self.detach().clone().requires_grad_(self.requires_grad)

    def __repr__(self):
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"


class EveryOperator(TorchDispatchMode):
    """Observes operators without a GPU tensor too: those that create one, or use pinned memory."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled, so no operator must be hidden from the compiler."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


PINNED: dict[int, Memory] = {}
"""Records of pinned memory by its address."""


def pinned(values: torch.Tensor) -> torch.Tensor:
    """Mark the memory of a host tensor as pinned."""
    storage = values.untyped_storage()
    address = storage.data_ptr()
    PINNED[address] = Memory(None)
    weakref.finalize(storage, PINNED.pop, address, None)
    return values


def memory_of_host(tensor: torch.Tensor) -> Memory | None:
    """Return the record of pinned memory, or None for other host memory."""
    if not PINNED or isinstance(tensor, PretendTensor) or tensor.device.type != "cpu":
        return None
    if tensor.layout is not torch.strided:
        return None
    return PINNED.get(tensor.untyped_storage().data_ptr())


def dispatched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on the values, and record what a GPU would do."""
    with LOCK:
        gpu_side, others = _tensors_by_side((*args, *kwargs.values()) if kwargs else args)
        asked = kwargs.get("device")
        makes = None if asked is None else torch.device(asked).type
        if gpu_side or makes == "cuda":
            host_side = [x for x in others if x.device.type == "cpu"]
            return _on_gpu(func, args, kwargs, gpu_side, host_side, makes)
        if not PINNED and not kwargs.get("pin_memory"):
            return func(*args, **kwargs)
        return _on_host(func, args, kwargs, others)


def _tensors_by_side(arguments: Any) -> tuple[list[PretendTensor], list[torch.Tensor]]:
    """Return the GPU tensors and the other tensors among an operator's arguments and lists."""
    gpu_side: list[PretendTensor] = []
    others: list[torch.Tensor] = []
    for argument in arguments:
        kind = type(argument)
        if kind is PretendTensor:
            gpu_side.append(argument)
        elif kind is list or kind is tuple:
            for x in argument:
                if isinstance(x, PretendTensor):
                    gpu_side.append(x)
                elif isinstance(x, torch.Tensor):
                    others.append(x)
        elif isinstance(argument, torch.Tensor):
            others.append(argument)
    return gpu_side, others


def _on_host(func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> Any:
    pin = kwargs.get("pin_memory")
    _touch_pinned(func, args, tensors)
    made = func(*args, **{**kwargs, "pin_memory": False} if pin else kwargs)
    return pinned(made) if pin else made


def _touch_pinned(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    operator = operator_of(func)
    if operator.is_view or not PINNED:
        return
    written = _written(operator, args)
    for tensor in tensors:
        memory = memory_of_host(tensor)
        if memory is not None:
            host().advance()
            writes = any(tensor is other for other in written)
            memory.touch(host(), writes=writes, what=func._schema.name)


def _on_gpu(
    func: Any,
    args: Any,
    kwargs: Any,
    gpu_side: list[PretendTensor],
    host_side: list[torch.Tensor],
    makes: Any,
) -> Any:
    operator, stream = operator_of(func), current_stream()
    name = operator.name
    to_host = makes == "cpu"
    _require_one_device(name, gpu_side, host_side)
    written = _written(operator, args)
    site = "" if operator.is_view or written else _site_of()
    stream.learn(host().clock)
    stream.advance()
    if not operator.is_view:
        changed = {id(tensor) for tensor in written}
        for tensor in gpu_side:
            tensor.memory.touch(stream, writes=id(tensor) in changed, what=name)
    values = func(*map(_values, args), **_on_cpu(kwargs))
    _cross(name, args, kwargs, host_side, stream, to_host=to_host)
    if name in WAITING:
        host_waits_for(stream.clock, name.removeprefix("aten::"))
    if to_host:
        return pinned(values) if kwargs.get("pin_memory") else values
    if written and not isinstance(written[0], PretendTensor):
        return written[0]  # the result of a copy to the host
    known = {x.values.untyped_storage().data_ptr(): x.memory for x in gpu_side}
    if values is None:
        return None
    wrap = functools.partial(_wrapped, known=known, stream=stream, name=name, site=site)
    several = isinstance(values, (list, tuple))
    result = type(values)(map(wrap, values)) if several else wrap(values)
    return return_and_correct_aliasing(func, args, kwargs, result) if operator.aliases else result


def _wrapped(value: Any, known: dict[int, Memory], stream: Stream, name: str, site: str) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, PretendTensor):
        return value
    address = value.untyped_storage().data_ptr()
    memory = known.get(address) if address else None
    if memory is None:
        memory = Memory(stream, site)
        memory.touch(stream, writes=True, what=name)
    return PretendTensor(value, memory)


def _require_one_device(name: str, gpu_side: list[Any], host_side: list[torch.Tensor]) -> None:
    """Raise if an operator mixes devices; a GPU accepts copies and single numbers from the host."""
    if name in COPIES or name in INDEXING or not gpu_side:
        return
    if any(tensor.dim() for tensor in host_side):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} found at least two, "
            f"cuda:0 and cpu!"
        )


def _site_of() -> str:
    """Record an allocation, and raise out of memory if this is the requested place."""
    site = project_line()
    FINDINGS.allocations[site] += 1
    if FINDINGS.fail_at == site:
        FINDINGS.fail_at = None
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    return site


def _cross(
    name: str, args: Any, kwargs: Any, host_side: list[Any], stream: Stream, *, to_host: bool
) -> None:
    """Record the wait of a copy between host and device, unless it is pinned and non-blocking."""
    may_run_on = bool(kwargs.get("non_blocking", False))
    if name == "aten::copy_" and len(args) > 2:
        may_run_on = bool(args[2])
    if name not in COPIES | INDEXING or not (to_host or host_side):
        return
    target = args[0] if name == "aten::copy_" else None
    goes_to_host = to_host or (target is not None and not isinstance(target, PretendTensor))
    memory = memory_of_host(host_side[0]) if host_side else None
    if may_run_on and memory is not None:
        memory.touch(stream, writes=goes_to_host, what=name)
        return
    if may_run_on and goes_to_host:
        FINDINGS.races["a copy that does not wait, to memory that is not pinned"] += 1
    way = "copy to the host" if goes_to_host else "copy from pageable memory"
    host_waits_for(stream.clock, way)
    if memory is not None:
        host().advance()
        memory.touch(host(), writes=goes_to_host, what=name)


def _tensors_in(arguments: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among an operator's arguments, and in its lists of tensors."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from (x for x in argument if isinstance(x, torch.Tensor))


def _values(x: Any) -> Any:
    if isinstance(x, PretendTensor):
        return x.values
    return type(x)(map(_values, x)) if isinstance(x, (list, tuple)) else x


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    changed = {name: _values(value) for name, value in kwargs.items()}
    if changed.get("device") is not None:
        changed["device"] = CPU
    if changed.get("pin_memory"):
        changed["pin_memory"] = False
    changed.pop("non_blocking", None)
    return changed


@dataclass(frozen=True)
class Operator:
    """Facts about an operator.

    Attributes:
        name: The name without its overload.
        is_view: Whether it accesses no memory.
        aliases: Whether a result may be one of the arguments, or a view of it.
        written_places: Indices of arguments that it changes; if there are any, it allocates
            nothing.
    """

    name: str
    is_view: bool
    aliases: bool
    written_places: tuple[int, ...]


_KNOWN: dict[int, Operator] = {}


def operator_of(func: Any) -> Operator:
    """Return the facts of an operator, cached by id: PyTorch keeps all, and hashing one is slow."""
    known = _KNOWN.get(id(func))
    if known is None:
        schema = func._schema
        declared = [argument.alias_info for argument in schema.arguments]
        known = _KNOWN[id(func)] = Operator(
            schema.name,
            bool(getattr(func, "is_view", False)) or schema.name in VIEWS,
            any(info is not None for info in declared),
            tuple(i for i, info in enumerate(declared) if info is not None and info.is_write),
        )
    return known


def _written(operator: Operator, args: Any) -> list[torch.Tensor]:
    """Return the tensors that an operator changes."""
    places = operator.written_places
    return list(_tensors_in(args[i] for i in places if i < len(args))) if places else []
