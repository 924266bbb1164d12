"""Samples during training: the same prompts and seeds at each of some steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from impasto import files
from impasto.progress import Progress
from impasto.runs import RunDirectory, step_name
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler, save_png


@dataclass(frozen=True)
class Previewer:
    """Draws `prompts` into the run directory. Every random number it uses is its own."""

    sampler: Sampler
    prompts: Sequence[Prompt]

    def draw(self, run: RunDirectory, step: int, progress: Progress) -> None:
        """Draw all prompts for `step`; what is already there from before a resume is kept."""
        target = run.samples / step_name(step)
        if target.is_dir() or not self.prompts:
            return
        unet: torch.nn.Module = self.sampler.unet
        was_training = unet.training
        unet.eval()
        with (
            files.replace_folder(target) as partial,
            progress.stage(f"Drawing previews at step {step}", len(self.prompts), "pictures") as (
                advance
            ),
        ):
            for number, prompt in enumerate(self.prompts):
                save_png(self.sampler.draw(prompt), partial / f"{number:03d}.png", prompt)
                advance(1)
        unet.train(was_training)
