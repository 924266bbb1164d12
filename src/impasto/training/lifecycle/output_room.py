"""Makes sure of the room for what a run writes, before it trains."""

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
    """Make sure that what a run will write has room, and is in nobody's way.

    Args:
        run: The run, which may have written something already.
        config: Its settings.
        plan: What it will leave.
        total_steps: Its optimizer steps.
        steps_per_epoch: How many of them are one epoch.

    Returns:
        The models that it has written.

    Raises:
        StorageError: The disk is too small.
        RunError: Models of other runs would be replaced.
    """
    own = OwnModels(run, overwrite=config.saving.overwrite)
    endings = Triggers(config, steps_per_epoch).planned_endings(total_steps)
    planned = planned_models(config, endings)
    staying = own.staying(planned, keeps_newest=config.saving.keeps_newest)
    require_room(plan, config, own.paths(), staying)
    own.require_free(planned)
    return own
