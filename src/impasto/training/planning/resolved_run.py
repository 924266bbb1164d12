"""A run as far as it is known before any network is loaded: settings, images, model, steps.

`impasto train`, `impasto train --plan` and `impasto find-lr` all ask here, so that what stands
against a run is asked in one order and reported with the same words by each of them.
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
    """What a run will do, with nothing trained yet.

    Attributes:
        config: The settings as the run will have them.
        survey: What is known of the images.
        models: The base model without values.
        sampler: The order of the images.
        steps: How many optimizer steps there are.
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
    """Find out what a run would do, and refuse what cannot be trained.

    Args:
        config: The settings as they are given.
        progress: Receives notes of what was chosen.
        processes: How many processes share the run.
        device: Where it computes; the first GPU or else the CPU, unless another is given.
        overrides: What is given in code.
        is_plan: Whether nothing is trained: then each image is decoded, and room in memory is left
            to the caller.

    Raises:
        ImpastoError: The settings do not fit together, the machine, the model or the images.
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
    """Make sure that the files that settings name can be read, before anything takes long."""
    build_prompts(config)
    load_hypernetworks(config.previews.hypernetworks)
    build_templates(config)


def _require_learnable(config: RunConfig, models: MetaModels, given: Overrides) -> None:
    """Make sure that the method fits the model and the optimizer steps what learns.

    What is given in code is asked when it is used: it need not know tensors without values unless
    memory is predicted.
    """
    if given.trainable is None:
        trainable = models.shown(config)[1]
        if given.build_optimizer is build_optimizer:
            require_usable_optimizer(trainable.modules, config.optimizer)
    if not config.is_begun and given.build_optimizer is build_optimizer:
        require_weights_alone(config.optimizer, Case(config, SETTINGS_ALONE).goes_by_chunks)
