"""Replaces `torch.cuda` by the pretended GPU, for the lifetime of a process."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from clocks import (
    DEFAULT,
    Event,
    Stream,
    current_stream,
    host,
    host_waits_for,
    stand_beside,
    use_stream,
)
from graphs import Graph, recorded
from tensors import PINNED, EveryOperator, PretendTensor, pinned

GIB = 1 << 30


def install(*, memory_gib: int = 24, capability: tuple[int, int] = (8, 6)) -> None:
    """Make torch detect one GPU."""
    _replace_cuda(memory_gib * GIB, capability)
    _replace_constructors()
    _replace_pinning()
    _let_foreach_kernels_take_them()
    _watch_threads()
    torch.__future__.set_swap_module_params_on_conversion(True)
    EveryOperator().__enter__()


def _replace_cuda(total: int, capability: tuple[int, int]) -> None:
    facts = SimpleNamespace(
        name="Pretended GPU",
        total_memory=total,
        major=capability[0],
        minor=capability[1],
        multi_processor_count=82,
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "_lazy_init": None,
        "init": None,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "get_device_name": facts.name,
        "get_device_properties": facts,
        "get_device_capability": capability,
        "is_bf16_supported": capability >= (8, 0),
        "mem_get_info": (total - GIB, total),
        "memory_reserved": GIB,
        "memory_allocated": GIB,
        "max_memory_allocated": GIB,
        "max_memory_reserved": GIB,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "set_rng_state": None,
        "is_current_stream_capturing": False,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, functools.partial(_answer, answer))
    torch.cuda.get_rng_state = lambda *_: torch.default_generator.get_state()
    torch.cuda.synchronize = lambda *_: host_waits_for(DEFAULT.clock, "cuda.synchronize")
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.stream, torch.cuda.current_stream = use_stream, current_stream
    torch.cuda.default_stream = lambda *_: DEFAULT
    torch.cuda.CUDAGraph, torch.cuda.graph = Graph, recorded
    torch.cuda.graph_pool_handle = tuple
    torch._C._cuda_endAllocateToPool = functools.partial(_answer, None)


def _answer(answer: Any, *_: Any, **__: Any) -> Any:
    return answer


def _replace_constructors() -> None:
    """Replace `torch.tensor`, which bypasses dispatch, and make generators live on the CPU."""
    tensor, generator = torch.tensor, torch.Generator

    def made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        found = tensor(data, **options)
        return found if device is None else found.to(device)

    class Generator(generator):  # type: ignore[misc,valid-type]
        def __new__(cls, device: Any = "cpu"):
            return generator.__new__(cls, "cpu")

        def __init__(self, device: Any = "cpu") -> None:
            pass

    torch.tensor, torch.Generator = made, Generator


def _replace_pinning() -> None:
    def pin_memory(self: torch.Tensor, device: Any = None) -> torch.Tensor:
        return pinned(self.clone())

    def is_pinned(self: torch.Tensor, device: Any = None) -> bool:
        return self.untyped_storage().data_ptr() in PINNED

    torch.Tensor.pin_memory, torch.Tensor.is_pinned = pin_memory, is_pinned


def _let_foreach_kernels_take_them() -> None:
    """Let optimizers and clipping use their multi-tensor kernels for `PretendTensor` too."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    for module in (optimizer, _foreach_utils):
        kinds = module._foreach_supported_types
        if PretendTensor not in kinds:
            kinds.append(PretendTensor)


def _watch_threads() -> None:
    """Observe operators in threads too, and order a thread's work after its submission."""
    run, submit, result = threading.Thread.run, ThreadPoolExecutor.submit, Future.result

    def run_watched(self: threading.Thread) -> None:
        stand_beside()
        with EveryOperator():
            run(self)

    def submit_watched(self: Any, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        given = Counter(host().clock)
        ended: Counter[Any] = Counter()

        def watched() -> Any:
            host().learn(given)
            try:
                return work(*args, **kwargs)
            finally:
                ended.update(host().clock)

        future = submit(self, watched)
        future.ended = ended
        return future

    def result_watched(self: Any, timeout: float | None = None) -> Any:
        try:
            return result(self, timeout)
        finally:
            host().learn(getattr(self, "ended", Counter()))

    threading.Thread.run = run_watched
    ThreadPoolExecutor.submit, Future.result = submit_watched, result_watched
