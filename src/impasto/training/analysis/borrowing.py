"""A temporary training session, to measure with a run's model and data without changing the run.

Latents and text that are encoded for it are stored in the run's caches and kept there.
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
"""Changes of settings that turn off all averages of weights."""


@contextlib.contextmanager
def borrowed_session(
    config: RunConfig,
    progress: Progress,
    doing: str,
    overrides: Overrides | None = None,
    known: Survey | None = None,
) -> Iterator[Session]:
    """Yield a session of a run whose output files go to a temporary folder.

    Args:
        config: The settings of the run.
        progress: Receives progress.
        doing: The purpose, for messages, such as `measuring models`.
        overrides: Parts that are given in code; None for none.
        known: The survey of the images, if it already exists.

    Raises:
        ConfigError: Several processes were started.
        ImpastoError: The session cannot be built, as for the run itself.
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
        previews = config.previews.model_copy(update={"features": None})  # its metrics are not read
        saving = config.saving.model_copy(update={"merge_ratio": 1.0})  # it exports nothing
        changes = {"output_dir": Path(scratch), "previews": previews, "saving": saving}
        elsewhere = config.model_copy(update=changes)
        yield build_session(elsewhere, accelerator, progress, overrides or Overrides(), known)


def require_settings_alone(run: RunDirectory, instead: str) -> None:
    """Check that a run's losses depend on its settings alone, so that they can be measured again.

    Args:
        run: A run that was started.
        instead: A sentence that tells the user what to do instead.

    Raises:
        ConfigError: The run was given parts in code that its losses depend on.
    """
    code = run.read_json(CHANGED_SETTINGS).get("code")
    if code is None:  # a run of an earlier version
        names = recorded_fingerprint(run)
        code = [name.removesuffix(GIVEN) for name in names if name.endswith(GIVEN)]
    given = [name for name in code if name not in _OF_LEARNING]
    if given:
        raise ConfigError(
            f"{run.address} was given parts in code ({', '.join(given)}), which its settings do "
            f"not have: the losses would differ from those that it measured. {instead}"
        )


_OF_LEARNING = {"build_optimizer", "lr_schedule"}  # they do not affect the loss of given weights


def one_process_alone(doing: str) -> ConfigError:
    """Return the error to raise if several processes were started for single-process work."""
    return ConfigError(
        f"Several processes were started, but {doing} needs a single one. Start it without a "
        f"launcher."
    )


@contextlib.contextmanager
def evaluating_current(session: Session) -> Iterator[None]:
    """Within the context, evaluate the current weights, not an average, in the run's precision.

    Networks are in eval mode and uncompiled.
    """
    modules: list[Any] = [trained.module for trained in session.trainable.modules]
    for module in modules:
        module.eval()
    with session.precision.autocast(), plain_network():
        yield
