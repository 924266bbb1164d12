"""The rate of latents from a local object store against latents from its disk.

The store is moto's server in a separate process, which answers some hundred requests a second: a
slow store without a network. `step` is a pause per batch that stands for a GPU's work.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from impasto.data.caching.latent_cache import LatentCache
from impasto.data.records import Size
from impasto.remote_paths import machine_folder

LATENTS, IN_A_SHARD, BATCH = 2_048, 256, 16
STEP_S = 0.2
"""A step's pause: 80 images a second at a batch of 16, more than a large GPU trains at 512 px."""
WORKERS, AHEAD = 8, 16


def measure(scratch: Path) -> dict[str, str]:
    keys = [f"{n:032x}" for n in range(LATENTS)]
    filled(scratch / "latents", keys)
    random.Random(0).shuffle(keys)
    rate(LatentCache(scratch / "latents"), keys)
    disk = rate(LatentCache(scratch / "latents"), keys)
    disk_steps = rate(LatentCache(scratch / "latents"), keys, STEP_S)
    with server():
        place = Path("s3://bench/latents")
        os.environ["IMPASTO_STORE_CACHE"] = str(scratch / "writing")
        began = time.perf_counter()
        filled(place, keys)
        written = LATENTS / (time.perf_counter() - began)
        os.environ["IMPASTO_STORE_CACHE"] = str(scratch / "reading")
        cold = rate(LatentCache(place), keys, STEP_S)
        while len(list(machine_folder(place).glob("*.safetensors"))) < LATENTS // IN_A_SHARD:
            time.sleep(0.1)
        cache = LatentCache(place)
        rate(cache, keys)
        warm = rate(cache, keys)
        os.environ["IMPASTO_STORE_CACHE"] = str(scratch / "none")
        os.environ["IMPASTO_STORE_CACHE_GB"] = "0"
        rows = rate(LatentCache(place), keys[: LATENTS // 8])
        del os.environ["IMPASTO_STORE_CACHE_GB"]
    return {
        "latents from the disk, samples/s": f"{disk:,.0f}",
        "from the store by copies, against the disk": f"{warm / disk:.2f}",
        f"first epoch from the store, steps of {1000 * STEP_S:.0f} ms, against the disk": (
            f"{cold / disk_steps:.2f}"
        ),
        "from the store by rows alone, samples/s": f"{rows:,.0f}",
        "written into the store, samples/s": f"{written:,.0f}",
    }


def filled(folder: Path, keys: list[str]) -> None:
    cache = LatentCache(folder)
    moments = torch.randn(IN_A_SHARD, 4, 64, 64)
    names = sorted(keys)
    for start in range(0, LATENTS, IN_A_SHARD):
        cache.write_shard(Size(512, 512), names[start : start + IN_A_SHARD], moments, moments)


def rate(cache: LatentCache, keys: list[str], step_s: float = 0.0) -> float:
    """Return the samples per second in batches, prefetched by threads as in training."""
    batches = [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]
    workers, ahead = (WORKERS, AHEAD) if cache.answers_late else (1, 2)
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[object]] = deque()
        for batch in batches:
            waiting.append(pool.submit(cache.read, batch))
            if len(waiting) >= ahead + workers - 1:
                waiting.popleft().result()
                time.sleep(step_s)
        while waiting:
            waiting.popleft().result()
            time.sleep(step_s)
    return len(keys) / (time.perf_counter() - began)


@contextmanager
def server() -> Iterator[None]:
    """Start a local S3 server with a bucket, and set the environment variables that select it."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    words = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.2)
        boto3.client("s3").create_bucket(Bucket="bench")
        yield
    finally:
        process.terminate()
        process.wait()
