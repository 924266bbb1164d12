"""Between a session and a training state: what a run would need to continue, out and in again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from impasto.training.optimizer_state import optimizer_scalars, optimizer_tensors, restore_optimizer
from impasto.training.session import Session
from impasto.training.state import TrainingState


def capture_state(
    session: Session,
    names: Mapping[Tensor, str],
    done: int,
    best_validation: float | None = None,
) -> TrainingState:
    """All that the session would need to continue after `done` updates."""
    return TrainingState(
        step=done,
        samples_seen=session.sampler.samples_before(done),
        fingerprint=session.fingerprint,
        weights={name: parameter for parameter, name in names.items()},
        optimizer=optimizer_tensors(session.optimizer, names),
        optimizer_scalars=optimizer_scalars(session.optimizer, names),
        ema=session.ema.tensors() if session.ema else {},
        scaler=session.precision.state(),
        best_validation=best_validation,
    )


def restore_state(session: Session, names: Mapping[Tensor, str], state: TrainingState) -> None:
    """Put a captured state into a new session.

    Raises:
        RunError: It does not fit what the session trains.
    """
    with torch.no_grad():
        for parameter, name in names.items():
            parameter.copy_(state.weights[name])
    restore_optimizer(session.optimizer, names, state.optimizer, state.optimizer_scalars)
    session.precision.restore(state.scaler)
    if session.ema is not None:
        session.ema.restore(state.ema)
