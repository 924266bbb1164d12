"""Finds images that are the same or nearly the same, by content and by perceptual hash.

The perceptual hash is pHash: 64 bits from the low frequencies of a 32x32 image, computed in
integers, so that it is the same on every machine. It equals `phash` of the ImageHash library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from impasto.data.columns.keyed import KeyedTable
from impasto.data.columns.tables import FormerFile, rows_of
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.engines.stages import Failure, chunks
from impasto.data.inspecting.health_limits import NEAR_DUPLICATE_BITS
from impasto.data.pixels import images
from impasto.data.pixels.images import UnreadableImageError
from impasto.data.pixels.rendering import require_scanned_size
from impasto.data.records import ImageRecord, Size, SkippedFile
from impasto.progress import Progress

_AT_LEAST = Size(64, 64)
_VERSION, _FORMER = [4, images.PREPROCESSING_VERSION], [3, images.PREPROCESSING_VERSION]
_SCHEMA = pa.schema([("sha256", pa.large_string()), ("look", pa.uint64())])
_SIDE, _KEPT = 32, 8  # side of the small image, and of its block of lowest frequencies
_COSINES = np.rint(
    np.cos(np.pi * np.outer(np.arange(_KEPT), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE)) * 2**20
).astype(np.int64)  # rows of the DCT-II; their products with bytes stay below 2**58


def perceptual_hash(image: Image.Image) -> int:
    """Return the pHash of an image: 64 bits, few of which change when it is resized or saved again.

    A bit is set if one of the 8x8 lowest frequencies of the 32x32 grey image is above their median
    (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section
    3.2.1, with the constant term included, as ImageHash 4.3.2 does).
    """
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    frequencies = (_COSINES @ np.asarray(grey, dtype=np.int64) @ _COSINES.T).ravel()
    middle = np.sort(frequencies)[_KEPT * _KEPT // 2 - 1 :][:2]
    above = 2 * frequencies > middle.sum()
    return int.from_bytes(np.packbits(above).tobytes(), "big")


class HashImages:
    """Stage that turns records into perceptual hashes; an undecodable image is a failure."""

    def __call__(self, batch: Sequence[ImageRecord]) -> list[int | Failure]:
        """Decode a batch of images and hash them."""
        return [self._look(record) for record in batch]

    def _look(self, record: ImageRecord) -> int | Failure:
        try:
            image = images.read_rgb(record.path, at_least=_AT_LEAST)
            require_scanned_size(image, record)
        except (UnreadableImageError, OSError) as error:
            return images.failure_of(error)
        return perceptual_hash(image)


class PerceptualHashes:
    """Perceptual hashes of images, cached by content; failures are not cached.

    Args:
        file: The JSON file of earlier versions; the table that replaces it has the extension
            `.table`.
    """

    def __init__(self, file: Path) -> None:
        self._known = KeyedTable(file, _SCHEMA, _VERSION, FormerFile(file, _FORMER, _of_former))

    def of(
        self,
        records: Sequence[ImageRecord],
        digests: Mapping[Path, str],
        progress: Progress,
        engine: Engine = LOCAL,
    ) -> tuple[dict[Path, int], list[SkippedFile]]:
        """Return the hashes of decodable images, and the other images with reasons.

        Raises:
            StorageError: The hashes could not be written.
        """
        known = self._known.look_up(set(digests.values()))
        fresh = [r for r in records if digests.get(r.path, "") not in known]
        executor = engine.executor(HashImages())
        faults: list[SkippedFile] = []
        with progress.stage("Hashing images", len(fresh), "images") as advance:
            for outcomes in executor.run(chunks(fresh, 8)):
                for record, outcome in outcomes:
                    if isinstance(outcome, Failure):
                        faults.append(SkippedFile(record.path, outcome.reason))
                    elif record.path in digests:
                        self._known.add(digests[record.path], outcome)
                advance(len(outcomes))
        if len(fresh) > len(faults):
            self._known.finish()
        return self.known(digests), faults

    def known(self, digests: Mapping[Path, str]) -> dict[Path, int]:
        """Return the cached hashes of files with these contents; decodes nothing."""
        known = self._known.look_up(set(digests.values()))
        return {path: known[digest][0] for path, digest in digests.items() if digest in known}


def _of_former(content: Any) -> pa.Table:
    """Return the rows of a former version's JSON file: SHA-256 -> perceptual hash."""
    rows = [(digest, look) for digest, look in content.items() if isinstance(look, int)]
    return rows_of(_SCHEMA, rows)


def exact_duplicates(digests: Mapping[Path, str]) -> list[list[Path]]:
    """Return files with the same content, in groups of two or more."""
    groups: dict[str, list[Path]] = {}
    for path, digest in digests.items():
        groups.setdefault(digest, []).append(path)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def near_duplicates(
    hashes: Mapping[Path, int], advance: Callable[[int], None], most_bits: int = NEAR_DUPLICATE_BITS
) -> list[list[Path]]:
    """Group images whose hashes differ in few bits, directly or through others in between.

    Every pair of different hashes is compared, in blocks; 20,000 images take about a second,
    however many of them are alike.
    """
    of_hash: dict[int, list[Path]] = {}
    for path, value in hashes.items():
        of_hash.setdefault(value, []).append(path)
    equal = list(of_hash.values())
    values = np.fromiter(of_hash, dtype=np.uint64, count=len(equal))
    labels = np.arange(len(equal))  # a group's label is the index of one of its hashes
    rows = max(1, (1 << 22) // max(1, len(equal)))
    for start in range(0, len(equal), rows):
        block = values[start : start + rows]
        is_near = np.bitwise_count(block[:, None] ^ values[None, start:]) <= most_bits
        for i, near in enumerate(is_near, start=start):
            linked = labels[start:][near]
            if (linked != labels[i]).any():
                labels[np.isin(labels, linked)] = labels[i]
        advance(sum(map(len, equal[start : start + rows])))
    groups: dict[int, list[Path]] = {}
    for label, paths in zip(labels.tolist(), equal, strict=True):
        groups.setdefault(label, []).extend(paths)
    return [sorted(group) for group in groups.values() if len(group) > 1]
