"""Models that stay loaded between drawings: one model, and the hypernetworks drawn with last."""

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
"""A path with the size and time of change of its files: another mark is another model."""


class LoadedModels:
    """Keeps the model that was asked for last.

    Args:
        device: Where it draws.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loads = 0
        self._mark: Mark | None = None
        self._base: BaseModel | None = None
        self._networks: dict[Mark, Hypernetwork] = {}

    def model(self, path: str) -> BaseModel:
        """The model at a path, read only if it is not the one of the last time.

        The one before is unloaded first, so that memory is never needed for both.

        Raises:
            ModelError: There is none, or it cannot be read.
        """
        mark = mark_of(path)
        if self._base is None or mark != self._mark:
            self.release()
            self._base = load_base_model(path)
            self._mark = mark
            self.loads += 1
        return self._base

    def is_loaded(self, path: str) -> bool:
        """Whether the model at a path is the one that is loaded."""
        return self._base is not None and mark_of(path) == self._mark

    def hypernetworks(self, given: Sequence[tuple[str, float]]) -> HypernetworkStack:
        """Hypernetworks from files, each with its strength; those of the last time are kept.

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
        """Let the model go, and give its memory back to the system."""
        self._base = self._mark = None
        self._networks = {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def mark_of(path: str) -> Mark:
    """What tells a model on disk from another one.

    Raises:
        ModelError: There is nothing at that path. Names of the Hub are no paths: a request
            downloads nothing.
    """
    file_or_folder = Path(path)
    if not presence.exists(file_or_folder):
        raise ModelError(
            f"{path} is not there: it was removed, renamed or moved. Choose another model."
        )
    found = (
        [file_or_folder] if presence.is_file(file_or_folder) else sorted(file_or_folder.rglob("*"))
    )
    return path, tuple(
        (str(file), file.stat().st_size, file.stat().st_mtime_ns)
        for file in found
        if presence.is_file(file)
    )
