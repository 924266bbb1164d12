"""Models with averaged weights of any length, from the averages that `training.posthoc_ema` stores.

The trained weights are combined from the stored averages, tensor by tensor; all other weights are
those of the model that the run exported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.config.load import load_begun_config
from impasto.errors import ConfigError, ModelError, RunError
from impasto.models.merging.merging import Output
from impasto.models.merging.mixing import stored_as
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.conversion import converted_info, hash_file
from impasto.models.writing.saving import write_model
from impasto.models.writing.targets import require_free
from impasto.progress import Progress
from impasto.runs import RunDirectory
from impasto.runs.mixture import mixture_of
from impasto.training.analysis.borrowing import (
    WITHOUT_AVERAGES,
    borrowed_session,
    evaluating_current,
    require_settings_alone,
)
from impasto.training.optim.posthoc import LONGEST, SHORTEST, Fit, Profile, fit
from impasto.training.optim.state import parameter_names
from impasto.training.planning.changes import with_changes
from impasto.training.saving.averages import (
    read_snapshots,
    read_start,
    start_file,
    stored_steps,
)

RECORD_KEY = "impasto.average"
"""Metadata key of an exported file that records how its average was computed."""


@dataclass(frozen=True)
class Average:
    """An average of the weights of a run.

    Attributes:
        profile: The length of the average, and the step that it ends with.
        fit: The combination of stored averages that approximates it.
        tensors: The trained weights in float32, by their names in states; computed when read.
    """

    profile: Profile
    fit: Fit
    tensors: Tensors


@dataclass(frozen=True)
class Measured:
    """An average with its validation loss.

    Attributes:
        average: The average.
        loss: The validation loss.
    """

    average: Average
    loss: float


def make_averages(
    run: RunDirectory, sigma_rels: Sequence[float], step: int | None = None
) -> list[Average]:
    """Return averages of given lengths from the averages that a run stored; no tensor is read yet.

    Args:
        run: The run.
        sigma_rels: The lengths, as relative standard deviations.
        step: The step that the averages end with; None means the last one stored.

    Raises:
        ConfigError: A length is out of range.
        ModelError: A file is missing or damaged.
        RunError: No averages are stored, or none after that step, or the start weights are of
            another run.
    """
    for sigma_rel in sigma_rels:
        if not SHORTEST <= sigma_rel <= LONGEST:
            raise ConfigError(
                f"--sigma-rel is {sigma_rel:g}; expected {SHORTEST} to {LONGEST}: the standard "
                f"deviation of an average's profile as a fraction of the completed steps."
            )
    steps = stored_steps(run)
    if not steps:
        raise RunError(
            f"{run.address} has no stored averages. Train with training.posthoc_ema = true to "
            f"store them."
        )
    last = steps[-1] if step is None else step
    if last not in steps:
        raise RunError(
            f"{run.address} has no averages after {last} steps; it has them after "
            f"{', '.join(map(str, steps))}."
        )
    snapshots, start = read_snapshots(run, last), read_start(run)
    stored = next(iter(snapshots.values()))
    if {n: t.shape for n, t in start.items()} != {n: t.shape for n, t in stored.items()}:
        raise RunError(
            f"{start_file(run)} does not have the same weights as the averages beside it: it "
            f"belongs to another run. No average can be computed."
        )
    return [_mixed(snapshots, start, Profile(last, sigma_rel)) for sigma_rel in sigma_rels]


def _mixed(snapshots: Mapping[Profile, Tensors], start: Tensors, wanted: Profile) -> Average:
    found = fit(list(snapshots), wanted)
    tensors = {
        name: LazyTensor(
            tensor.shape,
            torch.float32,
            partial(_mix_one, tensor, found.coefficients, [of[name] for of in snapshots.values()]),
            owns_memory=True,
        )
        for name, tensor in start.items()
    }
    return Average(wanted, found, tensors)


def _mix_one(
    start: LazyTensor, coefficients: Sequence[float], tensors: Sequence[LazyTensor]
) -> Tensor:
    """Return the start weights plus the combined differences from them.

    The coefficients add up to 1, so the start weights are added once.
    """
    total = torch.zeros(start.shape)
    for coefficient, tensor in zip(coefficients, tensors, strict=True):
        total.add_(tensor.read().to(torch.float32), alpha=coefficient)
    return total.add_(start.read())


def measure(run: RunDirectory, averages: Sequence[Average], progress: Progress) -> list[Measured]:
    """Return the averages with their validation losses, measured as the run measured its own.

    Raises:
        ConfigError: The run has no held-out images, or was given parts in code that its losses
            depend on.
        RunError: The stored averages are of other weights than the run trains.
        ImpastoError: The run's session cannot be built.
    """
    instead = "Choose one length with --sigma-rel and --out, which measures nothing."
    require_settings_alone(run, instead)
    config = with_changes(load_begun_config(run.config_file), WITHOUT_AVERAGES)
    with borrowed_session(config, progress, "measuring averages") as session:
        if session.validator is None:
            raise ConfigError(
                f"{run.address} has no held-out images to measure with: it was trained without "
                f"validation.split and validation.image_dir. Choose one length with --sigma-rel "
                f"and --out, and compare the images that the model draws."
            )
        validator = session.validator.of_held_out
        names = parameter_names(session.trainable.modules)
        found = []
        with progress.stage("Measuring averages", len(averages), "averages") as advance:
            for average in averages:
                if set(names.values()) != average.tensors.keys():
                    raise RunError(
                        f"The averages in {run.averages} are of other weights than this run "
                        f"trains. Its config.toml was changed since."
                    )
                session.strategy.put(names, average.tensors)
                with evaluating_current(session):
                    loss = validator.measure(
                        session.trainable.unet, session.eval_conditioner, session.recipe
                    )
                found.append(Measured(average, loss.mean))
                advance(1)
    return found


def write_average(
    run: RunDirectory,
    average: Average,
    output: Output,
    progress: Progress,
    measured: Sequence[Measured] = (),
) -> dict[str, str]:
    """Write an average as a model; return rows of label and text that describe it.

    Raises:
        ConfigError: The target already exists.
        ModelError: The run's model is damaged, or a value is out of the range of its dtype.
        RunError: The run has exported no model.
        StorageError: The target cannot be written.
    """
    exported = require_output(run, output)
    model = open_model(exported, OpenOptions(), progress)
    contents = _with_average(model, average)
    asked = model.identity.family.by_name(output.dtypes)
    about = converted_info(model, output.target, output.title)
    record = {
        "sigma_rel": average.profile.sigma_rel,
        "step": average.profile.step,
        "merge_ratio": 1,
        "error": round(average.fit.error, 6),
        "validation_loss_by_sigma_rel": [
            [m.average.profile.sigma_rel, round(m.loss, 6)] for m in measured
        ],
    }
    about = replace(about, more={**about.more, RECORD_KEY: json.dumps(record)})
    write_model(stored_as(contents, model, asked), output.target, output.form, about, progress)
    rows = {"Wrote": str(output.target), "Average": describe(average)}
    mixture = mixture_of(run)
    if mixture is not None:
        rows["Unlike it"] = (
            f"{Path(exported).name} is {mixture.shares}; this has the trained weights alone"
        )
    if output.target.is_file():
        rows["SHA-256"] = hash_file(output.target, progress)
    return rows


def describe(average: Average) -> str:
    """Return a text with an average's length and step, and the error of its approximation."""
    return (
        f"sigma_rel {average.profile.sigma_rel:g} after {average.profile.step} steps; profile "
        f"error {100 * average.fit.error:.2g} %"
    )


