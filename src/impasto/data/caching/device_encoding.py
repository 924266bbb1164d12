"""What the device does while a latent cache is filled, and what cannot be encoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from impasto.data.caching.encoding import Begun, Encode, MomentsEncoder
from impasto.data.caching.latent_cache import LatentCache, LatentKeys
from impasto.data.caching.latent_writing import ShardWriter
from impasto.data.engines.process_group import CacheShare
from impasto.data.engines.stages import ErrorPolicy, Failure, chunks
from impasto.data.pixels.rendering import Rendered
from impasto.data.records import PlannedImage, SkippedFile
from impasto.errors import DatasetError
from impasto.parsing import parse_json


@dataclass(frozen=True)
class Order:
    """An image and what is to be made of it: only keys that are not in the cache.

    Attributes:
        image: The image.
        missing: What to make; nothing where this process cannot read the file.
        latents: How many latents are to be made of it, as all processes of a run have agreed.
    """

    image: PlannedImage
    missing: LatentKeys
    latents: int


class Failures:
    """The images that cannot be used, each once.

    Attributes:
        items: They, with reasons.
        paths: Of all of them.
        may_pass: Whether the same file of one may do another time.
    """

    def __init__(self, policy: ErrorPolicy) -> None:
        self._policy = policy
        self.items: list[SkippedFile] = []
        self.paths: set[Path] = set()
        self.may_pass = False

    def add(self, image: PlannedImage, failure: Failure) -> None:
        """Note an image, or end it all.

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

    def join(self, begin: int, share: CacheShare) -> None:
        """Have the images that any process of a run cannot use; all of them call it.

        Args:
            begin: How many there were when all processes had the same.
            share: What this process does.
        """
        if share.group.size == 1:
            return
        own = [[str(item.path), item.reason] for item in self.items[begin:]]
        told = share.group.gather(json.dumps([own, self.may_pass]))
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
    """What is to be encoded of images: they, and their mirror images where these are ordered.

    Args:
        rendered: Orders with their pixels.
        is_there: Whether a key is in the cache by now, put there by another process.
    """
    for order, image in rendered:
        if order.missing.plain and not is_there(order.missing.plain):
            yield Task(order.image, order.missing.plain, image.pixels)
        if order.missing.flipped and not is_there(order.missing.flipped):
            yield Task(order.image, order.missing.flipped, image.pixels[:, ::-1])


class DeviceEncoder:
    """Encodes images, one batch behind: what comes next is made ready while a GPU computes.

    Args:
        cache: What another process has put there meanwhile is left out.
        encoder: The VAE.
        writer: Is given moments and masks.
        failures: Are given what cannot be encoded.

    Attributes:
        remade: Images that were encoded again in float32.
    """

    def __init__(
        self, cache: LatentCache, encoder: MomentsEncoder, writer: ShardWriter, failures: Failures
    ) -> None:
        self._cache, self._writer, self._failures = cache, writer, failures
        self._encode, self._batch_size = Encode(encoder), encoder.batch_size
        self._behind: tuple[Sequence[Task], Begun] | None = None
        self.remade: set[Path] = set()

    def take(self, rendered: Sequence[tuple[Order, Rendered]]) -> None:
        """Encode images and mirror images as ordered, and keep their masks."""
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
        """Hand on what the device still works on."""
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
