"""Resolves a run before any network is loaded: its settings, images, model and steps.

`impasto train`, `impasto train --plan` and `impasto find-lr` all call this, so that each of them
checks a run in the same order and reports the same errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from impasto.config.cases import SETTINGS_ALONE, Case
from impasto.config.compatibility import require_compatible
from impasto.config.run import RunConfig
from impasto.data.loading.sampler import EpochSampler
from impasto.datasets.batching import build_epoch_sampler, count_steps
from impasto.datasets.build import Survey, survey
from impasto.models.networks.hypernetwork import load_hypernetworks
from impasto.models.networks.loading import load_meta_model
from impasto.models.reading.opening import open_model
from impasto.progress import Progress
from impasto.training.builders.methods import build_templates
from impasto.training.builders.model import build_open_options
from impasto.training.builders.overrides import Overrides
from impasto.training.builders.processes import facts_of
from impasto.training.builders.prompts import build_prompts
from impasto.training.compute.precision import resolve_precision
from impasto.training.devices import require_precision
from impasto.training.optim.optimizers import (
    build_optimizer,
    require_usable_optimizer,
    require_weights_alone,
)
from impasto.training.planning.meta_models import MetaModels
from impasto.training.planning.model_defaults import with_model_defaults
from impasto.training.planning.resolve import resolve_settings


@dataclass(frozen=True)
class ResolvedRun:
    """A run with all its settings resolved, before anything is trained.

    Attributes:
        config: The resolved settings.
        survey: The images of the run and their buckets.
        models: The base model without values.
        sampler: The order of the images.
        steps: Number of optimizer steps.
    """

    config: RunConfig
    survey: Survey
    models: MetaModels
    sampler: EpochSampler
    steps: int


def resolve_run(
    config: RunConfig,
    progress: Progress,
    processes: int,
    *,
    device: torch.device | None = None,
    overrides: Overrides | None = None,
    is_plan: bool = False,
) -> ResolvedRun:
    """Resolve the settings of a run, and raise an error if it cannot be trained.

    Args:
        config: The settings as the user gives them.
        progress: Receives notes about the choices.
        processes: Number of processes of the run.
        device: The device to compute on; None means the first GPU, or else the CPU.
        overrides: Parts that are given in code; None for none.
        is_plan: Whether this is only a plan: then each image is decoded, and it is left to the
            caller to check that the run fits into memory.

    Raises:
        ImpastoError: The settings are incompatible with each other, or with the machine, the model
            or the images.
    """
    given = overrides or Overrides()
    config = resolve_precision(config, progress)
    require_precision(config.training.mixed_precision)
    facts = partial(facts_of, processes=processes, device=device)
    require_compatible(config, facts(config))
    _require_files(config)
    found = survey(config, progress, decode=is_plan)
    config = with_model_defaults(config, progress)
    options = build_open_options(config)
    identity = open_model(config.model.path, options).identity
    require_compatible(config, facts(config, identity=identity))
    meta_model = partial(load_meta_model, config.model.path, options)
    models = MetaModels(meta_model, given.build_trainable())
    _require_learnable(config, models, given)
    config = resolve_settings(
        config, found, progress, check=not is_plan, processes=processes, models=models
    )
    require_compatible(config, facts(config, identity=identity))
    sampler = build_epoch_sampler(config, found.plan, processes)
    steps = count_steps(config, sampler)
    require_compatible(config, facts(config, total_steps=steps, identity=identity))
    return ResolvedRun(config, found, models, sampler, steps)


def _require_files(config: RunConfig) -> None:
    """Check that the prompt, hypernetwork and template files can be read, before slow work starts.

    Raises:
        ImpastoError: One of the files is missing or invalid.
    """
    build_prompts(config)
    load_hypernetworks(config.previews.hypernetworks)
    build_templates(config)


def _require_learnable(config: RunConfig, models: MetaModels, given: Overrides) -> None:
    """Check that the method fits the model, and that the optimizer can step the trained weights.

    Networks and optimizers given in code are checked later, when they are used: they need not
    support tensors without values unless memory is predicted.
    """
    if given.trainable is None:
        trainable = models.shown(config)[1]
        if given.build_optimizer is build_optimizer:
            require_usable_optimizer(trainable.modules, config.optimizer)
    if not config.is_begun and given.build_optimizer is build_optimizer:
        require_weights_alone(config.optimizer, Case(config, SETTINGS_ALONE).goes_by_chunks)
