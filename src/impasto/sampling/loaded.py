"""Keeps the last model and its hypernetworks loaded between requests for images."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from impasto import presence
from impasto.errors import ModelError
from impasto.models.networks.hypernetwork import Hypernetwork, HypernetworkStack, load_hypernetworks
from impasto.models.networks.loading import BaseModel, load_base_model

Mark = tuple[str, tuple[tuple[str, int, int], ...]]
"""A path with the sizes and modification times of its files; it differs between models."""


class LoadedModels:
    """Keeps the most recently requested model loaded.

    Args:
        device: Device on which images are generated.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loads = 0
        self._mark: Mark | None = None
        self._base: BaseModel | None = None
        self._networks: dict[Mark, Hypernetwork] = {}

    def model(self, path: str) -> BaseModel:
        """Return the model at a path, loading it unless it is loaded already.

        The previous model is unloaded first, so that memory is never needed for both.

        Raises:
            ModelError: It does not exist, or cannot be read.
        """
        mark = mark_of(path)
        if self._base is None or mark != self._mark:
            self.release()
            self._base = load_base_model(path)
            self._mark = mark
            self.loads += 1
        return self._base

    def is_loaded(self, path: str) -> bool:
        """Return whether the model at a path is the loaded one."""
        return self._base is not None and mark_of(path) == self._mark

    def hypernetworks(self, given: Sequence[tuple[str, float]]) -> HypernetworkStack:
        """Load hypernetworks with their strengths from files, reusing those of the last call.

        Raises:
            ConfigError: Two have the same name.
            ModelError: A file is missing, damaged, or no hypernetwork.
        """
        stack, kept = HypernetworkStack(), {}
        for path, strength in given:
            mark = mark_of(path)
            network = self._networks.get(mark)
            if network is None:
                (network,) = load_hypernetworks([f"{path}:1"]).networks.values()
            kept[mark] = network
            stack.add(Path(path).stem, network, strength)
        self._networks = kept
        return stack

    def release(self) -> None:
        """Unload the model, and return its memory to the system."""
        self._base = self._mark = None
        self._networks = {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def mark_of(path: str) -> Mark:
    """Return the path, sizes and modification times that identify a model on disk.

    Raises:
        ModelError: The path does not exist. Hub ids are not paths: a request downloads nothing.
    """
    file_or_folder = Path(path)
    if not presence.exists(file_or_folder):
        raise ModelError(
            f"{path} does not exist: it was removed, renamed or moved. Choose another model."
        )
    found = (
        [file_or_folder] if presence.is_file(file_or_folder) else sorted(file_or_folder.rglob("*"))
    )
    return path, tuple(
        (str(file), file.stat().st_size, file.stat().st_mtime_ns)
        for file in found
        if presence.is_file(file)
    )
