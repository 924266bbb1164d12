"""What a run that goes on has been before: its name, its folder, its end.

`trainer.py` resumes; which settings count, on one process or several, is in `shared_start.py`.
"""

from __future__ import annotations

from impasto.config.load import read_begun
from impasto.config.run import RunConfig
from impasto.remote_paths import is_remote
from impasto.runs import RunDirectory
from impasto.runs.status import finished_step_of
from impasto.training.events import TrainingEvents


def in_directory_of(run: RunDirectory, config: RunConfig) -> RunConfig:
    """The settings of a run in the directory where it is, with the model names that it began with.

    Models are called after the directory where `saving.name` is off, and a run whose directory was
    renamed has to find its own again, to replace and to remove them.
    """
    moved = config.model_copy(update={"output_dir": run.path})
    if is_remote(config.output_dir) or moved.export_name == config.export_name:
        return moved
    saving = config.saving.model_copy(update={"name": config.export_name})
    return moved.model_copy(update={"saving": saving})


def note_resumed(run: RunDirectory, told: TrainingEvents) -> None:
    """Say what counts of the time before a run is resumed, and note its folder in `status.json`.

    Args:
        run: The run, whose directory this process holds.
        told: Who is told.
    """
    begun = read_begun(run.config_file)
    run.note_status(folder=str(begun.folder))
    if begun.is_elsewhere:
        told.note(f"Relative paths of the run begin in {begun.folder}, where it was started.")
    step = finished_step_of(run.status())
    if step is not None:
        told.note(
            f"The run had finished at step {step}. Its model of then is kept until it finishes "
            f"again."
        )
