"""Which models a run has left on the disk, for whoever averages them."""

from __future__ import annotations

from pathlib import Path

from impasto.runs import RunDirectory
from impasto.training.model_files import AVERAGE, BEST
from impasto.training.saving.own_models import RECORD


def models_of_run(path: Path) -> list[Path]:
    """The models of a run that are still there, the oldest first and the finished one last.

    Copies of the best one and running averages (`-best`, `-ema`) are left out: the first is one of
    the others, and the second an average already.

    Raises:
        RunError: The path is not a run directory, or its record of models is damaged.
    """
    run = RunDirectory.open(path)
    written = [run.at(record) for record in run.read_json(RECORD).get("written", [])]
    return [
        model for model in written if model.exists() and not model.stem.endswith((BEST, AVERAGE))
    ]
