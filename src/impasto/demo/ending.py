"""The last part of the demo: mix the result with the base model, and draw previews of the mixture.

Weights between those of a base model and its fine-tuned result often do better than either, both on
the training task and on what the base model knew (WiSE-FT: Wortsman et al. 2021, arXiv:2109.01903).
The page of the guide on the demo has the numbers behind the choice of the ratio.
"""

from __future__ import annotations

from pathlib import Path

from impasto import files
from impasto.config.run import RunConfig
from impasto.models.merging.merging import Mixture, Output, merge_models
from impasto.models.merging.mixing import FORMULAS
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.opening import OpenOptions
from impasto.progress import Progress
from impasto.runs import RunDirectory
from impasto.sampling.sampler import Sampler, save_png
from impasto.training.builders.prompts import build_prompts

RATIO = 0.8
"""The fraction of the result in the mixture; the rest is the base model."""

FOLDER = "mixed"
"""The folder for the mixture and its drawings, in the run directory."""


def mix_with_base(run: RunDirectory, config: RunConfig, progress: Progress) -> Path:
    """Write the mixture of a finished run's base model and its result, and return its path.

    Raises:
        ModelError: The run has exported no model, or it does not fit the base model.
        StorageError: The disk is full.
    """
    target = run.path / FOLDER / f"{config.export_name}-mixed.safetensors"
    files.require_writable(target.parent)
    ends = (str(config.model.path), str(run.exported_model()))
    mixture = Mixture(ends, FORMULAS["weighted-sum"], RATIO)
    merge_models(mixture, Output(target, "safetensors"), OpenOptions(), progress)
    return target


def draw_previews(model: Path, config: RunConfig, progress: Progress) -> Path:
    """Draw the prompts of a run's previews with `model`, and return the folder with the drawings.

    Raises:
        StorageError: The disk is full.
    """
    folder, prompts = model.parent, build_prompts(config)
    sampler = Sampler.of(load_base_model(model))
    with progress.stage("Drawing with the mixture", len(prompts), "images") as advance:
        images = sampler.generate_all(prompts, advance)
    for number, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        save_png(image, folder / f"{number:03d}.png", prompt)
    return folder
