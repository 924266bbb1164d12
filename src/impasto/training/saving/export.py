"""The trained model as a file for other programs, with a record of how it came to be."""

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
"""Part -> its tensors by name."""


def trained_bytes(trained: Trained) -> int:
    """Bytes of what was trained."""
    return sum(t.nbytes for tensors in trained.values() for t in tensors.values())


def copy_trained(trained: Trained) -> Trained:
    """A copy in RAM, which training does not change."""
    return {
        component: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        for component, tensors in trained.items()
    }


@dataclass(frozen=True)
class ExportSource:
    """What a model is exported from, apart from the tensors that were trained.

    Attributes:
        config: The settings.
        model: The base model.
        trainable: What was trained.
        steps: Optimizer steps that are done.
        samples_before: How many samples are seen after so many steps.
        images: Images that were trained on.
        base_hash: Hash of the base model's U-Net.
        merged: What trained parts are mixed with; None leaves them as they were trained.
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
    """Writes what was trained as a file for other programs."""

    def write(
        self, source: ExportSource, trained: Trained, target: Path, progress: Progress
    ) -> None:
        """Write it; it appears whole or not at all."""


class ModelExporter:
    """The base model with the trained parts in it."""

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
        """Write the hypernetwork; what its form cannot say is told."""
        config = source.config
        module, asked = source.trainable.modules[0].module, config.hypernetwork
        assert isinstance(module, Hypernetwork)  # noqa: S101 - what this exporter belongs to
        assert asked is not None  # noqa: S101 - and so does this
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
                f"saving.metadata ({names}) is left out: a .pt file has no place for it. It is "
                f"written with saving.format safetensors.",
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
    """Export as `<name>-<ending><variant>`, and remove the oldest of this run's models like that.

    Models by steps, whose ending begins with `step`, and by epochs are counted apart.

    Raises:
        ModelError: A trained weight does not fit the precision asked for.
        StorageError: The disk is full; what was exported before is untouched.
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
                f"{shown(old)} could not be removed: another program may have it open. It is "
                f"tried again after the next model."
            )
    return target


def export_final(
    source: ExportSource,
    trained: Trained,
    models: OwnModels,
    progress: Progress,
    ending: str = "",
) -> Path:
    """Export as `<name><ending>` in the form the settings ask for, and return its path.

    Raises:
        ModelError: A trained weight does not fit the precision asked for.
        StorageError: The disk is full; what was exported before is untouched.
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
    """Export as `<name>-best<variant>` in the place of the best one before.

    Args:
        source: What is exported.
        trained: Its weights.
        models: The run's models, which remember of which step the best one is.
        progress: Who is told.
        variant: What stands after the ending.
        measured: The step, and the validation loss.

    Raises:
        ModelError: A trained weight does not fit the precision asked for.
        StorageError: The disk is full; what was exported before is untouched.
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
        progress.note(f"{asked} was taken by another program meanwhile; the model is {target}.")
    temporary_names.remove_leftovers(target.parent)
    return target


def training_summary(source: ExportSource) -> dict[str, Any]:
    """How the model was trained, with no more of its machine than `saving.publish` allows."""
    config = source.config
    settings = config.model_dump(mode="json", exclude_none=True)
    return {
        "impasto_version": __version__,
        "base_model": source.model.contents.name,
        "base_model_unet_sha256": source.base_hash,
        "steps": source.steps,
        "samples_seen": source.samples_before(source.steps),
        "pictures": source.images,
        "trained_parts": [trained.name for trained in source.trainable.modules],
        "settings": tomli_w.dumps(redact_settings(settings, config.saving.publish)),
    }
