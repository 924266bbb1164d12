"""Configures how the C library and PyTorch allocate and free RAM, before they are used.

A training step on a CPU allocates and frees gigabytes. In pages of 4 KiB that is a million page
faults per step; and glibc retains freed memory, fragmented, since it raises its threshold for
mapped blocks to 32 MiB by itself (mallopt(3), M_MMAP_THRESHOLD). Measured by `python -m bench
step`.
"""

from __future__ import annotations

import ctypes
import os
import sys

MAPPED_FROM = 4 << 20  # bytes: larger blocks are returned to the system as soon as they are freed
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_GPU_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Environment variables of PyTorch's GPU allocator: the old name, the name since 2.9 (which reads
both), and ROCm's."""

_GROWING = "expandable_segments:True"


def has_expandable_segments() -> bool:
    """Return whether this process uses expandable segments in PyTorch's GPU allocator."""
    if not sys.platform.startswith("linux"):
        return False
    return any(_GROWING in os.environ.get(name, "") for name in _GPU_ALLOCATOR)


def tune_allocation() -> None:
    """Enable large pages and the return of freed memory; call it before importing torch.

    Does nothing if the system is not Linux, and changes nothing that the user has set by
    environment variables. On a GPU, expandable segments reduce fragmentation of PyTorch's
    allocator; PyTorch has them on Linux only (c10/cuda/CUDACachingAllocator.cpp).
    """
    if not sys.platform.startswith("linux"):
        return
    if not any(name in os.environ for name in _GPU_ALLOCATOR):
        os.environ[_GPU_ALLOCATOR[0]] = _GROWING
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # c10/core/impl/alloc_cpu.cpp of PyTorch
    # Arrow's jemalloc, which nothing here allocates with, starts a thread when it is imported:
    # apache/arrow, cpp/src/arrow/memory_pool_jemalloc.cc
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    _mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
    _mallopt(_M_TRIM_THRESHOLD, MAPPED_FROM)


def use_one_arena() -> None:
    """Make all threads of this process share one malloc arena; call it before threads are started.

    glibc gives each thread a separate arena, and memory freed in it is reused by that thread alone
    (mallopt(3), M_ARENA_MAX). A server whose many threads take turns at the same work would retain
    several times its peak memory.
    """
    if sys.platform.startswith("linux") and not any(
        name in os.environ for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    ):
        _mallopt(_M_ARENA_MAX, 1)


def _mallopt(option: int, value: int) -> None:
    """Set an option of glibc's allocator; other C libraries have no such options."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)
