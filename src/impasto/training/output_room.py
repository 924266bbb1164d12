"""Makes sure of the room for what a run writes, before it trains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from impasto.config.run import RunConfig
from impasto.errors import RunError
from impasto.runs import RunDirectory
from impasto.training.model_files import planned_models
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
        RunError: Models of other runs would be replaced, or what the run itself reads.
    """
    own = OwnModels(run, overwrite=config.saving.overwrite)
    endings = Triggers(config, steps_per_epoch).planned_endings(total_steps)
    planned = planned_models(config, endings)
    staying = own.staying(planned, keeps_newest=config.saving.keeps_newest)
    require_room(plan, config, own.paths(), staying)
    own.require_free(planned)
    _require_unread(config, planned)
    return own


def _require_unread(config: RunConfig, targets: Iterable[Path]) -> None:
    """Make sure that no model takes the place of those that the run reads."""
    read = [Path(path).expanduser() for path in (config.model.path, config.model.vae) if path]
    present = [path.resolve() for path in read if path.exists()]
    for target in targets:
        if any(path.is_relative_to(target.resolve()) for path in present):
            raise RunError(
                f"{target} is what the run itself reads, and is not replaced. Nothing was begun. "
                f"Choose another saving.name (--output_name) or saving.model_dir (--output_dir)."
            )
