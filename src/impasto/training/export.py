"""The trained model as a file for other programs, with a record of how it came to be."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import tomli_w
from torch import Tensor

from impasto import files
from impasto.checkpoints import hypernetworks
from impasto.checkpoints.hypernetwork_writing import write_hypernetwork
from impasto.checkpoints.tensors import total_bytes
from impasto.config.run import RunConfig
from impasto.models.hypernetwork import Hypernetwork
from impasto.models.loading import BaseModel
from impasto.models.saving import DTYPES, SUFFIXES, About, Form, save_model, trained_contents
from impasto.models.text_metadata import layout_metadata
from impasto.models.trainable import Trainable
from impasto.progress import Progress
from impasto.publishing import published_settings
from impasto.runs import RunDirectory
from impasto.training.own_models import OwnModels
from impasto.training.session import Session
from impasto.training.text import build_layout

SUMMARY_KEY = "impasto.training"
BEST, AVERAGE = "-best", "-ema"
"""What is put after a model's name."""


Trained = Mapping[str, Mapping[str, Tensor]]
"""Part -> its tensors by name."""


def trained_bytes(trained: Trained) -> int:
    """Bytes of what was trained."""
    return sum(t.nbytes for tensors in trained.values() for t in tensors.values())


def trained_copy(trained: Trained) -> Trained:
    """A copy in the computer's memory, which training does not change."""
    return {
        part: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        for part, tensors in trained.items()
    }


class Exporter(Protocol):
    """Writes what was trained as a file for other programs."""

    def suffix(self, config: RunConfig) -> str:
        """The ending of its name."""

    def size(self, config: RunConfig, model: BaseModel, trainable: Trainable) -> int:
        """Bytes of its tensors."""

    def write(self, session: Session, trained: Trained, target: Path, progress: Progress) -> None:
        """Write it; it appears whole or not at all."""


class ModelExporter:
    """The base model with the trained parts in it."""

    def suffix(self, config: RunConfig) -> str:
        """By the form."""
        return SUFFIXES[_model_form(config)]

    def size(self, config: RunConfig, model: BaseModel, trainable: Trainable) -> int:
        """All parts, each in its precision."""
        trained = {part.name for part in trainable.parts}
        size = total_bytes(model.contents.ldm_only)
        for part, tensors in model.contents.parts.items():
            usual = config.export_precision if part in trained else None
            asked = config.saving.part_dtypes.get(part, usual)
            for name, tensor in tensors.items():
                dtype = DTYPES[asked] if asked else model.stored[part][name]
                size += tensor.cast(dtype).size_bytes
        return size

    def write(self, session: Session, trained: Trained, target: Path, progress: Progress) -> None:
        """Write the model; see `save_model`."""
        config, saving = session.config, session.config.saving
        contents = trained_contents(
            session.model,
            trained,
            {part: DTYPES[word] for part, word in saving.part_dtypes.items()},
            trained_dtype=DTYPES[config.export_precision],
        )
        width, height = max(part.width_height for part in config.dataset.parts)
        about = About(
            title=saving.metadata.get("title", target.name.removesuffix(self.suffix(config))),
            resolution=f"{width}x{height}",
            encoder_layer=config.model.clip_skip or 1,
            others={str(key): text for key, text in saving.metadata.items() if key != "title"},
            more={
                SUMMARY_KEY: json.dumps(training_summary(session), ensure_ascii=False),
                **layout_metadata(build_layout(config)),
            },
        )
        save_model(contents, target, _model_form(config), about, progress)


class HypernetworkExporter:
    """The hypernetwork alone."""

    def suffix(self, config: RunConfig) -> str:
        """By the form."""
        return hypernetworks.SUFFIXES[_dialect(config)]

    def size(self, config: RunConfig, model: BaseModel, trainable: Trainable) -> int:  # noqa: ARG002
        """What learns is all there is."""
        numbers = sum(part.count() for part in trainable.parts)
        return numbers * DTYPES[config.export_precision].itemsize

    def write(self, session: Session, trained: Trained, target: Path, progress: Progress) -> None:
        """Write the hypernetwork; what its form cannot say is told."""
        config = session.config
        module = session.trainable.parts[0].module
        assert isinstance(module, Hypernetwork)  # noqa: S101 - what this exporter belongs to
        (tensors,) = trained.values()
        contents = hypernetworks.HypernetworkContents(
            hypernetworks.halves_of({n.removeprefix("pairs."): t for n, t in tensors.items()}),
            module.structure,
            name=target.name.removesuffix(self.suffix(config)),
            step=session.total_steps,
            initialization=config.hypernetwork.initialization.replace("ZeroOutput", "Normal"),
            base_name=session.model.contents.name,
            info=config.hypernetwork.info,
            metadata={SUMMARY_KEY: json.dumps(training_summary(session), ensure_ascii=False)},
        )
        lost = write_hypernetwork(
            contents.cast(DTYPES[config.export_precision]), target, _dialect(config)
        )
        for sentence in lost:
            progress.note(f"{target.name}: {sentence}")


