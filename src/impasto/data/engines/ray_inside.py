"""Temporary changes to internal values of Ray for which it has no option.

They are not part of Ray's public interface. A version of Ray without such a value is not changed.
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
    """Keep Ray from reporting each worker that ends on stdout, where programs read Impasto's JSON.

    Errors are raised, and ended workers are counted in a note at the end.
    """
    with _having("ray._private.worker", "print_to_stdstream", lambda *_, **__: None):
        yield


@contextlib.contextmanager
def looking_often() -> Iterator[None]:
    """Make Ray Data give workers their next tasks without delay.

    By default it checks for completed tasks every 0.1 s and gives a worker the next one at the
    second check after that, and it learns the number of CPUs only after a second, until which one
    works.
    """
    with (
        _having(_LOOP, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", LOOKS_EVERY_S),
        _having(_LIMITS, "ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S", LIMITS_EVERY_S),
    ):
        yield


@contextlib.contextmanager
def _having(module: str, path: str, value: Any) -> Iterator[None]:
    """Set a value of a module, or of a class in it (`Class.NAME`), until the context exits.

    Nothing is set if the module or the value does not exist.
    """
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
