"""Helpers for tests of whole runs: crashes, copies, the bytes of an export, a short run."""

import json
import re
import shutil
import time
from pathlib import Path

from accelerate.state import AcceleratorState
from conftest import draw_images
from short_runs import settings, short_run

from impasto.runs import RunDirectory, step_name
from impasto.training.events import SilentEvents
from impasto.training.trainer import train


class StopAt(SilentEvents):
    """Raises an exception after a number of steps, as in a crash, without notifying the trainer."""

    def __init__(self, step, kind=ZeroDivisionError):
        self.step, self.kind = step, kind

    def stepped(self, step):
        if step == self.step:
            raise self.kind


class KillAt(SilentEvents):
    """Copies a run as a kill after a number of steps would leave it; the run itself continues.

    Args:
        path: The run directory.
        step: The step after which it is copied.
        saved: The step of a state that must exist by then.
        besides: Further files below the directory that a thread must have written by then.
    """

    def __init__(self, path, step, saved, besides=()):
        self.path, self.step = path, step
        self.written = [path / "states" / step_name(saved), *(path / name for name in besides)]
        self.copy = path.with_name(f"{path.name}-killed")

    def stepped(self, step):
        if step != self.step:
            return
        until = time.monotonic() + 60
        while not all(path.exists() for path in self.written):
            assert time.monotonic() < until, "the thread has not written it in time"
            time.sleep(0.01)
        being_written = shutil.ignore_patterns("*.partial", ".lock")
        shutil.copytree(self.path, self.copy, ignore=being_written)

    def put_back(self):
        """Replace the finished run by the copy; return its directory."""
        shutil.rmtree(self.path)
        return RunDirectory(self.copy.rename(self.path))


def trained_and_killed(config, step, saved, besides=()):
    """Train to the end, and return the run as a kill after a step leaves it; see `KillAt`."""
    kill = KillAt(config.output_dir, step, saved, besides)
    return train(config, kill), RunDirectory(kill.copy)


FOUR = {"training": {"max_steps": 4}}


def run_of_four(shared_config):
    """A run of four steps without interruption, with all states."""
    saving = {"state_every_steps": 1, "keep_states": 9}
    folder = str(shared_config().output_dir.with_name("whole"))
    return train(shared_config(output_dir=folder, saving=saving, **FOUR))


def copied(run, folder):
    """Copy a run and the files beside it, and adjust the paths in its settings; return it."""
    shutil.copytree(run.path.parent, folder, dirs_exist_ok=True)
    copy = RunDirectory(folder / run.path.name)
    text = copy.config_file.read_text(encoding="utf-8")
    text = text.replace(str(run.path.parent), str(folder))
    text = re.sub(r'^output_dir = ".*"$', f'output_dir = "{copy.path}"', text, flags=re.M)
    copy.config_file.write_text(text, encoding="utf-8")
    return copy


def exported(run):
    return {
        str(file.relative_to(run.export)): file.read_bytes()
        for file in run.export.rglob("*")
        if file.is_file() and file.name != "impasto.json"  # contains the date and the run's name
    }


def killed_copy(run: Path, copy: Path, *, after: int) -> Path:
    """Copy a finished run as if it had been killed before the state that follows a step.

    Files written until then exist, such as the metrics of later steps; later states, files
    written at the end, and the status of a finished run are not.
    """
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("export", "report.html"))
    later = [p for p in (copy / "states").iterdir() if int(p.name.removeprefix("step-")) > after]
    for state in later:
        shutil.rmtree(state)
    config = copy / "config.toml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(str(run), str(copy)), encoding="utf-8")
    file = copy / "models.json"
    models = json.loads(file.read_text(encoding="utf-8"))
    written = [path for path in models["written"] if not path.startswith("export/")]
    file.write_text(json.dumps({**models, "written": written}), encoding="utf-8")
    file = copy / "status.json"
    status = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in status.items() if key not in ("model", "timings_s")}
    content = {**kept, "phase": "training", "saved_step": after}
    file.write_text(json.dumps(content), encoding="utf-8")
    return copy


def run_in(folder, base, **changes):
    """Train a separate short run on thirteen images, shared by tests that only read it."""
    values = short_run(folder, base, draw_images(folder / "pictures", 13))
    AcceleratorState._reset_state(reset_partial_state=True)  # of earlier tests
    return train(settings(values, **changes))
