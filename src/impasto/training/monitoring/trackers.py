"""Sends metrics to TensorBoard or Weights & Biases, in addition to `metrics.jsonl`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from impasto import files, presence, storage_errors
from impasto.errors import ConfigError
from impasto.invocation import is_first_process, missing_extra
from impasto.parsing import read_text
from impasto.runs import RunDirectory

WANDB_ID = "wandb-id.txt"

_OFFLINE_MODES = ("offline", "dryrun", "disabled")
"""Values of WANDB_MODE with which nothing is sent."""


@dataclass(frozen=True)
class TrackedRun:
    """The facts of a run that trackers need.

    Attributes:
        run: The run directory.
        name: The name of the run.
        project: The W&B project.
        settings: The settings, without values that must not be published.
        step: Steps completed when training starts or is resumed.
        publish: Further information that may be published: `paths`, `prompts`.
    """

    run: RunDirectory
    name: str
    project: str
    settings: Mapping[str, Any]
    step: int = 0
    publish: Collection[str] = ()


class Tracker(Protocol):
    """Records numbers by step."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record the numbers of a step.

        Raises:
            StorageError: The numbers could not be written.
        """

    def close(self) -> None:
        """Write all pending numbers, and close the tracker.

        Raises:
            StorageError: The numbers could not be written.
        """


class TensorBoard:
    """Writes event files to `tensorboard/` in the run directory.

    If a resume trains steps again, TensorBoard shows only the later numbers.
    """

    def __init__(self, tracked: TrackedRun) -> None:
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._folder = tracked.run.path / "tensorboard"
        self._writer: Any = SummaryWriter(
            str(self._folder), purge_step=tracked.step and tracked.step + 1
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record the numbers of a step."""
        with storage_errors.reported(self._folder):
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write all pending numbers, and close the tracker."""
        with storage_errors.reported(self._folder):
            self._writer.close()


class Wandb:
    """Sends metrics to a run of Weights & Biases; a resumed run continues it. Respects WANDB_MODE.

    A run that starts from scratch becomes a new W&B run, since W&B accepts no step a second time.
    The command line is never sent, since it may contain a key; terminal output is sent only if
    paths and prompts may be published.

    Raises:
        ConfigError: W&B cannot be started, such as without a login or a network.
    """

    def __init__(self, tracked: TrackedRun) -> None:
        wandb = require("wandb", "wandb")
        kept = tracked.run.path / WANDB_ID
        goes_on = tracked.step > 0 and presence.is_file(kept)
        identity = read_text(kept, "replace").strip() if goes_on else None
        tells_all = {"paths", "prompts"} <= set(tracked.publish)
        try:
            self._run: Any = wandb.init(
                project=tracked.project,
                name=tracked.name,
                dir=str(tracked.run.path),
                config=dict(tracked.settings),
                id=identity or None,
                resume="allow",
                settings=wandb.Settings(
                    x_disable_meta=True,  # the command line, the program and its folder
                    console="auto" if tells_all else "off",  # output has paths and prompts
                ),
            )
        except Exception as error:  # W&B's errors and network errors have no common base class
            raise _without_wandb(f"which cannot be started: {error}") from error
        files.write_text(kept, str(self._run.id))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record the numbers of a step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write all pending numbers, and close the tracker."""
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}


def require(module: str, package: str) -> Any:
    """Import and return the module of a tracker.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(
            "trackers",
            f"logging.trackers has {package}, which is not installed ({error}).",
            f"Or remove {package} from logging.trackers.",
        ) from error


def require_trackers(names: Iterable[str]) -> None:
    """Make sure, before anything is loaded, that the trackers can be used.

    Raises:
        MissingDependencyError: The package of one is not installed.
        ConfigError: Weights & Biases is to be used online without a login on this machine.
    """
    for name in names:
        module = require(name, name)
        if name == "wandb" and is_first_process():  # the others log nothing
            _require_login(module)


def _require_login(wandb: Any) -> None:
    """Make sure that Weights & Biases has an API key, unless it sends nothing; it is not verified.

    `wandb.init` would prompt for one on a terminal, hours into a run, and fail without one.
    """
    if wandb.setup().settings.mode in _OFFLINE_MODES:
        return
    try:
        is_known = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise _without_wandb(f"whose login is unusable: {error}") from error
    if not is_known:
        raise _without_wandb("but no login is stored on this machine")


def _without_wandb(reason: str) -> ConfigError:
    return ConfigError(
        f"logging.trackers has wandb, {reason.rstrip('.')}. Log in with `wandb login`, store the "
        f"numbers locally with WANDB_MODE=offline, or remove wandb from logging.trackers."
    )


def shown_numbers(record: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """Return the step of a line of metrics, and its numbers by name; other values are left out."""
    numbers = {
        key: float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return int(record["step"]), numbers


def open_trackers(names: Iterable[str], tracked: TrackedRun) -> list[Tracker]:
    """Open the trackers that the settings name.

    Args:
        names: Keys of `TRACKERS`.
        tracked: The run to track.

    Raises:
        ConfigError: A tracker cannot be started.
        MissingDependencyError: The package of a tracker is not installed.
    """
    return [TRACKERS[name](tracked) for name in names]