def require_output(run: RunDirectory, output: Output) -> str:
    """Check that an average can be written; return the path of the run's exported model.

    Raises:
        ConfigError: The target already exists, or is the run's own model.
        RunError: The run has exported no model.
    """
    exported = run.exported_model()
    if exported is None:
        raise RunError(f"{run.address} has not exported a model yet. Finish it first.")
    by_folder = output.form == "diffusers"
    require_free(exported, output.target, overwrite=output.overwrite, by_folder=by_folder)
    return str(exported)


def _with_average(model: ModelContents, average: Average) -> ModelContents:
    """Return the model with its trained weights replaced by those of the average.

    Raises:
        ModelError: The model lacks a weight of the average, or has it with another shape.
    """
    components = {component: dict(tensors) for component, tensors in model.components.items()}
    for name, tensor in average.tensors.items():
        component, _, own = name.partition(".")
        own = own.removeprefix("text_model.")
        own_tensor = components.get(component, {}).get(own)
        if own_tensor is None or own_tensor.shape != tensor.shape:
            raise ModelError(
                f"{model.source} has no {own} of {tuple(tensor.shape)} in its {component}, which "
                f"the stored averages have: it is not the model of this run. Nothing was written."
            )
        components[component][own] = tensor
    return replace(model, components=components)
