"""Between a session and a training state: what a run would need to continue, out and in again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from impasto.training.meter import Window
from impasto.training.placement import OptimizerState
from impasto.training.session import Session
from impasto.training.state import TrainingState


def capture_state(
    session: Session,
    names: Mapping[Tensor, str],
    done: int,
    best_validation: float | None = None,
    window: Window | None = None,
) -> TrainingState:
    """All that the session would need to continue after `done` updates.

    Where processes share the model out, all of them read its tensors, in the same order.
    """
    placement = session.placement
    optimizer = placement.optimizer_state(session.optimizer, names)
    return TrainingState(
        step=done,
        samples_seen=session.sampler.samples_before(done),
        fingerprint=session.fingerprint,
        weights=placement.whole({name: parameter for parameter, name in names.items()}),
        optimizer=optimizer.tensors,
        optimizer_scalars=optimizer.scalars,
        ema=placement.whole(session.ema.tensors()) if session.ema else {},
        scaler=session.precision.state(),
        best_validation=best_validation,
        window=window,
    )


def restore_state(session: Session, names: Mapping[Tensor, str], state: TrainingState) -> None:
    """Put a captured state into a new session.

    Raises:
        RunError: It does not fit what the session trains.
    """
    placement = session.placement
    placement.put(names, state.weights)
    remembered = OptimizerState(state.optimizer, state.optimizer_scalars)
    placement.put_optimizer_state(session.optimizer, names, remembered)
    session.precision.restore(state.scaler)
    if session.ema is not None:
        session.ema.restore(placement.share(state.ema))
