"""Measures models between a run's base model and its result: validation loss and previews.

Weights interpolated between a model and its fine-tuned version often perform better than either,
both on the training data and on what the base model knew (WiSE-FT: Wortsman et al. 2021,
arXiv:2109.01903). The loss is measured as the run did: on its held-out images, at its timesteps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from impasto import files
from impasto.config.load import load_begun_config
from impasto.config.run import RunConfig
from impasto.errors import ConfigError, RunError
from impasto.models.merging.blocks import Ratios
from impasto.models.merging.merging import OpenedMixture
from impasto.models.merging.mixing import FORMULAS, mix, require_mixable
from impasto.models.networks.making import needed_tensors
from impasto.models.reading.completeness import require_complete
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import OpenOptions, locate, open_model
from impasto.progress import Progress
from impasto.runs import RunDirectory
from impasto.sampling.sheet import draw_sheet
from impasto.training.analysis.along_targets import SHEET, image_name, require_previews_free
from impasto.training.analysis.borrowing import (
    borrowed_session,
    evaluating_current,
    require_settings_alone,
)
from impasto.training.builders.model import build_open_options
from impasto.training.builders.prompts import build_prompts
from impasto.training.session import Session

FORMULA = FORMULAS["weighted-sum"]


@dataclass(frozen=True)
class Point:
    """An interpolated model and its loss.

    Attributes:
        ratio: The position between the base model (0) and the result (1).
        loss: The validation loss.
    """

    ratio: float
    loss: float

    @property
    def is_finite(self) -> bool:
        """Whether the loss is neither NaN nor infinite."""
        return math.isfinite(self.loss)


@dataclass(frozen=True)
class MixturePath:
    """A run's base model and its result, and the models measured between them.

    Attributes:
        opened: The base model and the result, in this order.
        points: The measured models, in the order of the requested ratios.
    """

    opened: OpenedMixture
    points: Sequence[Point]

    @property
    def best(self) -> Point:
        """The point with the lowest finite loss; of equal ones, the first.

        Raises:
            RunError: No loss is finite.
        """
        measured = [point for point in self.points if point.is_finite]
        if not measured:
            raise RunError(
                "No validation loss between base model and result is finite: all are NaN or "
                "infinite. Nothing was written. Check the run's base model and its result with "
                "impasto inspect."
            )
        return min(measured, key=lambda point: point.loss)


def walk(
    run: RunDirectory,
    ratios: Sequence[float],
    progress: Progress,
    previews: Path | None = None,
    *,
    overwrite: bool = False,
) -> MixturePath:
    """Measure models between a run's base model and its result, and draw the run's prompts.

    Args:
        run: A finished run, with held-out images.
        ratios: The positions to measure; 0 is the base model, 1 the result.
        progress: Receives progress.
        previews: The folder for each model's images and a sheet of all; None draws nothing.
        overwrite: Whether previews of an earlier call are replaced.

    Raises:
        ConfigError: The run has no held-out images, or no prompts to draw, or the folder may not be
            replaced since it has other files than such previews.
        ModelError: The base model or the result is missing or damaged.
        RunError: The run has no result, or no loss is finite.
    """
    config = load_begun_config(run.config_file)
    _require_walkable(run, config, draws=previews is not None)
    if previews is not None:
        require_previews_free(previews, run, config, overwrite=overwrite)
    opened = _open_ends(run, config, progress)
    with (
        borrowed_session(config, progress, "measuring mixtures") as session,
        contextlib.ExitStack() as held,
    ):
        if session.validator is None:
            raise ConfigError(
                f"{run.address} has no held-out images to measure with: it was trained without "
                f"validation.split and validation.image_dir."
            )
        validator = session.validator.of_held_out
        folder = None if previews is None else held.enter_context(files.replace_folder(previews))
        steps = len(ratios) * (1 if folder is None else 2)
        points: list[Point] = []
        with progress.stage("Measuring mixtures", steps, "steps") as advance:
            for number, ratio in enumerate(ratios):
                _put(session, mix(opened.models, FORMULA.combine, Ratios(ratio)))
                with evaluating_current(session):
                    loss = validator.measure(
                        session.trainable.unet, session.eval_conditioner, session.recipe
                    )
                    points.append(Point(ratio, loss.mean))
                    advance(1)
                    if folder is not None:
                        _draw(session, folder, number)
                        advance(1)
        way = MixturePath(opened, points)
        _ = way.best  # raises an error before anything is left on disk
        if folder is not None:
            _write_sheet(session, folder, points)
    return way


def _require_walkable(run: RunDirectory, config: RunConfig, *, draws: bool) -> None:
    if config.method.kind != "full":
        raise ConfigError(
            f"{run.address} trained a hypernetwork, which is not mixed but applied at a strength. "
            f"Compare strengths with impasto sample --hypernetwork and --strengths."
        )
    if run.exported_model() is None:
        raise RunError(f"{run.address} has not exported a model yet. Finish it first.")
    require_settings_alone(run, "Mix base model and result with --ratio, which measures nothing.")
    if draws and not build_prompts(config):
        raise ConfigError(
            f"{run.address} has no prompts to draw (previews.prompts or previews.prompt_file). "
            f"Remove --previews."
        )


def _open_ends(run: RunDirectory, config: RunConfig, progress: Progress) -> OpenedMixture:
    """Open the base model as the run did, and the model that the run exported.

    Note a ratio that gives the purely trained weights if the exported model is a mixture.
    """
    options, result = build_open_options(config), str(run.exported_model())
    ends = (open_model(config.model.path, options, progress), open_model(result, OpenOptions()))
    models = [require_complete(model, needed_tensors(model)) for model in ends]
    require_mixable(models)
    ratio = config.saving.merge_ratio
    if ratio != 1:
        progress.note(
            f"The result is itself a mixture (saving.merge_ratio = {ratio:g}): ratio 1 is that "
            f"mixture, and impasto merge BASE RESULT --ratio {1 / ratio:.4g} gives the trained "
            f"weights alone."
        )
    paths = [locate(config.model.path, options, progress), Path(result)]
    return OpenedMixture(models, paths, [], Ratios(1.0))


def _put(session: Session, contents: ModelContents) -> None:
    """Copy the weights of a mixture into the trained networks; untrained weights are equal."""
    with torch.no_grad():
        for component, tensors in session.trainable.export().items():
            for name, tensor in tensors.items():
                own = contents.components[component].get(name.removeprefix("text_model."))
                if own is not None:
                    tensor.copy_(own.read())


def _draw(session: Session, folder: Path, number: int) -> None:
    """Draw the prompts into files `NUMBER-PROMPT.png`, with both numbers counted from 0."""
    session.previewer.draw_into(folder, lambda row: image_name(number, row), lambda _: None)


def _write_sheet(session: Session, folder: Path, points: Sequence[Point]) -> None:
    prompts = session.previewer.prompts
    cells = {
        (row, column): folder / image_name(column, row)
        for row in range(len(prompts))
        for column in range(len(points))
    }
    labels = [f"{point.ratio:g}: {point.loss:.4f}" for point in points]
    draw_sheet(cells, [prompt.text for prompt in prompts], labels).save(folder / SHEET)
