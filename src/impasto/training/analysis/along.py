"""Models between a run's base model and its result: validation loss and previews of each.

Weights between those of a model and of what was fine-tuned from it often do better than either, on
what was trained and on what the base model knew (WiSE-FT: Wortsman et al. 2021, arXiv:2109.01903).
What is measured is what the run measured: its held-out images, at its noise levels.
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
from impasto.models.merging.merging import Opened
from impasto.models.merging.mixing import FORMULAS, mix, require_mixable
from impasto.models.networks.making import needed_tensors
from impasto.models.reading.completeness import require_complete
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import OpenOptions, locate, open_model
from impasto.progress import Progress
from impasto.runs import RunDirectory
from impasto.sampling.sheet import draw_sheet
from impasto.training.analysis.along_targets import SHEET, image_name, require_previews_free
from impasto.training.analysis.borrowing import borrowed_session, looking, require_settings_alone
from impasto.training.builders.model import build_open_options
from impasto.training.builders.prompts import build_prompts
from impasto.training.session import Session

FORMULA = FORMULAS["weighted-sum"]


@dataclass(frozen=True)
class Point:
    """A model on the way.

    Attributes:
        ratio: 0 is the base model, 1 the result.
        loss: The validation loss.
    """

    ratio: float
    loss: float

    @property
    def is_finite(self) -> bool:
        """Whether the loss is a number, neither NaN nor infinite."""
        return math.isfinite(self.loss)


@dataclass(frozen=True)
class Way:
    """A run's base model and its result, and what lies between them.

    Attributes:
        opened: The two, in this order.
        points: What was measured, in the order of the ratios.
    """

    opened: Opened
    points: Sequence[Point]

    @property
    def best(self) -> Point:
        """The point with the least loss that is a number; of equals the one with the least ratio.

        Raises:
            RunError: No loss is a number.
        """
        measured = [point for point in self.points if point.is_finite]
        if not measured:
            raise RunError(
                "No validation loss on the way is a number: all are NaN or infinite. Nothing was "
                "written. Look at the run's base model and its result with impasto inspect."
            )
        return min(measured, key=lambda point: point.loss)


def walk(
    run: RunDirectory,
    ratios: Sequence[float],
    progress: Progress,
    previews: Path | None = None,
    *,
    overwrite: bool = False,
) -> Way:
    """Measure models between a run's base model and its result, and draw the run's prompts.

    Args:
        run: A finished run, with held-out images.
        ratios: Where between the two; 0 is the base model, 1 the result.
        progress: Shows how far the work is.
        previews: A folder for the images of each and a sheet of all; None draws nothing.
        overwrite: Whether previews of an earlier walk are replaced.

    Raises:
        ConfigError: The run has no held-out images, or no prompts that could be drawn, or the
            folder holds or is something else than such previews.
        ModelError: The base model or the result is gone or damaged.
        RunError: The run has no result, or no loss is a number.
    """
    config = load_begun_config(run.config_file)
    _require_walkable(run, config, draws=previews is not None)
    if previews is not None:
        require_previews_free(previews, run, config, overwrite=overwrite)
    opened = _open_ends(run, config, progress)
    with (
        borrowed_session(config, progress, "measuring models on the way") as session,
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
        with progress.stage("Measuring on the way", steps, "steps") as advance:
            for number, ratio in enumerate(ratios):
                _put(session, mix(opened.models, FORMULA.combine, Ratios(ratio)))
                with looking(session):
                    loss = validator.measure(
                        session.trainable.unet, session.eval_conditioner, session.recipe
                    )
                    points.append(Point(ratio, loss.mean))
                    advance(1)
                    if folder is not None:
                        _draw(session, folder, number)
                        advance(1)
        way = Way(opened, points)
        _ = way.best  # before anything is left on the disk
        if folder is not None:
            _write_sheet(session, folder, points)
    return way


def _require_walkable(run: RunDirectory, config: RunConfig, *, draws: bool) -> None:
    if config.method.kind != "full":
        raise ConfigError(
            f"{run.address} trained a hypernetwork: its strength is what lies between. Draw it "
            f"with impasto sample --hypernetwork and --strengths."
        )
    if run.exported_model() is None:
        raise RunError(f"{run.address} has not exported a model yet. Finish it first.")
    require_settings_alone(run, "Mix base model and result with --ratio, which measures nothing.")
    if draws and not build_prompts(config):
        raise ConfigError(
            f"{run.address} has no prompts to draw (previews.prompts or previews.prompt_file). "
            f"Take --previews out."
        )


def _open_ends(run: RunDirectory, config: RunConfig, progress: Progress) -> Opened:
    """The base model as the run opened it, and the model that it exported."""
    options, result = build_open_options(config), str(run.exported_model())
    ends = (open_model(config.model.path, options, progress), open_model(result, OpenOptions()))
    models = [require_complete(model, needed_tensors(model)) for model in ends]
    require_mixable(models)
    share = config.saving.merge_ratio
    if share != 1:
        progress.note(
            f"The result is a mixture itself (saving.merge_ratio = {share:g}): ratio 1 is that "
            f"mixture, and impasto merge BASE RESULT --ratio {1 / share:.4g} gives what was "
            f"trained, by itself."
        )
    paths = [locate(config.model.path, options, progress), Path(result)]
    return Opened(models, paths, [], Ratios(1.0))


def _put(session: Session, contents: ModelContents) -> None:
    """Give what the run trained the weights of a mixture; what it did not train is the same."""
    with torch.no_grad():
        for component, tensors in session.trainable.export().items():
            for name, tensor in tensors.items():
                own = contents.components[component].get(name.removeprefix("text_model."))
                if own is not None:
                    tensor.copy_(own.read())


def _draw(session: Session, folder: Path, number: int) -> None:
    """Draw the prompts into `NUMBER-PROMPT.png`, both counted from 0."""
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
