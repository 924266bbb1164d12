"""The trainer against a bare loop of the same U-Net step, in turn, in one process."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from impasto.data.dataset import iterate_updates
from impasto.demo.recipe import demo_config
from impasto.diffusion.draws import Draws
from impasto.training.devices import build_accelerator
from impasto.training.events import SilentEvents
from impasto.training.loop import TrainingLoop
from impasto.training.session import Ingredients, build_session

ROUNDS = 5
UPDATES = 20
BATCH = 8


def measure(scratch: Path) -> dict[str, str]:
    config = demo_config(
        scratch / "run",
        [
            f"training.batch_size={BATCH}",
            "training.ema_decay=none",
            "training.channels_last=false",
            "dataset.enable_bucket=false",
            "dataset.resolution=128",
            "previews.prompts=[]",
        ],
    )
    scratch.mkdir(parents=True, exist_ok=True)
    session = build_session(config, build_accelerator("no"), SilentEvents(), Ingredients())
    trainer = TrainingLoop(session, run=None, events=SilentEvents())
    bare, ours, begun = [], [], 0
    for _ in range(ROUNDS):
        bare.append(time_bare(session))
        ours.append(time_trainer(session, trainer, begun))
        begun += UPDATES
    ratios = [b / a for a, b in zip(bare, ours, strict=True)]
    return {
        f"bare step, batch {BATCH}, tiny, 128 px, ms": f"{1000 * statistics.median(bare):.1f}",
        "trainer's update, ms": f"{1000 * statistics.median(ours):.1f}",
        "trainer against bare, median of pairs": f"{statistics.median(ratios):.3f}",
        "trainer against bare, least and most": f"{min(ratios):.3f} to {max(ratios):.3f}",
    }


def time_bare(session) -> float:
    """Text encoder, forward, squared error, backward, clip, fused AdamW: without these, nothing."""
    unet, optimizer = session.trainable.unet, session.optimizer.optimizer
    parameters = list(unet.parameters())
    latents = Draws(0, 0, tuple(range(BATCH)), BATCH).normal((4, 16, 16), "bench")
    ids = session.conditioner.token_ids(["a cat"] * BATCH)
    t = torch.full((BATCH,), 500)
    began = time.perf_counter()
    for _ in range(UPDATES):
        with torch.no_grad():
            context = session.trainable.states(ids)
        output = unet(latents, t, encoder_hidden_states=context).sample
        (output - latents).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - began) / UPDATES


def time_trainer(session, trainer: TrainingLoop, first: int) -> float:
    """The trainer's own updates: data, text encoder and metrics included."""
    updates = iterate_updates(session.data, session.sampler, first, first + UPDATES, rank=0)
    began, samples = time.perf_counter(), 0
    for update, batches in updates:
        trainer._update(update, batches)
        samples += update.size
    trainer._meter.read()
    return (time.perf_counter() - began) / samples * BATCH
