"""The settings of the C library's memory allocation, checked in glibc itself."""

import os
import platform
import subprocess
import sys

import pytest

ARENAS = """
import ctypes, sys, threading
from impasto.allocation import use_one_arena
if sys.argv[1] == "one":
    use_one_arena()
held = threading.Barrier(6)
def take():
    kept = bytearray(100_000)
    held.wait()
for thread in [threading.Thread(target=take) for _ in range(6)]:
    thread.start()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, out := ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(out)
"""


def arenas(which, **environment):
    done = subprocess.run(
        [sys.executable, "-c", ARENAS, which], capture_output=True, text=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a glibc option")
def test_threads_take_memory_from_one_place_once_it_was_asked_for():
    """A studio's threads share one arena, or it would retain its peak memory once per thread."""
    assert arenas("one") == 1
    assert arenas("many") > 1
    assert arenas("one", MALLOC_ARENA_MAX="8") > 1, "a value that the user has set must stay"
