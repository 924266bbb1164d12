"""Rates of the dataset code: scanning, planning, and reading cached latents."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from impasto.data.caching.latent_cache import LatentCache
from impasto.data.planning.plan import plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import scan_folder

FILES = 10_000
LATENTS = 4_096
BATCH = 16


def measure(scratch: Path) -> dict[str, str]:
    folder = write_images(scratch / "pictures")
    index = scratch / "scan.json"
    scan_folder(folder)  # warms the file cache
    began = time.perf_counter()
    scan = scan_folder(folder, index=index)
    scanned = time.perf_counter()
    plan_images(scan.records, Size(512, 512))
    planned = time.perf_counter()
    scan_folder(folder, index=index)
    again = time.perf_counter()
    rates = {
        "scan and plan, files/s": f"{FILES / (planned - began):,.0f}",
        "of that, plan alone, files/s": f"{FILES / (planned - scanned):,.0f}",
        "second scan, files/s": f"{FILES / (again - planned):,.0f}",
        "second scan against the first": f"{(scanned - began) / (again - planned):.1f}x faster",
    }
    return {**rates, **cache_reads(scratch / "latents")}


def write_images(folder: Path) -> Path:
    """Write JPEGs of about 10 KB into sub-folders of 1,000, each with a caption."""
    rng = np.random.default_rng(0)
    sizes = [(320, 240), (240, 320), (256, 256), (400, 220)]
    encoded = []
    for width, height in sizes:
        path = folder / f"template-{width}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=60)
        encoded.append(path.read_bytes())
        path.unlink()
    for number in range(FILES):
        path = folder / f"{number // 1000:02d}" / f"{number:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded[number % len(encoded)])
        path.with_suffix(".txt").write_text(f"image number {number}", encoding="utf-8")
    return folder


def cache_reads(folder: Path) -> dict[str, str]:
    """Time reading moments of 64x64 latents in random order, page cache warm, in one process."""
    cache = LatentCache(folder)
    moments = torch.randn(256, 4, 64, 64)
    keys: list[str] = []
    for shard in range(LATENTS // 256):
        names = [f"{shard:04d}-{row:04d}" for row in range(256)]
        cache.write_shard(Size(512, 512), names, moments, moments)
        keys += names
    cache = LatentCache(folder)
    random.Random(0).shuffle(keys)
    batches = [keys[i : i + BATCH] for i in range(0, LATENTS, BATCH)]
    for batch in batches:
        cache.read(batch)
    began = time.perf_counter()
    for batch in batches:
        for moments in cache.read(batch):
            moments.float()
    seconds = time.perf_counter() - began
    return {"cached 64x64 latents, samples/s": f"{LATENTS / seconds:,.0f}"}
