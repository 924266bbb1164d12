"""What Ray has no switch for: values inside of it, which are set for a while.

They are no part of what Ray promises. Where a version has no such value, nothing is set.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

_LOOP = "ray.data._internal.execution.streaming_executor_state"
_LIMITS = "ray.data._internal.execution.resource_manager"
LOOKS_EVERY_S, LIMITS_EVERY_S = 0.03, 0.2


@contextlib.contextmanager
def printing_nothing() -> Iterator[None]:
    """Keep Ray from printing each worker that ends: on stdout, where programs read our JSON.

    What matters is raised, or told at the end.
    """
    with _having("ray._private.worker", "print_to_stdstream", lambda *_, **__: None):
        yield


@contextlib.contextmanager
def looking_often() -> Iterator[None]:
    """Have Ray Data give workers their next tasks soon.

    It looks for tasks that ended every 0.1 s, and gives a worker the next one at the second look
    after that; and it learns after a second how many CPUs there are, until when one works.
    """
    with (
        _having(_LOOP, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", LOOKS_EVERY_S),
        _having(_LIMITS, "ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S", LIMITS_EVERY_S),
    ):
        yield


@contextlib.contextmanager
def _having(module: str, path: str, value: Any) -> Iterator[None]:
    """Set a value of a module, or of a class in it, as `Class.NAME`."""
    *outer, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for part in outer:
            owner = getattr(owner, part)
        before = getattr(owner, name)
    except (ImportError, AttributeError):
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
