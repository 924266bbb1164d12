"""Joins the processes of a launcher, only if there are several, so that all fail together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from impasto.data.engines.process_group import ProcessGroup


@contextlib.contextmanager
def failing_together() -> Iterator[ProcessGroup | None]:
    """Make an error in one of several processes end all of them.

    Yields the group of processes; None without a launcher, and then PyTorch is not imported.
    """
    if "LOCAL_RANK" not in os.environ:
        yield None
        return
    from impasto.training.lifecycle import shared_start

    with shared_start.failing_together() as group:
        yield group
