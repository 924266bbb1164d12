"""Exports the trained model as a file for other programs, with metadata on its training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import tomli_w
from torch import Tensor

from impasto import temporary_names
from impasto.checkpoints import hypernetworks
from impasto.checkpoints.hypernetwork_writing import write_hypernetwork
from impasto.config.run import RunConfig
from impasto.models.networks.hypernetwork import Hypernetwork
from impasto.models.networks.loading import BaseModel
from impasto.models.tokenization.text_metadata import layout_metadata
from impasto.models.trainable import Trainable
from impasto.models.writing.saving import (
    DTYPES,
    About,
    MergedWithBase,
    trained_contents,
    write_model,
)
from impasto.progress import Progress
from impasto.publishing import redact_settings
from impasto.remote_paths import shown
from impasto.training.builders.model_files import (
    BEST,
    asked_dtypes,
    dialect,
    export_folder,
    model_form,
    model_suffix,
    models_folder,
)
from impasto.training.builders.text import build_layout, zeroes_empty_negative
from impasto.training.saving.own_models import OwnModels
from impasto.version import __version__

SUMMARY_KEY = "impasto.training"
Trained = Mapping[str, Mapping[str, Tensor]]
"""Part of the model -> its tensors by name."""


def trained_bytes(trained: Trained) -> int:
    """Return the size of all trained tensors in bytes."""
    return sum(t.nbytes for tensors in trained.values() for t in tensors.values())


def copy_trained(trained: Trained) -> Trained:
    """Return a copy of trained tensors in RAM, which training does not change."""
    return {
        component: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        for component, tensors in trained.items()
    }


@dataclass(frozen=True)
class ExportSource:
    """The inputs of an export, apart from the trained tensors.

    Attributes:
        config: The settings.
        model: The base model.
        trainable: The trained parts.
        steps: Optimizer steps completed.
        samples_before: Returns the number of samples seen in a given number of steps.
        images: Number of images trained on.
        base_hash: Hash of the base model's U-Net.
        merged: Merges trained parts with the base model; None exports them unchanged.
    """

    config: RunConfig
    model: BaseModel
    trainable: Trainable
    steps: int
    samples_before: Callable[[int], int]
    images: int
    base_hash: str
    merged: MergedWithBase | None = None


class Exporter(Protocol):
    """Writes the trained parts as a file for other programs."""

    def write(
        self, source: ExportSource, trained: Trained, target: Path, progress: Progress
    ) -> None:
        """Write the file or folder `target`, either completely or not at all."""


class ModelExporter:
    """Writes the base model with the trained parts in it."""

    def write(
        self, source: ExportSource, trained: Trained, target: Path, progress: Progress
    ) -> None:
        """Write the model; see `write_model`."""
        config, saving = source.config, source.config.saving
        contents = trained_contents(
            source.model,
            trained,
            asked_dtypes(config, source.model),
            trained_dtype=DTYPES[config.export_precision],
            merged=source.merged,
        )
        contents = replace(contents, zeroes_empty_text=zeroes_empty_negative(config, source.model))
        width, height = max(entry.width_height for entry in config.dataset.entries)
        about = About(
            title=saving.metadata.get("title", target.name.removesuffix(model_suffix(config))),
            resolution=f"{width}x{height}",
            encoder_layer=config.model.clip_skip or 1,
            others={str(key): text for key, text in saving.metadata.items() if key != "title"},
            more={
                SUMMARY_KEY: json.dumps(training_summary(source), ensure_ascii=False),
                **layout_metadata(build_layout(config)),
            },
        )
        write_model(contents, target, model_form(config), about, progress)


class HypernetworkExporter:
    """Writes the hypernetwork alone, without the model."""

    def write(
        self, source: ExportSource, trained: Trained, target: Path, progress: Progress
    ) -> None:
        """Write the hypernetwork, and note the information that its format cannot hold."""
        config = source.config
        module, asked = source.trainable.modules[0].module, config.hypernetwork
        assert isinstance(module, Hypernetwork)  # noqa: S101 - this exporter is for it alone
        assert asked is not None  # noqa: S101 - likewise
        (tensors,) = trained.values()
        contents = hypernetworks.HypernetworkContents(
            hypernetworks.halves_of({n.removeprefix("pairs."): t for n, t in tensors.items()}),
            module.structure,
            name=target.name.removesuffix(model_suffix(config)),
            step=source.steps,
            initialization=module.initialization,
            base_name=source.model.contents.name,
            info=asked.info,
            metadata={
                **{f"modelspec.{key}": text for key, text in config.saving.metadata.items()},
                SUMMARY_KEY: json.dumps(training_summary(source), ensure_ascii=False),
            },
        )
        lost = write_hypernetwork(
            contents.cast(DTYPES[config.export_precision]), target, dialect(config)
        )
        if config.saving.metadata and dialect(config) != "safetensors":
            names = ", ".join(config.saving.metadata)
            lost += (
                f"saving.metadata ({names}) is left out, since a .pt file has no place for it. "
                f"With saving.format safetensors it is written.",
            )
        for sentence in lost:
            progress.note(f"{target.name}: {sentence}")


EXPORTERS: dict[str, Exporter] = {
    "full": ModelExporter(),
    "hypernetwork": HypernetworkExporter(),
}


def export_intermediate(
    source: ExportSource,
    trained: Trained,
    models: OwnModels,
    progress: Progress,
    ending: str,
    variant: str = "",
) -> Path:
    """Export a model as `<name>-<ending><variant>`, and remove this run's oldest such models.

    Models by steps, whose `ending` begins with "step", and models by epochs are counted separately.

    Raises:
        ModelError: A trained weight is out of range of the export precision.
        StorageError: The disk is full; earlier exports are unchanged.
    """
    config = source.config
    folder = models_folder(config)
    full_ending = f"-{ending}{variant}"
    target = _export(source, trained, models, folder, progress, full_ending)
    saving = config.saving
    kept = saving.kept_step_models if ending.startswith("step") else saving.kept_epoch_models
    if kept is not None:
        suffix = model_suffix(config)
        for old in models.remove_oldest(config.export_name, full_ending, suffix, folder, kept):
            progress.note(
                f"{shown(old)} could not be removed: another program may have it open. Impasto "
                f"tries again after the next model."
            )
    return target


def export_final(
    source: ExportSource,
    trained: Trained,
    models: OwnModels,
    progress: Progress,
    ending: str = "",
) -> Path:
    """Export the final model as `<name><ending>` in the format of the settings; return its path.

    Raises:
        ModelError: A trained weight is out of range of the export precision.
        StorageError: The disk is full; earlier exports are unchanged.
    """
    folder = export_folder(source.config)
    return _export(source, trained, models, folder, progress, ending)


def export_best(
    source: ExportSource,
    trained: Trained,
    models: OwnModels,
    progress: Progress,
    variant: str,
    measured: tuple[int, float],
) -> Path:
    """Export the best model so far as `<name>-best<variant>`, replacing the earlier one.

    Args:
        source: The inputs of the export.
        trained: The trained tensors.
        models: The run's record of models, which stores the step of the best one.
        progress: Receives progress and notes.
        variant: Suffix of the name after "-best", such as "-ema".
        measured: The step, and the validation loss.

    Raises:
        ModelError: A trained weight is out of range of the export precision.
        StorageError: The disk is full; earlier exports are unchanged.
    """
    folder = models_folder(source.config)
    target = _claim(source, models, folder, progress, f"{BEST}{variant}")
    models.begin_best(target)
    EXPORTERS[source.config.method.kind].write(source, trained, target, progress)
    models.end_best(target, *measured)
    return target


def _export(
    source: ExportSource,
    trained: Trained,
    models: OwnModels,
    folder: Path,
    progress: Progress,
    ending: str,
) -> Path:
    target = _claim(source, models, folder, progress, ending)
    EXPORTERS[source.config.method.kind].write(source, trained, target, progress)
    return target


def _claim(
    source: ExportSource, models: OwnModels, folder: Path, progress: Progress, ending: str
) -> Path:
    config = source.config
    asked = folder / f"{config.export_name}{ending}{model_suffix(config)}"
    target = models.claim(asked, config.saving.merge_ratio)
    if target != asked:
        progress.note(f"{asked} now belongs to another program; the model is saved as {target}.")
    temporary_names.remove_leftovers(target.parent)
    return target


def training_summary(source: ExportSource) -> dict[str, Any]:
    """Return a record of the training for metadata, without paths and prompts that are private.

    `saving.publish` names those that may be included.
    """
    config = source.config
    settings = config.model_dump(mode="json", exclude_none=True)
    return {
        "impasto_version": __version__,
        "base_model": source.model.contents.name,
        "base_model_unet_sha256": source.base_hash,
        "steps": source.steps,
        "samples_seen": source.samples_before(source.steps),
        "images": source.images,
        "trained_parts": [trained.name for trained in source.trainable.modules],
        "settings": tomli_w.dumps(redact_settings(settings, config.saving.publish)),
    }
