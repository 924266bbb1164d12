"""What a run that goes on has been before: its name, its folder, its end.

`trainer.py` resumes; which settings count, on one process or several, is in `shared_start.py`.
"""

from __future__ import annotations

from pathlib import Path

from impasto import files, presence
from impasto.config.load import dump_toml, load_begun_config, read_begun
from impasto.config.run import RunConfig
from impasto.remote_paths import is_remote
from impasto.runs import RunDirectory
from impasto.runs.status import finished_step_of
from impasto.training.events import TrainingEvents
from impasto.training.saving.own_models import OwnModels


def is_copy(run: RunDirectory, output_dir: Path) -> bool:
    """Whether a run was copied: it is also where it was begun, as their first event says.

    Args:
        run: The run.
        output_dir: Where it was begun, as its settings say.
    """
    there = RunDirectory(output_dir)
    if is_remote(output_dir) or not presence.is_file(there.config_file):
        return False
    if output_dir.samefile(run.path):
        return False
    first = _first_event(run)
    return bool(first) and first == _first_event(there)


def _first_event(run: RunDirectory) -> bytes:
    """What was told first in a run, with its time; empty where nothing was or it cannot be read."""
    try:
        with run.events_file.open("rb") as file:
            return file.readline(_LONGEST_EVENT)
    except OSError:
        return b""


_LONGEST_EVENT = 1 << 16


def in_directory_of(run: RunDirectory, config: RunConfig) -> RunConfig:
    """The settings of a run in the directory where it is, with the model names that it began with.

    Models are called after the directory where `saving.name` is off, and a run whose directory was
    renamed has to find its own again, to replace and to remove them. A copy whose models are not in
    its directory has none of those yet, so that they are called after the copy.
    """
    moved = config.model_copy(update={"output_dir": run.path})
    if is_remote(config.output_dir) or moved.export_name == config.export_name:
        return moved
    if config.saving.model_dir is not None and is_copy(run, config.output_dir):
        return moved
    saving = config.saving.model_copy(update={"name": config.export_name})
    return moved.model_copy(update={"saving": saving})


def made_own(run: RunDirectory, config: RunConfig) -> RunConfig:
    """Settings of a run that goes on; those of a copy name its own directory from here on.

    So do those of a run that was renamed, or a copy that is made of it later would not find it.
    """
    if is_copy(run, config.output_dir) or _is_renamed(run, config.output_dir):
        here = {"output_dir": run.path.absolute()}  # paths in settings begin where it was started
        return in_directory_of(run, config).model_copy(update=here)
    return config


def _is_renamed(run: RunDirectory, output_dir: Path) -> bool:
    """Whether a run is no longer where its settings say, or another run is there now."""
    if is_remote(output_dir):
        return False
    return not (presence.is_dir(output_dir) and output_dir.samefile(run.path))


def note_resumed(run: RunDirectory, told: TrainingEvents, changed: RunConfig | None) -> None:
    """Say what counts of the time before a run is resumed, and note its folder in `status.json`.

    A copy becomes a run of its own: its settings name its directory, and models outside of that
    are those of the run that it is a copy of. The settings of a renamed run name its new directory.

    Args:
        run: The run, whose directory this process holds.
        told: Who is told.
        changed: Settings that will count in the place of its own.
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
    config = load_begun_config(run.config_file)
    if is_copy(run, config.output_dir):
        OwnModels(run).leave_those_outside()
        files.write_text(run.config_file, dump_toml(made_own(run, config)))
        name = made_own(run, changed or config).export_name
        told.note(
            f"This run is a copy of {config.output_dir}. Its models are called {name} from here "
            f"on, and those of the other run stay as they are."
        )
    elif _is_renamed(run, config.output_dir):
        files.write_text(run.config_file, dump_toml(made_own(run, config)))
