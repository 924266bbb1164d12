"""Ray Data against the local threads and processes: rates of the same stages, taken in turn.

Ray is started beforehand, and its start has a separate row; each engine runs all stages once
before it is measured.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.pictures import draw_photographs
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.engines.ray_engine import RayEngine
from impasto.data.engines.stages import chunks
from impasto.data.pixels.rendering import Render
from impasto.data.planning.plan import plan_images
from impasto.data.records import PlannedImage, Size
from impasto.data.scanning.scan import scan_folder
from impasto.models.networks.vae import moments_encoder
from impasto.models.networks.vae_recipe import load_vae, with_recipe
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.architectures import find_architecture, write_random_model

PICTURES, SIDE, BATCH, ROUNDS = 160, 512, 4, 2
PASSES = 6
"""How often each image is decoded in a round, so that Ray's start of a run counts for little."""
_CPU = torch.device("cpu")


def measure(scratch: Path) -> dict[str, str]:
    draw_photographs(scratch / "pictures", (1200, 900), PICTURES)
    planned = plan_images(scan_folder(scratch / "pictures").records, Size(SIDE, SIDE)).images
    model = str(scratch / "model")
    write_random_model(find_architecture("tiny"), Path(model), seed=0, dtype=torch.float32)
    vae = load_vae(model, OpenOptions())
    bare = moments_encoder(vae, batch_size=BATCH, device=_CPU)
    encoder = with_recipe(bare, vae, model, None, _CPU)
    ray = RayEngine(None, [scratch / "pictures"], scratch)
    try:
        began = time.perf_counter()
        ray.running()
        start = time.perf_counter() - began
        engines: dict[str, Engine] = {"local": LOCAL, "ray": ray}
        decoded = taken(engines, lambda engine: decode(engine, planned))
        cache = scratch / "cache"

        def encode(engine: Engine) -> None:
            shutil.rmtree(cache, ignore_errors=True)
            cache_latents(planned, LatentCache(cache), encoder, workers=2, engine=engine)

        encoded = taken(engines, encode)
    finally:
        ray.close()
    return {
        "Ray started on this machine, s": f"{start:.1f}",
        **rows("decoding 1200x900 JPEGs to 512 px", decoded, PASSES * PICTURES),
        **rows("the same, hashed, encoded by a tiny VAE, and written", encoded, PICTURES),
    }


def decode(engine: Engine, planned: Sequence[PlannedImage]) -> None:
    executor = engine.executor(Render(), workers=2, processes=True)
    for _ in executor.run(chunks([*planned] * PASSES, BATCH)):
        pass


def taken(engines: dict[str, Engine], work: Callable[[Engine], None]) -> dict[str, list[float]]:
    """Return the seconds of each round after the first, with the engines in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(ROUNDS + 1):
        for name, engine in engines.items():
            began = time.perf_counter()
            work(engine)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def rows(what: str, seconds: dict[str, list[float]], images: int) -> dict[str, str]:
    rates = {name: images / statistics.median(times) for name, times in seconds.items()}
    pairs = zip(seconds["local"], seconds["ray"], strict=True)
    ratios = sorted(local / ray for local, ray in pairs)
    return {
        f"{what}: local, ray, images/s": f"{rates['local']:.1f}, {rates['ray']:.1f}",
        f"{what}: rate with Ray against local, median, least to most": (
            f"{statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}"
        ),
    }
