"""Predicts before a run how much its states and models take on disk, and checks that they fit."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from impasto import presence
from impasto.config.run import RunConfig
from impasto.errors import StorageError
from impasto.models.networks.loading import BaseModel
from impasto.models.trainable import Trainable
from impasto.models.writing.saving import DTYPES
from impasto.progress import counted
from impasto.remote_paths import COPIES_VARIABLE
from impasto.runs import RunDirectory
from impasto.runs.remote.local_folders import is_working_folder
from impasto.training.builders.model import BASE_FILES, learning_networks
from impasto.training.builders.model_files import model_bytes
from impasto.training.optim.posthoc import TRACKED
from impasto.training.planning.memory_facts import optimizer_bytes, shapes_of
from impasto.training.triggers import Triggers

SMALL_FILES = 64 << 20  # bytes: previews, metrics, the report


@dataclass(frozen=True)
class DiskPlan:
    """Disk space of a run's states and models when it is at its largest.

    Attributes:
        state_bytes: Bytes of one state.
        states: Most states that exist at once, including one that is being written.
        model_bytes: Bytes of one exported model.
        models: Most exported models that exist at once.
        snapshot_bytes: Bytes of one snapshot of the averages of `training.posthoc_ema`.
        snapshots: Number of those snapshots.
        start_bytes: Bytes of the start weights, which snapshots are stored as differences from;
            stored once.
        base_bytes: Bytes of the base model's weights, which exported models are mixed with; stored
            while the run trains.
    """

    state_bytes: int
    states: int
    model_bytes: int
    models: int
    snapshot_bytes: int = 0
    snapshots: int = 0
    start_bytes: int = 0
    base_bytes: int = 0

    @property
    def run_bytes(self) -> int:
        """Bytes of the run directory without exported models."""
        averages = self.snapshots * self.snapshot_bytes + self.start_bytes
        return self.states * self.state_bytes + averages + self.base_bytes + SMALL_FILES

    @property
    def models_bytes(self) -> int:
        """Bytes of all exported models together."""
        return self.models * self.model_bytes


def plan_disk(
    config: RunConfig,
    model: BaseModel,
    trainable: Trainable,
    total_steps: int,
    steps_per_epoch: int,
) -> DiskPlan:
    """Return the predicted disk space of a run of `total_steps` steps.

    Raises:
        ConfigError: The optimizer in the settings does not exist.
    """
    return DiskPlan(
        _state_bytes(config, trainable),
        _states_at_once(config, total_steps),
        model_bytes(config, model, trainable),
        _models_at_once(config, total_steps, steps_per_epoch),
        _snapshot_bytes(config, trainable),
        _snapshots(config, total_steps, steps_per_epoch),
        _start_bytes(config, trainable),
        _base_bytes(config, model),
    )


def require_room(
    plan: DiskPlan,
    config: RunConfig,
    own_models: Iterable[Path] = (),
    staying: Iterable[Path] = (),
) -> None:
    """Check that the disk has room for the plan; files that a resumed run replaces count as free.

    Args:
        plan: The predicted disk space of the run.
        config: The settings of the run.
        own_models: Files and folders of models that the run has written, in any folder.
        staying: The paths of `own_models` that the run neither replaces nor removes.

    Raises:
        StorageError: The disk has too little space; the message names the space needed, the space
            free, and the settings that help.
    """
    run = config.output_dir
    models = config.saving.model_dir or run
    needs, limits = {run: plan.run_bytes}, {run: ["saving.keep_states"]}
    is_sent = is_working_folder(run)  # files are kept until they have been uploaded to the store
    if is_sent:
        needs[run] += plan.states * plan.state_bytes
    choices = {run: f"folder for copies ({COPIES_VARIABLE})" if is_sent else "output_dir"}
    if _device_of(models) == _device_of(run):
        needs[run] += plan.models_bytes
        limits[run] += _limits_of_models(config)
    else:
        needs[models], limits[models] = plan.models_bytes, _limits_of_models(config)
        choices[models] = "saving.model_dir"
    own = _own_bytes(run, own_models, staying)
    for folder, needed in needs.items():
        free = free_bytes(folder) + own[_device_of(folder)]
        fewer = f"keep less ({', '.join(limits[folder])}), " if limits[folder] else ""
        if needed > free:
            raise StorageError(
                f"The disk of {folder} has {_gib(free)} free, and this run needs up to "
                f"{_gib(needed)}: {counted(plan.states, 'states')} of {_gib(plan.state_bytes)}, "
                f"{counted(plan.models, 'models')} of {_gib(plan.model_bytes)}"
                f"{_averages_text(plan)}{_base_text(plan)}. "
                f"The run was not started. Free some space, {fewer}or choose another "
                f"{choices[folder]}."
            )


def _limits_of_models(config: RunConfig) -> list[str]:
    """Return the names of the settings that limit how many intermediate models are kept.

    Only those that apply to the run: without intermediate models the list is empty.
    """
    saving = config.saving
    kinds = {
        "keep_step_models": saving.model_every_steps,
        "keep_epoch_models": saving.model_every_epochs,
    }
    named = [name if getattr(saving, name) else "keep_models" for name, on in kinds.items() if on]
    return [f"saving.{name}" for name in dict.fromkeys(named)]


def _own_bytes(run: Path, models: Iterable[Path], staying: Iterable[Path]) -> Counter[int]:
    """Return how many bytes of existing files a run will replace: disk (`st_dev`) -> bytes."""
    roots = [*(run / name for name in _own_folders(run)), *run.glob(BASE_FILES), *models]
    own: Counter[int] = Counter()
    for file in _all_below(roots) - _all_below(staying):
        if presence.is_file(file):
            facts = file.stat()
            own[facts.st_dev] += facts.st_size
    return own


def _all_below(roots: Iterable[Path]) -> set[Path]:
    return {file.resolve() for root in roots for file in (root, *root.rglob("*"))}


def _own_folders(run: Path) -> tuple[str, ...]:
    """Return the folders whose files a run replaces; "averages" only where it resumes from a state.

    A run that starts from step 0 renames the folder of averages instead.
    """
    goes_on = bool(RunDirectory(run).saved_steps())
    return ("states", "models", "averages") if goes_on else ("states", "models")


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that `path` is on, or would be on if it were created."""
    return shutil.disk_usage(_existing(path)).free


