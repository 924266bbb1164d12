"""The trainer against loops that other programs run over the same networks, taken in turn.

`bare`: U-Net, loss, backward, clipping, fused AdamW: the minimum for a step. `diffusers`: a step of
diffusers' `examples/text_to_image/train_text_to_image.py`: the text encoder, DDPMScheduler's noise,
AdamW with its defaults, a learning-rate scheduler, the loss read at every step; without its VAE,
since latents are cached here, and with it. `sd-scripts`: a step of `fine_tune.py` with cached
latents: the same with 225 tokens in three chunks and the penultimate layer (its loop:
library/train_util.py, fine_tune.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler

from impasto.data.loading.step_batches import iterate_steps
from impasto.demo.recipe import demo_config
from impasto.runs import RunDirectory
from impasto.training.assembly.build import build_session
from impasto.training.builders.overrides import Overrides
from impasto.training.devices import build_accelerator
from impasto.training.events import SilentEvents
from impasto.training.loop import TrainingLoop
from impasto.training.session import Session


@dataclass
class Comparison:
    """A session of the trainer, and other loops over its networks and its optimizer.

    Attributes:
        session: A session with images of one size.
        batch: Images per step.
        side: Side of the images in pixels.
    """

    session: Session
    batch: int
    side: int

    def __post_init__(self) -> None:
        self._loop = TrainingLoop(
            self.session, RunDirectory(self.session.config.output_dir), SilentEvents()
        )
        self._unet = self.session.trainable.unet
        self._done = 0
        self._ids = torch.randint(1, 400, (self.batch, 77))
        self._pixels = torch.randn((self.batch, 3, self.side, self.side))
        self._scheduler = DDPMScheduler.from_config(dict(self.session.model.scheduler_config))

    def bare(self) -> None:
        """Run the minimum for a step."""
        latents = torch.randn((self.batch, 4, self.side // 8, self.side // 8))
        with torch.no_grad():
            states = self.session.trainable.states(self._ids)
        t = torch.full((self.batch,), 500)
        output = self._unet(latents, t, encoder_hidden_states=states).sample
        (output - latents).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self._unet.parameters(), 1.0)
        self.session.optimizer.step()
        self.session.optimizer.zero_grad()

    def ours(self) -> None:
        """Run the trainer's own step, including data, text and metrics."""
        session = self.session
        updates = iterate_steps(session.data, session.sampler, self._done, self._done + 1, rank=0)
        for update, batches in updates:
            self._loop.step(update, batches)
        self._loop.wait_for_metrics()
        self._done += 1

    def sd_scripts(self) -> None:
        """Run a step like that of sd-scripts' fine_tune.py, with three chunks of text."""
        self.diffusers(chunks=3)

    def diffusers(self, *, with_vae: bool = False, chunks: int = 1) -> None:
        """Run a step like that of diffusers' script."""
        session, unet = self.session, self._unet
        optimizer = session.optimizer
        for group in optimizer.param_groups:
            group["fused"] = None  # the default, as in the script
        rates = get_scheduler("constant", optimizer=optimizer)
        latents = torch.randn((self.batch, 4, self.side // 8, self.side // 8))
        if with_vae:
            with torch.no_grad():
                latents = session.model.vae.encode(self._pixels).latent_dist.sample()
            latents = latents * session.model.scaling_factor
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (self.batch,)).long()
        noisy = self._scheduler.add_noise(latents, noise, t)
        with torch.no_grad():
            states = session.trainable.states(self._ids.repeat(chunks, 1))
            states = states.view(self.batch, -1, states.shape[-1])
        output = unet(noisy, t, states, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(output.float(), noise.float(), reduction="mean")
        loss.repeat(self.batch).mean().item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["fused"] = True

    def times(self, rounds: int, updates: int, names: Sequence[str] = ()) -> dict[str, list[float]]:
        """Return the seconds of a step by loop, taken in turn; all loops unless some are named."""
        loops: dict[str, Callable[[], Any]] = {
            "bare": self.bare,
            "ours": self.ours,
            "diffusers": self.diffusers,
            "diffusers, with the VAE": lambda: self.diffusers(with_vae=True),
            "sd-scripts": self.sd_scripts,
        }
        loops = {name: step for name, step in loops.items() if name in names or not names}
        times: dict[str, list[float]] = {name: [] for name in loops}
        for step in loops.values():  # warms up memory and kernels
            step()
        for _ in range(rounds):
            for name, step in loops.items():
                began = time.perf_counter()
                for _ in range(updates):
                    step()
                times[name].append((time.perf_counter() - began) / updates)
        return times

    def rows(self, rounds: int, updates: int) -> dict[str, str]:
        """Return the times, taken in turn, and their ratios."""
        times = self.times(rounds, updates)
        what = f"batch {self.batch}, {self.side} px"
        rows = {
            f"{name} step, {what}, ms": f"{1000 * statistics.median(found):.0f}"
            for name, found in times.items()
        }
        for name in [n for n in times if n != "ours"]:
            ratios = sorted(a / b for a, b in zip(times["ours"], times[name], strict=True))
            rows[f"ours against {name}, median, least and most"] = (
                f"{statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}"
            )
        return rows


def measure(scratch: Path) -> dict[str, str]:
    """Measure on the embedded tiny model."""
    config = demo_config(
        scratch / "run",
        [
            "training.batch_size=8",
            "training.ema_decay=none",
            "training.channels_last=false",
            "dataset.enable_bucket=false",
            "dataset.resolution=128",
            "previews.prompts=[]",
        ],
    )
    scratch.mkdir(parents=True, exist_ok=True)
    session = build_session(config, build_accelerator(), SilentEvents(), Overrides())
    return Comparison(session, batch=8, side=128).rows(rounds=5, updates=20)
