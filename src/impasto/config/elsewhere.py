"""Suggests settings of other sections for a key that is unknown in its own section."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

OF_OTHER_TRAINERS = {
    "learning_rate": "optimizer.lr",
    "optimizer_type": "optimizer.kind",
    "lr_scheduler": "schedule.kind",
    "lr_warmup_steps": "schedule.warmup_steps",
    "max_train_steps": "training.max_steps",
    "max_train_epochs": "training.max_epochs",
    "train_batch_size": "training.batch_size",
    "pretrained_model_name_or_path": "model.path",
    "save_every_n_steps": "saving.model_every_steps",
    "save_every_n_epochs": "saving.model_every_epochs",
    "output_name": "saving.name",
}
"""Name of a setting in sd-scripts or diffusers -> its path here; whatever section it was found
in."""

MEANT = {
    "dataset.path": "dataset.image_dir",
    "dataset.dir": "dataset.image_dir",
    "dataset.folder": "dataset.image_dir",
    "dataset.seed": "seed",
    "model.name": "model.path",
    "optimizer.type": "optimizer.kind",
    "optimizer.name": "optimizer.kind",
    "saving.path": "output_dir",
    "saving.dir": "output_dir",
    "saving.output": "output_dir",
    "schedule.type": "schedule.kind",
    "loss.type": "loss.kind",
    "output": "output_dir",
    "out": "output_dir",
    "path": "model.path",
}
"""Keys too unlike any setting to be matched by spelling -> the intended setting."""


def by_meaning(path: str, root: type[BaseModel]) -> list[str]:
    """Return the setting that a key of another name stands for, as a list of at most one."""
    found = meant(path) if _settings(root) else None
    return [found] if found else []


def meant(path: str) -> str | None:
    """Return the setting for a path that uses a common or foreign name; None if unknown."""
    return MEANT.get(path) or OF_OTHER_TRAINERS.get(path.rpartition(".")[2])


def of_that_name(path: str, root: type[BaseModel]) -> list[str]:
    """Return the settings of a run with the same name as a key, in other sections.

    Args:
        path: The path of the key.
        root: The section that is read; only for the settings of runs do other sections exist.
    """
    name = path.rpartition(".")[2]
    return [setting for setting in _settings(root) if setting.rpartition(".")[2] == name]


def nearest(path: str, root: type[BaseModel]) -> list[str]:
    """Return the setting of a run whose name is most similar to a key, as a list of at most one."""
    from impasto.config import tree  # imports all sections, which import this

    settings = _settings(root)
    found = tree.nearest(path.rpartition(".")[2], settings) if settings else None
    return [found] if found else []


def _settings(root: type[BaseModel]) -> Sequence[str]:
    from impasto.config import tree
    from impasto.config.run import RunConfig

    return list(tree.all_settings()) if root is RunConfig else []
