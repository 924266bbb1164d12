"""The past of a resumed run: whether it was copied, renamed or finished, and its model names.

`trainer.py` resumes runs; `shared_start.py` decides which settings count.
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
    """Return whether a run directory is a copy of the one that its settings name.

    It is if both exist, and the first lines of their event files are equal.

    Args:
        run: The run.
        output_dir: The directory in its settings, where it was started.
    """
    there = RunDirectory(output_dir)
    if is_remote(output_dir) or not presence.is_file(there.config_file):
        return False
    if output_dir.samefile(run.path):
        return False
    first = _first_event(run)
    return bool(first) and first == _first_event(there)


def _first_event(run: RunDirectory) -> bytes:
    """Return the first line of a run's events, with its time; empty if it cannot be read."""
    try:
        with run.events_file.open("rb") as file:
            return file.readline(_LONGEST_EVENT)
    except OSError:
        return b""


_LONGEST_EVENT = 1 << 16


def in_directory_of(run: RunDirectory, config: RunConfig) -> RunConfig:
    """Return the settings with the run's present directory, and its original model names.

    Without `saving.name`, models are named after the directory; a run whose directory was renamed
    must find its own models again, to replace and remove them. A copy whose models go to another
    folder has no models there yet, so they are named after the copy.
    """
    moved = config.model_copy(update={"output_dir": run.path})
    if is_remote(config.output_dir) or moved.export_name == config.export_name:
        return moved
    if config.saving.model_dir is not None and is_copy(run, config.output_dir):
        return moved
    saving = config.saving.model_copy(update={"name": config.export_name})
    return moved.model_copy(update={"saving": saving})


def made_own(run: RunDirectory, config: RunConfig) -> RunConfig:
    """Return the settings of a resumed run; if it was copied or renamed, with its new directory.

    A renamed run needs that too, so that a copy made of it later is recognised as one.
    """
    if is_copy(run, config.output_dir) or _is_renamed(run, config.output_dir):
        here = {"output_dir": run.path.absolute()}  # relative paths begin where it was started
        return in_directory_of(run, config).model_copy(update=here)
    return config


def _is_renamed(run: RunDirectory, output_dir: Path) -> bool:
    """Return whether the directory in a run's settings is missing, or is another run's now."""
    if is_remote(output_dir):
        return False
    return not (presence.is_dir(output_dir) and output_dir.samefile(run.path))


def note_resumed(run: RunDirectory, told: TrainingEvents, changed: RunConfig | None) -> None:
    """Report what a resumed run was before, and write its start folder to `status.json`.

    A copy becomes a separate run: its settings are changed to its own directory, and models outside
    of that directory are left to the original run. The settings of a renamed run are changed to its
    new directory.

    Args:
        run: The run, whose directory this process has locked.
        told: Receives the notes.
        changed: New settings that will replace its own; None for none.
    """
    begun = read_begun(run.config_file)
    run.note_status(folder=str(begun.folder))
    if begun.is_elsewhere:
        told.note(
            f"Relative paths of the run are resolved from {begun.folder}, where it was started."
        )
    step = finished_step_of(run.status())
    if step is not None:
        told.note(
            f"The run had finished at step {step}. Its model of that step is kept until it "
            f"finishes again."
        )
    config = load_begun_config(run.config_file)
    if is_copy(run, config.output_dir):
        OwnModels(run).leave_those_outside()
        files.write_text(run.config_file, dump_toml(made_own(run, config)))
        name = made_own(run, changed or config).export_name
        told.note(
            f"This run is a copy of {config.output_dir}. Its models are called {name} from now "
            f"on, and those of the other run stay unchanged."
        )
    elif _is_renamed(run, config.output_dir):
        files.write_text(run.config_file, dump_toml(made_own(run, config)))
