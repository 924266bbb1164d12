"""The trainer against loops that others would write over the same networks, in turn.

`bare`: U-Net, loss, backward, clipping, fused AdamW: the least that a step can be.
`diffusers`: what `examples/text_to_image/train_text_to_image.py` of diffusers does in a step: the
text encoder, DDPMScheduler's noise, AdamW with its defaults, a learning-rate scheduler, the loss
read at every step; without its VAE, since the latents are cached here, and with it.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler

from bench.pictures import draw_photographs, peak_mib
from impasto.config.load import build_run_config
from impasto.data.dataset import iterate_updates
from impasto.demo.recipe import demo_config
from impasto.runs import RunDirectory
from impasto.training.devices import build_accelerator
from impasto.training.events import SilentEvents
from impasto.training.loop import TrainingLoop
from impasto.training.session import Ingredients, Session, build_session


@dataclass
class Comparison:
    """A session of the trainer, and other loops over its networks and its optimizer.

    Attributes:
        session: Of one picture size.
        batch: Pictures per update.
        side: Their sides in pixels.
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
        """The least that a step can be."""
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
        """The trainer's own update: data, text and metrics included."""
        session = self.session
        updates = iterate_updates(session.data, session.sampler, self._done, self._done + 1, rank=0)
        for update, batches in updates:
            self._loop._update(update, batches)
        self._loop._recorder.meter.read()
        self._done += 1

    def diffusers(self, *, with_vae: bool = False) -> None:
        """A step as diffusers' script has it."""
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
            states = session.trainable.states(self._ids)
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

    def rows(self, rounds: int, updates: int) -> dict[str, str]:
        """Times in turn, and their ratios."""
        loops: dict[str, Callable[[], Any]] = {
            "bare": self.bare,
            "ours": self.ours,
            "diffusers": self.diffusers,
            "diffusers, with the VAE": lambda: self.diffusers(with_vae=True),
        }
        times: dict[str, list[float]] = {name: [] for name in loops}
        for step in loops.values():  # first touch of memory, first calls of kernels
            step()
        for _ in range(rounds):
            for name, step in loops.items():
                began = time.perf_counter()
                for _ in range(updates):
                    step()
                times[name].append((time.perf_counter() - began) / updates)
        what = f"batch {self.batch}, {self.side} px"
        rows = {
            f"{name} step, {what}, ms": f"{1000 * statistics.median(found):.0f}"
            for name, found in times.items()
        }
        for name in ("bare", "diffusers", "diffusers, with the VAE"):
            ratios = sorted(a / b for a, b in zip(times["ours"], times[name], strict=True))
            rows[f"ours against {name}, median, least and most"] = (
                f"{statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}"
            )
        return rows


def measure(scratch: Path) -> dict[str, str]:
    """On the embedded tiny model."""
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
    session = build_session(config, build_accelerator(), SilentEvents(), Ingredients())
    return Comparison(session, batch=8, side=128).rows(rounds=5, updates=20)


def measure_full(scratch: Path) -> dict[str, str]:
    """On a full-size SD 1.5 with random weights, 256 px, batch 1, float32; and how it starts."""
    values = full_size_settings(scratch)
    rows = {}
    for name in ("cold caches", "warm caches"):
        rows[f"command to first step, {name}, s"] = f"{seconds_to_first_step(values, scratch):.1f}"
    config = build_run_config(values, source="bench")
    session = build_session(config, build_accelerator(), SilentEvents(), Ingredients())
    rows |= Comparison(session, batch=1, side=256).rows(rounds=3, updates=1)
    rows["memory at most, all of the above, GiB"] = f"{peak_mib() / 1024:.1f}"
    return rows


def full_size_settings(scratch: Path) -> dict[str, Any]:
    """A model file, eight photographs with captions, and the settings of a run."""
    folder, file = scratch / "model", scratch / "model.safetensors"
    impasto("init", "sd1", folder, "--dtype", "fp16")
    impasto("convert", folder, file)
    pictures = scratch / "pictures"
    draw_photographs(pictures, (400, 400), 8)
    for picture in pictures.glob("*.jpg"):
        picture.with_suffix(".txt").write_text(f"photograph {picture.stem}", encoding="utf-8")
    return {
        "output_dir": str(scratch / "run"),
        "model": {"path": str(file)},
        "dataset": {"image_dir": str(pictures), "resolution": 256, "enable_bucket": False},
        "training": {"max_steps": 1},
        "saving": {"state_every_steps": 0, "keep_final_state": False},
    }


def seconds_to_first_step(values: dict[str, Any], scratch: Path) -> float:
    """From the command until the run directory says that it trains."""
    file, run = scratch / "run.toml", scratch / "run"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    began = time.perf_counter()
    with (scratch / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "impasto", "train", str(file)], stdout=log, stderr=log
        )
        while '"training"' not in _text_of(run / "status.json"):
            if process.poll() is not None:
                raise RuntimeError(_text_of(scratch / "log.txt"))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        process.kill()
        process.wait()
    shutil.rmtree(run)
    return seconds


def impasto(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "impasto", *map(str, words)], check=True)


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
