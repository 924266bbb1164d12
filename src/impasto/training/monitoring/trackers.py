"""Metrics to TensorBoard or Weights & Biases, beside `metrics.jsonl`, which is always written."""

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
    """A run as trackers see it.

    Attributes:
        run: The run directory.
        name: What it is called.
        project: What it belongs to.
        settings: What may leave the machine of its settings.
        step: How many steps are done as it begins or goes on.
        publish: What may leave the machine besides: `paths`, `prompts`.
    """

    run: RunDirectory
    name: str
    project: str
    settings: Mapping[str, Any]
    step: int = 0
    publish: Collection[str] = ()


class Tracker(Protocol):
    """Something that keeps numbers by step."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep numbers of a step.

        Raises:
            StorageError: They could not be written.
        """

    def close(self) -> None:
        """Write what is still unwritten, and close the tracker.

        Raises:
            StorageError: It could not be written.
        """


class TensorBoard:
    """Event files in `tensorboard/` of the run directory.

    Of steps that are done again, TensorBoard shows the last time alone.
    """

    def __init__(self, tracked: TrackedRun) -> None:
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._folder = tracked.run.path / "tensorboard"
        self._writer: Any = SummaryWriter(
            str(self._folder), purge_step=tracked.step and tracked.step + 1
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep numbers of a step."""
        with storage_errors.reported(self._folder):
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still unwritten, and close the tracker."""
        with storage_errors.reported(self._folder):
            self._writer.close()


class Wandb:
    """A run of Weights & Biases; a resumed run of Impasto continues it. Heeds WANDB_MODE.

    One that begins at its first step is another run there, since W&B takes no step a second time.
    The command line never goes there, as a key may be in it, and what the terminal shows only where
    whole paths and prompts may.

    Raises:
        ConfigError: It cannot be started: nobody is logged in, there is no network.
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
                    console="auto" if tells_all else "off",  # which names paths and prompts
                ),
            )
        except Exception as error:  # its own errors, and those of the network, have no common class
            raise _without_wandb(f"which cannot be started: {error}") from error
        files.write_text(kept, str(self._run.id))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep numbers of a step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write what is still unwritten, and close the tracker."""
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
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
        f"logging.trackers asks for wandb, {reason.rstrip('.')}. Log in with `wandb login`, keep "
        f"the numbers here with WANDB_MODE=offline, or take it out of logging.trackers."
    )


def shown_numbers(record: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """The step of a line of metrics, and its numbers."""
    numbers = {
        key: float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return int(record["step"]), numbers


def open_trackers(names: Iterable[str], tracked: TrackedRun) -> list[Tracker]:
    """Open the trackers that the settings ask for.

    Args:
        names: Of `TRACKERS`.
        tracked: The run.

    Raises:
        ConfigError: One cannot be started.
        MissingDependencyError: The package of one is not installed.
    """
    return [TRACKERS[name](tracked) for name in names]
