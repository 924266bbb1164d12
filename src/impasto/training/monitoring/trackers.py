"""Metrics to TensorBoard or Weights & Biases, beside `metrics.jsonl`, which is always written."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from impasto import presence
from impasto.errors import ConfigError
from impasto.invocation import missing_extra
from impasto.parsing import read_text
from impasto.runs import RunDirectory

WANDB_ID = "wandb-id.txt"


class Tracker(Protocol):
    """Something that keeps numbers by step."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep numbers of a step."""

    def close(self) -> None:
        """Write what is still unwritten, and close the tracker."""


class TensorBoard:
    """Event files in `tensorboard/` of the run directory."""

    def __init__(self, run: RunDirectory, name: str, settings: Mapping[str, Any]) -> None:  # noqa: ARG002
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run.path / "tensorboard"))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep numbers of a step."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still unwritten, and close the tracker."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; a resumed run of Impasto continues it. Heeds WANDB_MODE.

    Args:
        run: The run directory.
        name: What it is called.
        settings: What is uploaded as its configuration.

    Raises:
        ConfigError: It cannot be started: nobody is logged in, there is no network.
    """

    def __init__(self, run: RunDirectory, name: str, settings: Mapping[str, Any]) -> None:
        wandb = require("wandb", "wandb")
        kept = run.path / WANDB_ID
        identity = read_text(kept, "replace").strip() if presence.is_file(kept) else None
        try:
            self._run: Any = wandb.init(
                project="impasto",
                name=name,
                dir=str(run.path),
                config=dict(settings),
                id=identity or None,
                resume="allow",
            )
        except Exception as error:  # its own errors, and those of the network, have no common class
            raise ConfigError(
                f"logging.trackers asks for wandb, which cannot be started: {error}. Log in with "
                f"`wandb login`, keep the numbers here with WANDB_MODE=offline, or take it out of "
                f"logging.trackers."
            ) from error
        kept.write_text(str(self._run.id), encoding="utf-8")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep numbers of a step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write what is still unwritten, and close the tracker."""
        self._run.finish()


TRACKERS: dict[str, Callable[[RunDirectory, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}


def require(module: str, package: str) -> Any:
    """Import a package that only some runs need.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(
            "trackers",
            f"logging.trackers asks for {package}, which is not installed ({error}).",
            "Or take it out of logging.trackers.",
        ) from error


def require_trackers(names: Iterable[str]) -> None:
    """Make sure, before anything is made, that the packages are there.

    Raises:
        MissingDependencyError: One is not installed.
    """
    for name in names:
        require(name, name)


def shown_numbers(record: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """The step of a line of metrics, and its numbers."""
    numbers = {
        key: float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return int(record["step"]), numbers


def open_trackers(
    names: tuple[str, ...], run: RunDirectory, settings: Mapping[str, Any]
) -> list[Tracker]:
    """Open the trackers that the settings ask for.

    Args:
        names: Of `TRACKERS`.
        run: The run directory.
        settings: What may leave the machine of the run's settings.

    Raises:
        ConfigError: One cannot be started.
        MissingDependencyError: The package of one is not installed.
    """
    return [TRACKERS[name](run, Path(run.path).resolve().name, settings) for name in names]
