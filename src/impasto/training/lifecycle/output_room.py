"""Checks, before training, that the disk has room for the files that a run will write."""

from __future__ import annotations

from impasto.config.run import RunConfig
from impasto.runs import RunDirectory
from impasto.training.builders.model_files import planned_models
from impasto.training.planning.disk import DiskPlan, require_room
from impasto.training.saving.own_models import OwnModels
from impasto.training.triggers import Triggers


def require_output_room(
    run: RunDirectory, config: RunConfig, plan: DiskPlan, total_steps: int, steps_per_epoch: int
) -> OwnModels:
    """Make sure that a run's files fit on the disk, and that none replaces another run's model.

    Args:
        run: The run, which may have written files already.
        config: Its settings.
        plan: The files that it will leave, and their sizes.
        total_steps: Its optimizer steps.
        steps_per_epoch: Optimizer steps in an epoch.

    Returns:
        The record of the models that the run has written.

    Raises:
        StorageError: The disk has too little room.
        RunError: Models of other runs would be replaced.
    """
    own = OwnModels(run, overwrite=config.saving.overwrite)
    endings = Triggers(config, steps_per_epoch).planned_endings(total_steps)
    planned = planned_models(config, endings)
    staying = own.staying(planned, keeps_newest=config.saving.keeps_newest)
    require_room(plan, config, own.paths(), staying)
    own.require_free(planned)
    return own