def _state_bytes(config: RunConfig, trainable: Trainable) -> int:
    training = config.training
    per_weight = DTYPES[training.weight_dtype].itemsize + 4 * training.averages
    weights = per_weight * sum(trained.count() for trained in trainable.modules)
    return weights + optimizer_bytes(config, shapes_of(trainable))


def _states_at_once(config: RunConfig, total_steps: int) -> int:
    """Return the most states that exist at once.

    One more than the settings plan: a stop, a `save` request or an error writes one too.
    """
    saving = config.saving
    every = saving.state_every_steps
    planned = 1 + ((total_steps - 1) // every if every else 0)
    if saving.state_every_minutes is not None:
        planned = saving.keep_states + 1
    return min(planned + 1, saving.keep_states + 1)


def _models_at_once(config: RunConfig, total_steps: int, steps_per_epoch: int) -> int:
    saving = config.saving
    on_the_way = 0
    for every, kept in (
        (saving.model_every_steps or 0, saving.kept_step_models),
        ((saving.model_every_epochs or 0) * steps_per_epoch, saving.kept_epoch_models),
    ):
        count = (total_steps - 1) // every if every else 0
        on_the_way += count if kept is None else min(count, kept + 1)
    variants = 2 if saving.average == "beside" else 1
    return variants * (on_the_way + 2 * config.keeps_best + 1)


def _snapshot_bytes(config: RunConfig, trainable: Trainable) -> int:
    """Return the bytes of one snapshot of the averages of `training.posthoc_ema`; 0 if off."""
    if not config.training.posthoc_ema:
        return 0
    each = len(TRACKED) * DTYPES[config.saving.posthoc_dtype].itemsize
    return each * sum(trained.count() for trained in trainable.modules)


def _start_bytes(config: RunConfig, trainable: Trainable) -> int:
    """Return the bytes of the float32 start weights that averages are stored as differences from.

    0 where `training.posthoc_ema` is off.
    """
    if not config.training.posthoc_ema:
        return 0
    return torch.float32.itemsize * sum(trained.count() for trained in trainable.modules)


def _base_bytes(config: RunConfig, model: BaseModel) -> int:
    """Return the bytes of the base model's trained weights as stored for mixing into exports.

    0 where `saving.merge_ratio` is 1: then nothing is mixed.
    """
    if config.saving.merge_ratio == 1:
        return 0
    own = DTYPES[config.training.weight_dtype]
    return sum(
        prod(tensor.shape) * min(model.stored[component][name].itemsize, own.itemsize)
        for component in learning_networks(config, model.family)
        for name, tensor in model.contents.components[component].items()
    )


def _snapshots(config: RunConfig, total_steps: int, steps_per_epoch: int) -> int:
    """Return how many snapshots of averages a run stores, including the one at its end."""
    if not config.training.posthoc_ema:
        return 0
    return -(-total_steps // Triggers(config, steps_per_epoch).averages_every(total_steps))


def _averages_text(plan: DiskPlan) -> str:
    if not plan.snapshots:
        return ""
    times = counted(plan.snapshots, "times")
    return (
        f", averages of {_gib(plan.snapshot_bytes)} {times} (saving.posthoc_every_steps) and the "
        f"start weights that they are differences from, {_gib(plan.start_bytes)}"
    )


def _base_text(plan: DiskPlan) -> str:
    if not plan.base_bytes:
        return ""
    return f", {_gib(plan.base_bytes)} of the base model while it trains (saving.merge_ratio)"


def _existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if presence.exists(p))


def _device_of(path: Path) -> int:
    return _existing(path).stat().st_dev


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
