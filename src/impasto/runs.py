"""The run directory: the only contract between a run and whoever looks at it.

config.toml          the settings as resolved
environment.json     versions and hardware
status.json          what the run is doing, or how it ended
metrics.jsonl        one JSON object per line, in order of `step`
image_losses.csv     the loss of each picture each time it was shown, if asked for
dataset.json         what the data set held and where its pictures went
samples/step-.../    previews
states/step-.../     training states
export/              the trained model: one file or a Diffusers folder
models/              models that were exported on the way
models.json          the model files that this run wrote, wherever they are
report.html          one page for a person
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from impasto import files
from impasto.errors import RunError

Phase = Literal["preparing", "training", "finished", "interrupted", "failed"]
_STEP_NAME = re.compile(r"step-(\d{8})$")


def step_name(step: int) -> str:
    """`step-00000042`: how folders of states and samples are called."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run, and the reading and writing of its small files."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Make a new run directory.

        Raises:
            RunError: Something is already there.
            StorageError: It cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path} is already there and not empty; nothing in it was touched. Choose another "
                f"output_dir, delete it, or continue it with: impasto resume {path}"
            )
        files.require_writable(path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open a run directory that exists.

        Raises:
            RunError: It is missing or not a run directory.
        """
        run = cls(path)
        if not run.config_file.is_file():
            found = "no config.toml in it" if path.is_dir() else "nothing there"
            raise RunError(
                f"{path} is not a run directory ({found}). Give the folder that a training run "
                f"wrote as its output_dir."
            )
        return run

    @property
    def config_file(self) -> Path:
        """The settings as resolved."""
        return self.path / "config.toml"

    @property
    def metrics_file(self) -> Path:
        """Metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def image_losses_file(self) -> Path:
        """The loss of each picture each time it was shown."""
        return self.path / "image_losses.csv"

    @property
    def states(self) -> Path:
        """Folder of training states."""
        return self.path / "states"

    @property
    def samples(self) -> Path:
        """Folder of previews."""
        return self.path / "samples"

    @property
    def export(self) -> Path:
        """Folder of the trained model."""
        return self.path / "export"

    def exported_model(self) -> Path | None:
        """The trained model: a file or a Diffusers folder; None before the end."""
        elsewhere = self.read_json("status.json").get("model")
        if elsewhere and Path(elsewhere).exists():
            return Path(elsewhere)
        entries = sorted(self.export.iterdir()) if self.export.is_dir() else []
        return next((entry for entry in entries if not entry.name.startswith(".")), None)

    @property
    def report(self) -> Path:
        """The page for a person."""
        return self.path / "report.html"

    def write_status(self, phase: Phase, **details: Any) -> None:
        """Say what the run is doing."""
        files.write_json(
            self.path / "status.json", {"phase": phase, "updated_at": time.time(), **details}
        )

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the small JSON files; an empty mapping if it is not there yet.

        Raises:
            RunError: The file is damaged.
        """
        file = self.path / name
        if not file.is_file():
            return {}
        try:
            value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{file} is damaged: {error}.") from error
        return value

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line of metrics and hand it to the operating system at once."""
        with self.metrics_file.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the metrics; a last line cut off by a crash is passed over."""
        if not self.metrics_file.is_file():
            return
        with self.metrics_file.open(encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue

    def rewind_metrics(self, step: int) -> None:
        """Forget what was written after `step`, which a resumed run is about to do again."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        files.write_text(self.metrics_file, lines)

    def saved_steps(self) -> list[int]:
        """Steps with a complete training state, in ascending order."""
        return _steps_in(self.states)

    def sampled_steps(self) -> list[int]:
        """Steps with previews, in ascending order."""
        return _steps_in(self.samples)


def _steps_in(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    matches = (_STEP_NAME.fullmatch(name) for name in os.listdir(folder))
    return sorted(int(match[1]) for match in matches if match)
