"""Estimates what a dataset of any size would take on this machine, from rates measured on a sample.

The existing images are the sample: their bytes, captions, sizes and mirroring stand for those of N
images. Each rate is measured briefly and multiplied. Disk use and RAM follow from the columns that
are stored; the RAM of a scan is an estimate, and nothing is run with N images.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from impasto import files
from impasto.config.dataset import DatasetConfig
from impasto.data.columns.tables import TableFolder, rows_of
from impasto.data.engines.stages import LocalExecutor, chunks, default_workers
from impasto.data.folders.found_image import FoundImage
from impasto.data.folders.listing import Sidecars, list_folder
from impasto.data.loading.sampler import EpochSampler
from impasto.data.pixels.rendering import Render
from impasto.data.planning.groups import Group, Groups
from impasto.data.planning.plan import Plan
from impasto.data.record_table import RecordTable
from impasto.data.records import CELL, CHANNELS, PlannedImage, Size
from impasto.data.scanning.probing import INDEX, Probe
from impasto.data.sharding.shard_files import SHARD_BYTES
from impasto.datasets.build import plan_dataset

SAMPLE = 128
"""Most images that rates are measured with."""
_ROWS = 200_000  # of the synthetic tables
_BATCH = 16
_HASHED = 64 << 20  # bytes
_LISTED = 32  # folders
_STAMP_BYTES = 56  # of a row of the scan index besides its texts, and their offsets
_KEY_BYTES = 16
_MOMENTS = 2 * CHANNELS * 2  # mean and log variance of a cell, in half precision
_INDEXED = 28  # bytes of a latent in the copy of all keys
_NAMED = 48  # bytes of a latent in the file of its shard: its key and CRC-32 as text


@dataclass(frozen=True)
class Stage:
    """What one stage takes for all images.

    Attributes:
        name: The name of the stage.
        seconds: How long it takes; None if unknown.
        bytes: Bytes it leaves on disk.
        files: Files it leaves on disk.
        ram: Bytes of RAM during the stage that grow with the dataset.
    """

    name: str
    seconds: float | None
    bytes: float = 0.0
    files: int = 0
    ram: float = 0.0


@dataclass(frozen=True)
class Rates:
    """Measured rates, each in seconds per image.

    Attributes:
        listing: Finding a file and reading its modification time.
        probing: Reading its header and caption.
        hashing: Reading and hashing the whole file.
        decoding: Decoding, resizing and cropping it, on all CPUs.
        reading: Reading its row of an index.
        planning: Choosing its bucket and crop.
        dealing: Computing its place in an epoch.
    """

    listing: float
    probing: float
    hashing: float
    decoding: float
    reading: float
    planning: float
    dealing: float


@dataclass(frozen=True)
class Sampled:
    """Averages per image of the sample.

    Attributes:
        texts: Bytes of its path, caption and tags.
        moments: Bytes of its latents, mirrored ones included.
        latents: How many latents it has: 1, or 2 if it is mirrored too.
        buckets: How many different buckets there are.
        resident: Bytes of RAM per image in each training process.
        scanned: Bytes of RAM per image while scanning.
    """

    texts: float
    moments: float
    latents: float
    buckets: int
    resident: float
    scanned: float


def sample_of(plan: Plan) -> Sampled:
    """Average the sizes of planned images."""
    table = plan.table
    records = table.records
    texts = sum(
        len(text.encode("utf-8"))
        for name in ("path", "caption", "tags")
        for chunk in records.text_chunks(name)
        for text in chunk
    )
    flips = [use.subset.flips for use in records.uses]
    latents = 1.0 + float(np.mean(np.array(flips)[records.numbers["use"]]))
    cells = table.areas[table.codes, 0].mean() / CELL**2
    own = 4 + _KEY_BYTES * latents
    numbers = sum(column.nbytes for column in records.numbers.values()) / len(records)
    return Sampled(
        texts / len(records),
        float(cells) * _MOMENTS * latents,
        latents,
        len(table.bucket_counts()),
        own + numbers + 4 + 3 * _dealt_bytes(),  # its place in a group; an epoch and its neighbours
        numbers + own,
    )


def stages_of(
    count: int, rates: Rates, sampled: Sampled, encoded_per_s: float | None
) -> list[Stage]:
    """Estimate what each stage takes for `count` images.

    Args:
        count: How many images.
        rates: The measured rates.
        sampled: Averages per image.
        encoded_per_s: Images per second that the VAE encodes; None if unknown.
    """
    index = count * (sampled.texts + _STAMP_BYTES)
    hashes = count * (sampled.texts + _KEY_BYTES * 3)
    moments = count * sampled.moments
    portions = max(1, -(-count // (1 << 17)))
    shards = int(moments // SHARD_BYTES) + sampled.buckets * portions
    keys = count * sampled.latents * (_NAMED + _INDEXED)
    first = count * (rates.listing + rates.probing)
    encoding = None if encoded_per_s is None else count * sampled.latents / encoded_per_s
    start = count * (rates.reading + rates.planning + rates.dealing)
    found = count * 2.5 * sampled.texts  # names of the image and caption files found
    return [
        Stage("First scan", first, index, 1, found),
        Stage("Second scan", count * rates.listing, 0, 0, found),
        Stage("Plan", count * rates.planning, 0, 0, count * sampled.scanned),
        Stage("Hashes of the files", count * rates.hashing, hashes, 1),
        Stage("Decoding", count * rates.decoding),
        Stage("Encoding", encoding, moments + keys, 2 * shards),
        Stage("Start of training", start, count * 36.0, 1, count * sampled.resident),
    ]


def measure_rates(config: DatasetConfig, plan: Plan) -> Rates:
    """Measure this machine with some of the images of a plan.

    Args:
        config: The settings that the images were planned with.
        plan: The sample.
    """
    images = [plan.images[n] for n in _spread(len(plan.images), SAMPLE)]
    items = [FoundImage(str(image.record.path), []) for image in images]
    workers = default_workers()
    probing = _seconds(lambda: _run(LocalExecutor(Probe(), workers=workers + 1), items))
    decoding = _seconds(lambda: _run(LocalExecutor(Render(), workers=workers), images))
    return Rates(
        _listing_seconds(images),
        probing / len(images),
        _hash_seconds(images),
        decoding / len(images),
        _reading_seconds() / _ROWS,
        _planning_seconds(config, plan) / _ROWS,
        _seconds(lambda: _sampler(_ROWS).optimizer_step(0)) / _ROWS,
    )


def _run(executor: LocalExecutor[Any, Any], items: Sequence[Any]) -> None:
    for _ in executor.run(chunks(items, 8)):
        pass


def _listing_seconds(images: Sequence[PlannedImage]) -> float:
    """Return the seconds to list the folders of some images and stat each file, per file found."""
    folders = list(dict.fromkeys(image.record.path.parent for image in images))
    seconds = found = 0.0
    for folder in folders[:_LISTED]:
        began = time.perf_counter()
        found += len(list_folder(str(folder), Sidecars(), recursive=False)[0])
        seconds += time.perf_counter() - began
    return seconds / found


def _hash_seconds(images: Sequence[PlannedImage]) -> float:
    """Return the seconds to read and hash an image's file, on average, with four threads."""
    paths, read = [], 0
    for image in images:
        paths.append(image.record.path)
        read += image.record.stamp.size_bytes
        if read > _HASHED:
            break
    with ThreadPoolExecutor(4) as pool:
        return _seconds(lambda: list(pool.map(files.sha256_of, paths))) / len(paths)


