"""Reads the base model of a run ahead, while the classes of its networks are imported."""

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
    """Open the base model and read its U-Net into RAM in the background; stop reading on exit.

    Nothing is written, so a run that is refused meanwhile leaves nothing behind. Yields None if the
    model cannot be opened ahead, and if the run has several processes, since all of them would read
    while only one prepares.

    Args:
        config: The settings. Those that decide the use of memory may still change; tensors that
            were read for other ones are read again.
        accelerator: The processes of the run.
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
