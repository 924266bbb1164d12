"""Impasto fine-tunes Stable Diffusion on one's own captioned images.

The public names are documented in `docs/guide/python.md`. Each is imported on first use, so that
`import impasto` loads no libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from impasto.version import __version__ as __version__

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.config.load import load_run_config
    from impasto.config.run import RunConfig
    from impasto.data.planning.plan import plan_images
    from impasto.data.scanning.scan import scan_folder
    from impasto.errors import ImpastoError
    from impasto.models.networks.loading import BaseModel, load_base_model
    from impasto.models.trainable import FullFineTune, Trainable, TrainedModule
    from impasto.models.writing.conversion import save_model
    from impasto.report.page import write_report
    from impasto.runs import RunDirectory
    from impasto.sampling.prompts import Prompt
    from impasto.sampling.sampler import Sampler
    from impasto.training.builders.methods import build_trainable
    from impasto.training.builders.overrides import Overrides
    from impasto.training.events import SilentEvents, TrainingEvents
    from impasto.training.own_loop import Batches, prepare
    from impasto.training.step import StepRecipe, training_step
    from impasto.training.trainer import resume, train

_HOMES = {
    "BaseModel": "impasto.models.networks.loading",
    "Batches": "impasto.training.own_loop",
    "Console": "impasto.cli.console",
    "FullFineTune": "impasto.models.trainable",
    "ImpastoError": "impasto.errors",
    "Overrides": "impasto.training.builders.overrides",
    "Prompt": "impasto.sampling.prompts",
    "RunConfig": "impasto.config.run",
    "RunDirectory": "impasto.runs",
    "Sampler": "impasto.sampling.sampler",
    "SilentEvents": "impasto.training.events",
    "StepRecipe": "impasto.training.step",
    "Trainable": "impasto.models.trainable",
    "TrainedModule": "impasto.models.trainable",
    "TrainingEvents": "impasto.training.events",
    "build_trainable": "impasto.training.builders.methods",
    "load_base_model": "impasto.models.networks.loading",
    "load_run_config": "impasto.config.load",
    "plan_images": "impasto.data.planning.plan",
    "prepare": "impasto.training.own_loop",
    "resume": "impasto.training.trainer",
    "save_model": "impasto.models.writing.conversion",
    "scan_folder": "impasto.data.scanning.scan",
    "train": "impasto.training.trainer",
    "training_step": "impasto.training.step",
    "write_report": "impasto.report.page",
}

__all__ = [
    "BaseModel",
    "Batches",
    "Console",
    "FullFineTune",
    "ImpastoError",
    "Overrides",
    "Prompt",
    "RunConfig",
    "RunDirectory",
    "Sampler",
    "SilentEvents",
    "StepRecipe",
    "Trainable",
    "TrainedModule",
    "TrainingEvents",
    "__version__",
    "build_trainable",
    "load_base_model",
    "load_run_config",
    "plan_images",
    "prepare",
    "resume",
    "save_model",
    "scan_folder",
    "train",
    "training_step",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'impasto' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