def _reading_seconds() -> float:
    """Return the seconds to open an index: verify its checksum and map its columns."""
    row = ("x" * 60, *[1] * 6, 512, 512, 0, "y" * 60, "", "")
    with tempfile.TemporaryDirectory() as folder:
        table = TableFolder(Path(folder), INDEX, [0])
        table.append(rows_of(INDEX, [row] * _ROWS))
        return _seconds(table.read)


def _planning_seconds(config: DatasetConfig, plan: Plan) -> float:
    """Return the seconds to plan images of the sample's sizes, each a little larger or smaller."""
    records = plan.table.records
    rows = np.arange(_ROWS) % len(records)
    changed = np.random.default_rng(0).integers(-9, 10, _ROWS).astype(np.int32)
    own = {name: column[rows] for name, column in records.numbers.items() if name != "cut"}
    own["width"] = np.maximum(64, own["width"] + changed)
    table = RecordTable(records.texts, records.select(rows).rows, own, records.uses)
    return _seconds(lambda: plan_dataset(config, table))


def _sampler(count: int) -> EpochSampler:
    groups = Groups((Group(0, Size(512, 512)),), np.zeros(count, dtype=np.int32))
    return EpochSampler(groups, batch_sizes=dict.fromkeys(groups.table, _BATCH), seed=0)


def _dealt_bytes() -> float:
    """Return the bytes per showing in a dealt epoch: its image, and part of its batch's start."""
    return 4 + (8 + 4) / _BATCH


def _spread(count: int, most: int) -> list[int]:
    indices: list[int] = np.linspace(0, count - 1, min(count, most)).astype(int).tolist()
    return indices


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
