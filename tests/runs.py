"""What tests of whole runs share: a crash at a given step, and the bits of what is exported."""

import json
import shutil
from pathlib import Path

from impasto.training.events import SilentEvents


class StopAt(SilentEvents):
    """Raises after a number of steps, as a crash would, without a word to the trainer."""

    def __init__(self, step):
        self.step = step

    def stepped(self, step):
        if step == self.step:
            raise ZeroDivisionError


def exported(run):
    return {
        str(file.relative_to(run.export)): file.read_bytes()
        for file in run.export.rglob("*")
        if file.is_file() and file.name != "impasto.json"  # has the date and the run's name
    }


def killed_copy(run: Path, copy: Path, *, after: int) -> Path:
    """A copy of a finished run as if it had been killed before the state that follows a step.

    What was written meanwhile is there, such as the metrics of later steps; later states, what is
    made at the end, and the word that it has ended are not.
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
