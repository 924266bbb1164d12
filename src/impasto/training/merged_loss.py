"""The validation loss of the mixture that a run has exported (`saving.merge_ratio`).

Every other figure of a run is of what was trained; this one is of what its model file holds.
"""

from __future__ import annotations

import torch
from torch import distributed

from impasto.models.saving import MergedWithBase
from impasto.progress import Progress
from impasto.training.devices import is_out_of_memory
from impasto.training.session import Session


def mixture_record(session: Session, progress: Progress) -> dict[str, float]:
    """What the status of a run says of the mixture it has exported; nothing where it is none.

    `merge_ratio`, and `merged_loss` where it can be measured: not without held-out images, nor
    where models are sharded, nor where memory runs out. To be called when all is saved and
    exported: afterwards the weights in memory are the mixture.

    Args:
        session: The run, after its last step.
        progress: Is told how far it is.
    """
    ratio = session.config.saving.merge_ratio
    if ratio == 1:
        return {}
    loss = _measured(session, progress)
    return {"merge_ratio": ratio, **({} if loss is None else {"merged_loss": loss})}


def _measured(session: Session, progress: Progress) -> float | None:
    validator, strategy = session.validator, session.strategy
    if validator is None or strategy.is_sharded or not session.participates:
        return None
    try:
        with session.evaluating(average=session.config.saving.average == "instead"):
            _mix(session, session.merged)
            found = validator.of_held_out.measure(
                session.trainable.unet,
                session.eval_conditioner,
                session.recipe,
                session.accelerator,
                progress,
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        progress.note("There is no memory to measure the mixture that was exported.")
        return None
    return found.mean


@torch.no_grad()
def _mix(session: Session, merged: MergedWithBase | None) -> None:
    """Put the mixture in the place of what was trained, in all processes."""
    for part, tensors in sorted(session.trainable.export().items()):
        for name, tensor in sorted(tensors.items()):
            if not tensor.is_floating_point():
                continue
            if merged is not None:
                base = merged.base[part][name.removeprefix("text_model.")]
                own = base.read_as(tensor.dtype).to(tensor.device)
                tensor.lerp_(own, 1 - merged.ratio)
            if session.accelerator.num_processes > 1:
                distributed.broadcast(tensor, 0)
