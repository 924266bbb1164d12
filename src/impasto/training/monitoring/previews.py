"""Preview images during training, from the same prompts and seeds each time."""

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
    """Move the samples of an earlier attempt out of a run that starts from scratch.

    Args:
        run: The run.
        step: The step that the run continues from, if above 0: then its samples are its own and
            stay.

    Returns:
        A sentence that says what was done; empty if there was nothing to move.

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
    """Draws previews into the run directory; its random numbers are independent of training.

    Attributes:
        sampler: Draws the previews.
        prompts: The prompts to draw.
        distance: Compares the previews with real images; None for no comparison.
    """

    sampler: Sampler
    prompts: Sequence[Prompt]
    distance: PreviewDistance | None = None

    def is_due(self, run: RunDirectory, step: int) -> bool:
        """Return whether a step's previews are still to be drawn; False without prompts."""
        return bool(self.prompts) and not (run.samples / step_name(step)).is_dir()

    def draw(self, run: RunDirectory, step: int, progress: Progress) -> None:
        """Draw all prompts, and save the images in the run's folder of samples for a step."""
        target = run.samples / step_name(step)
        with (
            files.replace_folder(target) as partial,
            progress.stage(f"Drawing previews at step {step}", len(self.prompts), "images") as (
                advance
            ),
        ):
            self.draw_into(partial, _NAME.format, advance)

    def draw_into(self, folder: Path, name: Callable[[int], str], drawn: Advance) -> None:
        """Draw all prompts with the present weights, and save one PNG per prompt.

        Args:
            folder: The folder to save in; must exist.
            name: Returns the file name of a prompt by its number, from 0.
            drawn: Called after each image.
        """
        with self._eval_mode():
            images = self.sampler.generate_all(self.prompts, drawn)
        for number, (prompt, image) in enumerate(zip(self.prompts, images, strict=True)):
            save_png(image, folder / name(number), prompt, self.sampler.text_settings)

    def compare(self, run: RunDirectory, step: int, progress: Progress) -> dict[str, Any]:
        """Return the distance of a step's previews from real images, as metrics; empty if off.

        The previews are read from their files, so those drawn before a resume are measured again
        with the same result.

        Raises:
            ImpastoError: An image cannot be read, or the network fails.
        """
        if self.distance is None:
            return {}
        folder = run.samples / step_name(step)
        names = [folder / _NAME.format(number) for number in range(len(self.prompts))]
        return self.distance.measure(names, progress)

    def generate_along(self) -> None:
        """Run the forward passes of all previews without saving them, as a sharded model needs.

        Called on all processes but the main one.
        """
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
