"""The base model of a run is read while the classes of its networks are imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from impasto.checkpoints.keymap import ComponentKind
from impasto.config.run import RunConfig
from impasto.models.reading.opening_ahead import OpenedAhead, open_ahead
from impasto.training.builders.model import build_open_options
from impasto.training.compute.param_dtypes import build_dtypes


@contextmanager
def opened_ahead(config: RunConfig, accelerator: Accelerator) -> Iterator[OpenedAhead | None]:
    """Have the base model open, and its U-Net on its way into memory; nothing is read at the end.

    Nothing is written: a run that is refused meanwhile has lost nothing. None where processes
    share the run, which would all read at a time when one alone prepares.

    Args:
        config: The settings, of which those of memory may still be changed: what was read for
            others is read again.
        accelerator: The processes.
    """
    opened = None
    if accelerator.num_processes == 1:
        dtype = build_dtypes(config).get(ComponentKind.UNET, torch.float32)
        opened = open_ahead(config.model.path, build_open_options(config), dtype)
    try:
        yield opened
    finally:
        if opened is not None:
            opened.close()
