"""The trained model as a file for other programs, with a record of how it came to be."""

from __future__ import annotations

import glob
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from impasto import files
from impasto.config.base import Section
from impasto.config.load import dump_toml
from impasto.config.run import RunConfig
from impasto.models.saving import DTYPES, SUFFIXES, About, save_model, trained_contents
from impasto.models.text_metadata import layout_metadata
from impasto.progress import Progress
from impasto.runs import RunDirectory
from impasto.training.session import Session
from impasto.training.text import build_layout

SUMMARY_KEY = "impasto.training"


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


def export_on_the_way(
    session: Session,
    trained: Trained,
    run: RunDirectory,
    progress: Progress,
    ending: str,
    variant: str = "",
) -> Path:
    """Export as `<name>-<ending><variant>`, and remove the oldest of those.

    Raises:
        ModelError: A trained weight does not fit the precision asked for.
        StorageError: The disk is full; what was exported before is untouched.
    """
    saving = session.config.saving
    folder = saving.model_dir or run.path / "models"
    name, suffix = session.config.export_name, SUFFIXES[saving.format]
    target = folder / f"{name}-{ending}{variant}{suffix}"
    _export(session, trained, target, progress)
    if saving.keep_models is not None:
        digits = "[0-9]" * len(ending.removeprefix("step"))
        prefix = "step" if ending.startswith("step") else ""
        earlier = sorted(folder.glob(f"{glob.escape(name)}-{prefix}{digits}{variant}{suffix}"))
        for old in earlier[: -saving.keep_models]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return target


def export_best(
    session: Session, trained: Trained, run: RunDirectory, progress: Progress, variant: str = ""
) -> Path:
    """Export in the place of the best one before, as `<name>-best<variant>`.

    Raises:
        ModelError: A trained weight does not fit the precision asked for.
        StorageError: The disk is full; what was exported before is untouched.
    """
    saving = session.config.saving
    folder = saving.model_dir or run.path / "models"
    target = folder / f"{session.config.export_name}-best{variant}{SUFFIXES[saving.format]}"
    _export(session, trained, target, progress)
    return target


def export_model(
    session: Session, trained: Trained, run: RunDirectory, progress: Progress, variant: str = ""
) -> Path:
    """Write the trained model, in the form the settings ask for, and return its path.

    Raises:
        ModelError: A trained weight does not fit the precision asked for.
        StorageError: The disk is full; what was exported before is untouched.
    """
    saving = session.config.saving
    folder = saving.model_dir or run.export
    target = folder / f"{session.config.export_name}{variant}{SUFFIXES[saving.format]}"
    _export(session, trained, target, progress)
    return target


def _export(session: Session, trained: Trained, target: Path, progress: Progress) -> None:
    config, saving = session.config, session.config.saving
    files.remove_leftovers(target.parent)
    contents = trained_contents(
        session.model,
        trained,
        {part: DTYPES[word] for part, word in saving.part_dtypes.items()},
        trained_dtype=DTYPES[saving.export_dtype],
    )
    width, height = max(part.width_height for part in config.dataset.parts)
    about = About(
        title=saving.metadata.get("title", target.name.removesuffix(SUFFIXES[saving.format])),
        resolution=f"{width}x{height}",
        encoder_layer=config.model.clip_skip or 1,
        others={str(key): text for key, text in saving.metadata.items() if key != "title"},
        more={
            SUMMARY_KEY: json.dumps(training_summary(session), ensure_ascii=False),
            **layout_metadata(build_layout(config)),
        },
    )
    save_model(contents, target, saving.format, about, progress)


def training_summary(session: Session) -> dict[str, Any]:
    """How the model was trained, with no path of the machine it was trained on."""
    config = session.config
    return {
        "impasto_version": importlib.metadata.version("impasto"),
        "base_model": session.model.contents.name,
        "base_model_unet_sha256": session.fingerprint["base model"],
        "steps": session.total_steps,
        "samples_seen": session.sampler.samples_before(session.total_steps),
        "pictures": len(session.prepared.training.images),
        "trained_parts": [part.name for part in session.trainable.parts],
        "settings": dump_toml(_without_paths(config)),
    }


def _without_paths(config: RunConfig) -> RunConfig:
    """Settings as they may be published: folders by their last name only."""
    dataset = _with_last_names(config.dataset, "image_dir", "metadata_file", "mask_dir")
    dataset = dataset.model_copy(
        update={
            "cache_dir": None,
            "datasets": tuple(
                part.model_copy(
                    update={
                        "subsets": tuple(
                            _with_last_names(subset, "image_dir", "metadata_file", "mask_dir")
                            for subset in part.subsets
                        )
                    }
                )
                for part in dataset.datasets
            ),
        }
    )
    validation = _with_last_names(config.validation, "image_dir")
    model = config.model.model_copy(
        update={"path": _last_name(config.model.path), "vae": _last_name(config.model.vae)}
    )
    return config.model_copy(
        update={
            "output_dir": config.output_dir.name,
            "model": model,
            "dataset": dataset,
            "validation": validation,
        }
    )


S = TypeVar("S", bound=Section)


def _with_last_names(section: S, *fields: str) -> S:
    """A section with only the last part of the paths in some of its fields."""
    paths = {name: getattr(section, name) for name in fields}
    return section.model_copy(
        update={n: path.name for n, path in paths.items() if path is not None}
    )


def _last_name(source: str | None) -> str | None:
    return None if source is None else source.replace("\\", "/").rstrip("/").rpartition("/")[2]
