"""Names, folders and sizes of the model files that a run will write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from impasto.checkpoints import hypernetworks
from impasto.checkpoints.tensors import total_bytes
from impasto.config.run import RunConfig
from impasto.models.families import by_kind
from impasto.models.networks.loading import BaseModel
from impasto.models.trainable import Trainable
from impasto.models.writing.saving import DTYPES, SUFFIXES, Form
from impasto.runs import RunDirectory

BEST, AVERAGE = "-best", "-ema"
"""Suffixes of model names."""


def model_suffix(config: RunConfig) -> str:
    """Return the file extension of exported models, with its dot; empty for a folder."""
    if config.method.kind == "full":
        return SUFFIXES[model_form(config)]
    return hypernetworks.SUFFIXES[dialect(config)]


def model_bytes(config: RunConfig, model: BaseModel, trainable: Trainable) -> int:
    """Return the bytes of the tensors of one exported model, each network in its export precision.

    For a hypernetwork, only the trained weights.
    """
    if config.method.kind != "full":
        numbers = sum(component.count() for component in trainable.modules)
        return numbers * DTYPES[config.export_precision].itemsize
    trained = {component.name for component in trainable.modules}
    by_name = asked_dtypes(config, model)
    size = total_bytes(model.contents.ldm_only)
    for component, tensors in model.contents.components.items():
        usual = config.export_precision if component in trained else None
        asked = by_name.get(component, DTYPES[usual] if usual else None)
        for name, tensor in tensors.items():
            dtype = asked or model.stored[component][name]
            size += tensor.cast(dtype).size_bytes
    return size


def asked_dtypes(config: RunConfig, model: BaseModel) -> dict[str, torch.dtype]:
    """Return network -> its export dtype, for the networks that the settings set one for."""
    asked = {
        setting: DTYPES[precision] for setting, precision in config.saving.component_dtypes.items()
    }
    return model.family.by_name(by_kind(asked))


def models_folder(config: RunConfig) -> Path:
    """Return the folder of models that are exported during training."""
    return config.saving.model_dir or config.output_dir / "models"


def export_folder(config: RunConfig) -> Path:
    """Return the folder of the finished model."""
    return config.saving.model_dir or RunDirectory(config.output_dir).export


def intermediate_target(config: RunConfig, ending: str, variant: str) -> Path:
    """Return the path of a model that is exported during training, if that name is free."""
    return models_folder(config) / f"{config.export_name}-{ending}{variant}{model_suffix(config)}"


def planned_models(config: RunConfig, endings: Iterable[str]) -> list[Path]:
    """Return the paths of all models that a run will write.

    Args:
        config: The settings of the run.
        endings: The name suffixes of models exported during training, without the hyphen.
    """
    beside = config.training.ema_decay is not None and config.saving.average == "beside"
    on_the_way = [*([BEST] if config.keeps_best else []), *(f"-{e}" for e in endings)]
    folders = {"": export_folder(config), **dict.fromkeys(on_the_way, models_folder(config))}
    return [
        folder / f"{config.export_name}{ending}{variant}{model_suffix(config)}"
        for ending, folder in folders.items()
        for variant in ("", *([AVERAGE] if beside else []))
    ]


def model_form(config: RunConfig) -> Form:
    """Return the form that a full model is exported in."""
    return next(form for form in SUFFIXES if form == config.export_form)


def dialect(config: RunConfig) -> hypernetworks.Dialect:
    """Return the form that a hypernetwork is exported in."""
    return next(form for form in hypernetworks.SUFFIXES if form == config.export_form)
