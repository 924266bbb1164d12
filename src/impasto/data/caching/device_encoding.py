"""Encodes images on the device while a latent cache is filled, and records those that fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from impasto.data.caching.encoding import BatchInFlight, Encode, MomentsEncoder
from impasto.data.caching.latent_cache import LatentCache, LatentKeys
from impasto.data.caching.latent_writing import ShardWriter
from impasto.data.engines.process_group import CachePeers
from impasto.data.engines.stages import ErrorPolicy, Failure, chunks
from impasto.data.pixels.rendering import Rendered
from impasto.data.records import PlannedImage, SkippedFile
from impasto.errors import DatasetError
from impasto.parsing import parse_json


@dataclass(frozen=True)
class Order:
    """An image with the latents and mask to be made of it, none of which is in the cache.

    Attributes:
        image: The image.
        missing: The keys to make; all empty if this process cannot read the file.
        latents: Number of latents to make, as agreed by all processes of a run.
    """

    image: PlannedImage
    missing: LatentKeys
    latents: int


class Failures:
    """The images that cannot be used, each once.

    Attributes:
        items: The images, with reasons.
        paths: The paths of all of them.
        may_pass: Whether one of the failures is transient, so that another attempt may succeed.
    """

    def __init__(self, policy: ErrorPolicy) -> None:
        self._policy = policy
        self.items: list[SkippedFile] = []
        self.paths: set[Path] = set()
        self.may_pass = False

    def add(self, image: PlannedImage, failure: Failure) -> None:
        """Record an image that cannot be used, or raise, depending on the policy.

        Raises:
            DatasetError: The policy is `stop`.
        """
        path, reason = image.record.path, failure.reason
        self.may_pass |= failure.is_transient
        if self._policy == "stop":
            raise DatasetError(
                f"{path}: {reason}. Repair or remove it, or set dataset.on_error to skip."
            )
        if path not in self.paths:
            self.paths.add(path)
            self.items.append(SkippedFile(path, reason))

    def join(self, begin: int, peers: CachePeers) -> None:
        """Merge the failures of all processes of a run; every process must call this.

        Args:
            begin: Number of failures that all processes already had in common.
            peers: The processes that divide the work, with their process group.
        """
        if peers.group.size == 1:
            return
        own = [[str(item.path), item.reason] for item in self.items[begin:]]
        told = peers.group.gather(json.dumps([own, self.may_pass]))
        del self.items[begin:]
        self.paths = {item.path for item in self.items}
        for text in told:
            items, may_pass = parse_json(text, halves=True)
            self.may_pass |= may_pass
            for name, reason in items:
                if (path := Path(name)) not in self.paths:
                    self.paths.add(path)
                    self.items.append(SkippedFile(path, reason))


@dataclass(frozen=True)
class Task:
    """An image or its mirror image, to be encoded under a key."""

    image: PlannedImage
    key: str
    pixels: np.ndarray


def tasks_of(
    rendered: Sequence[tuple[Order, Rendered]], is_there: Callable[[str], bool]
) -> Iterator[Task]:
    """Yield what to encode of rendered images: each image and, if ordered, its mirror image.

    Args:
        rendered: Orders with their pixels.
        is_there: Returns whether a key is in the cache by now, written by another process.
    """
    for order, image in rendered:
        if order.missing.plain and not is_there(order.missing.plain):
            yield Task(order.image, order.missing.plain, image.pixels)
        if order.missing.flipped and not is_there(order.missing.flipped):
            yield Task(order.image, order.missing.flipped, image.pixels[:, ::-1])


class DeviceEncoder:
    """Encodes images one batch behind: the next batch is prepared while the GPU computes.

    Args:
        cache: Keys that another process has written to it meanwhile are skipped.
        encoder: The VAE.
        writer: Receives moments and masks.
        failures: Receives the images that cannot be encoded.

    Attributes:
        remade: Images that were encoded again in float32.
    """

    def __init__(
        self, cache: LatentCache, encoder: MomentsEncoder, writer: ShardWriter, failures: Failures
    ) -> None:
        self._cache, self._writer, self._failures = cache, writer, failures
        self._encode, self._batch_size = Encode(encoder), encoder.batch_size
        self._behind: tuple[Sequence[Task], BatchInFlight] | None = None
        self.remade: set[Path] = set()

    def take(self, rendered: Sequence[tuple[Order, Rendered]]) -> None:
        """Start to encode images and mirror images as ordered; pass their masks to the writer."""
        tasks = list(tasks_of(rendered, self._cache.__contains__))
        for order, image in rendered:
            if order.missing.mask and image.mask is not None:
                mask = torch.from_numpy(image.mask)
                self._writer.add_mask(order.image.bucket, order.missing.mask, mask)
        for part in chunks(tasks, self._batch_size):
            begun = self._encode.begin([task.pixels for task in part])
            self.finish()
            self._behind = part, begun

    def finish(self) -> None:
        """Wait for the batch that the device is working on, and pass its moments to the writer."""
        if self._behind is None:
            return
        tasks, begun = self._behind
        self._behind = None
        for task, outcome in zip(tasks, self._encode.finish(begun), strict=True):
            if isinstance(outcome, Failure):
                self._failures.add(task.image, outcome)
            else:
                self._writer.add(task.image.bucket, task.key, *outcome)
        self.remade |= {tasks[i].image.record.path for i in begun.remade}