EXPORTERS: dict[str, Exporter] = {
    "full": ModelExporter(),
    "hypernetwork": HypernetworkExporter(),
}


def export_on_the_way(
    session: Session,
    trained: Trained,
    models: OwnModels,
    progress: Progress,
    ending: str,
    variant: str = "",
) -> Path:
    """Export as `<name>-<ending><variant>`, and remove the oldest of this run's models like that.

    Raises:
        ModelError: A trained weight does not fit the precision asked for.
        StorageError: The disk is full; what was exported before is untouched.
    """
    config = session.config
    folder = models_folder(config)
    full_ending = f"-{ending}{variant}"
    target = _export(session, trained, models, folder, progress, full_ending)
    if config.saving.keep_models is not None:
        models.remove_oldest(
            config.export_name, full_ending, _suffix(config), folder, config.saving.keep_models
        )
    return target


def export_final(
    session: Session,
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
    config = session.config
    folder = config.saving.model_dir or RunDirectory(config.output_dir).export
    return _export(session, trained, models, folder, progress, ending)


def export_best(
    session: Session, trained: Trained, models: OwnModels, progress: Progress, variant: str = ""
) -> Path:
    """Export as `<name>-best<variant>` in the place of the best one before.

    Raises:
        ModelError: A trained weight does not fit the precision asked for.
        StorageError: The disk is full; what was exported before is untouched.
    """
    folder = models_folder(session.config)
    return _export(session, trained, models, folder, progress, f"{BEST}{variant}")


def models_folder(config: RunConfig) -> Path:
    """Where models go that are exported on the way."""
    return config.saving.model_dir or config.output_dir / "models"


def on_the_way_target(config: RunConfig, ending: str, variant: str) -> Path:
    """Where a model goes that is exported on the way, unless others have a file of that name."""
    return models_folder(config) / f"{config.export_name}-{ending}{variant}{_suffix(config)}"


def planned_models(config: RunConfig, endings: Iterable[str]) -> list[Path]:
    """Every model file that a run is going to write outside its own directory.

    Args:
        config: The settings.
        endings: Of the models on the way.
    """
    folder = config.saving.model_dir
    if folder is None:
        return []
    beside = config.training.ema_decay is not None and config.saving.average == "beside"
    whole = ["", *([BEST] if config.saving.best_model else []), *(f"-{e}" for e in endings)]
    return [
        folder / f"{config.export_name}{ending}{variant}{_suffix(config)}"
        for ending in whole
        for variant in ("", *([AVERAGE] if beside else []))
    ]


def _suffix(config: RunConfig) -> str:
    return EXPORTERS[config.method.kind].suffix(config)


def _export(
    session: Session,
    trained: Trained,
    models: OwnModels,
    folder: Path,
    progress: Progress,
    ending: str,
) -> Path:
    config = session.config
    asked = folder / f"{config.export_name}{ending}{_suffix(config)}"
    target = models.claim(asked)
    if target != asked:
        progress.note(f"{asked} was taken by another program meanwhile; the model is {target}.")
    files.remove_leftovers(target.parent)
    EXPORTERS[config.method.kind].write(session, trained, target, progress)
    return target


def _model_form(config: RunConfig) -> Form:
    return next(form for form in SUFFIXES if form == config.export_form)


def _dialect(config: RunConfig) -> hypernetworks.Dialect:
    return next(form for form in hypernetworks.SUFFIXES if form == config.export_form)


def training_summary(session: Session) -> dict[str, Any]:
    """How the model was trained, with no more of its machine than `saving.publish` allows."""
    config = session.config
    settings = config.model_dump(mode="json", exclude_none=True)
    return {
        "impasto_version": importlib.metadata.version("impasto"),
        "base_model": session.model.contents.name,
        "base_model_unet_sha256": session.fingerprint["base model"],
        "steps": session.total_steps,
        "samples_seen": session.sampler.samples_before(session.total_steps),
        "pictures": len(session.prepared.training.images),
        "trained_parts": [part.name for part in session.trainable.parts],
        "settings": tomli_w.dumps(published_settings(settings, config.saving.publish)),
    }
