"""The processes that a launcher started, before PyTorch is imported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from impasto.data.engines.process_group import ProcessGroup


@contextlib.contextmanager
def failing_together() -> Iterator[ProcessGroup | None]:
    """Have what ends one of several processes end all of them; PyTorch is imported for that.

    The value is the processes; None without a launcher.
    """
    if "LOCAL_RANK" not in os.environ:
        yield None
        return
    from impasto.training.lifecycle import shared_start

    with shared_start.failing_together() as group:
        yield group
