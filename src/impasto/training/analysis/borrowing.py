"""A session that belongs to no run: for what looks at a run's model and data, and leaves no trace.

Latents and text that are encoded for it are kept where the run would keep them, and its own.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from impasto import locks
from impasto.config.run import RunConfig
from impasto.datasets.build import Survey
from impasto.datasets.prepare import LATENTS
from impasto.errors import ConfigError
from impasto.progress import Progress
from impasto.runs import RunDirectory
from impasto.runs.schema import CHANGED_SETTINGS
from impasto.training.assembly.build import build_session
from impasto.training.builders.overrides import Overrides
from impasto.training.compute.compile import plain_network
from impasto.training.devices import build_accelerator
from impasto.training.fingerprints.fingerprint import GIVEN
from impasto.training.planning.changes import Changes
from impasto.training.saving.state import recorded_fingerprint
from impasto.training.session import Session

WITHOUT_AVERAGES: Changes = {
    "training": {
        "ema_decay": None, "ema_power": None, "ema_on_cpu": False, "ema_every": 1,
        "posthoc_ema": False,
    },
    "saving": {"average": "instead", "posthoc_every_steps": None, "posthoc_dtype": "fp16"},
}  # fmt: skip
"""Settings of a run that keeps no averages of its weights."""


@contextlib.contextmanager
def borrowed_session(
    config: RunConfig,
    progress: Progress,
    doing: str,
    overrides: Overrides | None = None,
    known: Survey | None = None,
) -> Iterator[Session]:
    """All that a run computes with, whose own files go to a temporary folder.

    Args:
        config: The settings of the run.
        progress: Shows how far the work is.
        doing: What it is for, in words: `measuring models`.
        overrides: What is given in code.
        known: What was found of the images already.

    Raises:
        ConfigError: Several processes were started.
        ImpastoError: As `build_session`.
    """
    accelerator = build_accelerator()
    if accelerator.num_processes > 1:
        raise one_process_alone(doing)
    folder = config.dataset.derived_dir / LATENTS
    patience = locks.LockWaiter(progress.note, f"reading {folder}")
    with (
        locks.SharedLock(folder, doing, patience),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
    ):
        previews = config.previews.model_copy(update={"features": None})  # nobody reads its metrics
        saving = config.saving.model_copy(update={"merge_ratio": 1.0})  # it exports nothing
        changes = {"output_dir": Path(scratch), "previews": previews, "saving": saving}
        elsewhere = config.model_copy(update=changes)
        yield build_session(elsewhere, accelerator, progress, overrides or Overrides(), known)


def require_settings_alone(run: RunDirectory, instead: str) -> None:
    """Make sure that a run is what its settings say, so that it can be measured by them.

    Args:
        run: A run that was begun.
        instead: What a person can do otherwise, as a sentence.

    Raises:
        ConfigError: It was given parts in code that its losses depend on.
    """
    code = run.read_json(CHANGED_SETTINGS).get("code")
    if code is None:  # of an earlier version
        names = recorded_fingerprint(run)
        code = [name.removesuffix(GIVEN) for name in names if name.endswith(GIVEN)]
    given = [name for name in code if name not in _OF_LEARNING]
    if given:
        raise ConfigError(
            f"{run.address} was given parts in code ({', '.join(given)}), which its settings do "
            f"not have: losses would be others than those that it measured. {instead}"
        )


_OF_LEARNING = {"build_optimizer", "lr_schedule"}  # which no loss depends on


def one_process_alone(doing: str) -> ConfigError:
    """The error where several processes were started for what one does."""
    return ConfigError(f"One process does this ({doing}). Start it without others.")


@contextlib.contextmanager
def looking(session: Session) -> Iterator[None]:
    """The weights as they are, not an average of them, in the precision of the run."""
    modules: list[Any] = [trained.module for trained in session.trainable.modules]
    for module in modules:
        module.eval()
    with session.precision.autocast(), plain_network():
        yield
