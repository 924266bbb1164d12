"""Samples during training: the same prompts and seeds at each of some steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from impasto import files
from impasto.evaluation.preview_distance import PreviewDistance
from impasto.progress import Advance, Progress
from impasto.runs import RunDirectory, step_name
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler, save_png
from impasto.storage_errors import reported

_NAME = "{:03d}.png"


def clear_samples(run: RunDirectory, step: int) -> str:
    """Keep samples of an earlier attempt out of a run that begins anew; a resumed one has its own.

    Args:
        run: The run.
        step: What it goes on from; 0 where it has no state.

    Returns:
        What was done, in words; empty if nothing was to do.

    Raises:
        StorageError: The folder cannot be renamed.
    """
    if step or not run.sampled_steps():
        return ""
    with reported(run.samples):
        target = run.abandon(run.samples)
    return (
        f"The samples of an earlier attempt are kept in {target}. Delete that folder if you do "
        f"not need it."
    )


@dataclass(frozen=True)
class Previewer:
    """Draws `prompts` into the run directory. Every random number it uses is its own.

    Attributes:
        sampler: Draws them.
        prompts: What is drawn.
        distance: Compares what was drawn with real images; None for nothing of the kind.
    """

    sampler: Sampler
    prompts: Sequence[Prompt]
    distance: PreviewDistance | None = None

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
            self.draw_into(partial, _NAME.format, advance)

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
            save_png(image, folder / name(number), prompt, self.sampler.text_settings)

    def compare(self, run: RunDirectory, step: int, progress: Progress) -> dict[str, Any]:
        """How far the previews of a step are from real images, as a line of metrics has it.

        They are looked at as files: those from before a resume are measured again, alike.

        Raises:
            ImpastoError: An image cannot be read, or the network fails.
        """
        if self.distance is None:
            return {}
        folder = run.samples / step_name(step)
        names = [folder / _NAME.format(number) for number in range(len(self.prompts))]
        return self.distance.measure(names, progress)

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
