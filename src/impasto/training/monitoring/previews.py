"""Samples during training: the same prompts and seeds at each of some steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from impasto import files
from impasto.progress import Advance, Progress
from impasto.runs import RunDirectory, step_name
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler, save_png


@dataclass(frozen=True)
class Previewer:
    """Draws `prompts` into the run directory. Every random number it uses is its own."""

    sampler: Sampler
    prompts: Sequence[Prompt]

    def is_due(self, run: RunDirectory, step: int) -> bool:
        """Whether there is something to draw; what is there from before a resume is kept."""
        return bool(self.prompts) and not (run.samples / step_name(step)).is_dir()

    def draw(self, run: RunDirectory, step: int, progress: Progress) -> None:
        """Draw all prompts, and put them into the run's folder of samples for a step."""
        target = run.samples / step_name(step)
        with (
            files.replace_folder(target) as partial,
            progress.stage(f"Drawing previews at step {step}", len(self.prompts), "images") as (
                advance
            ),
        ):
            self.draw_into(partial, "{:03d}.png".format, advance)

    def draw_into(self, folder: Path, name: Callable[[int], str], drawn: Advance) -> None:
        """Draw all prompts with the weights as they are, one PNG for each.

        Args:
            folder: Where to; it is there.
            name: The file name of a prompt, by its number from 0.
            drawn: Called after each image.
        """
        with self._eval_mode():
            images = self.sampler.generate_all(self.prompts, drawn)
        for number, (prompt, image) in enumerate(zip(self.prompts, images, strict=True)):
            save_png(image, folder / name(number), prompt)

    def generate_along(self) -> None:
        """Do this process's share in drawing, where the model is shared out; keep nothing."""
        with self._eval_mode():
            self.sampler.generate_all(self.prompts, lambda _: None)

    @contextlib.contextmanager
    def _eval_mode(self) -> Iterator[None]:
        unet: torch.nn.Module = self.sampler.unet
        was_training = unet.training
        unet.eval()
        with self.sampler.hypernetworks.attached(unet):
            yield
        unet.train(was_training)
