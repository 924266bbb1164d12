"""Which setting of another section was meant by a key that is in the wrong one."""

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
"""What sd-scripts and diffusers call a setting that has another name here, in any section."""

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
"""Keys that say too little to be found by their letters, and what somebody means by them."""


def by_meaning(path: str, root: type[BaseModel]) -> list[str]:
    """The setting of a run that a key is another word for, if it is one."""
    found = meant(path) if _settings(root) else None
    return [found] if found else []


def meant(path: str) -> str | None:
    """The setting that other trainers, or people, call by the name of a path."""
    return MEANT.get(path) or OF_OTHER_TRAINERS.get(path.rpartition(".")[2])


def of_that_name(path: str, root: type[BaseModel]) -> list[str]:
    """The settings of a run that are called as the key of a path, in other sections.

    Args:
        path: Of the key.
        root: What is read; only of runs there are settings elsewhere.
    """
    name = path.rpartition(".")[2]
    return [setting for setting in _settings(root) if setting.rpartition(".")[2] == name]


def nearest(path: str, root: type[BaseModel]) -> list[str]:
    """The setting of a run that is called most like the key of a path, if one is like it."""
    from impasto.config import tree  # which imports all sections, and they what reads them

    settings = _settings(root)
    found = tree.nearest(path.rpartition(".")[2], settings) if settings else None
    return [found] if found else []


def _settings(root: type[BaseModel]) -> Sequence[str]:
    from impasto.config import tree
    from impasto.config.run import RunConfig

    return list(tree.all_settings()) if root is RunConfig else []
