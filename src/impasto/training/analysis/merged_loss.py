"""Measures the validation loss of the mixture that a run has exported (`saving.merge_ratio`).

All other losses of a run are of the trained weights; this one is of the weights in its model file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from impasto.models.writing.saving import MergedWithBase
from impasto.progress import Progress
from impasto.training.devices import is_out_of_memory
from impasto.training.session import Session


def measure_merged(session: Session, progress: Progress) -> float | None:
    """Measure the exported mixture on the held-out images; return its validation loss.

    Return None if the export is not a mixture, and if it cannot be measured: without held-out
    images, with sharded models, if user code computes the exported tensors, if memory runs out, if
    the measurement is interrupted, or if the loss is not finite.

    It must be called by the main process only, so that no other process has to wait, and after
    everything is saved, exported and recorded: afterwards the weights in memory are the mixture.

    Args:
        session: The run's session, after its last step.
        progress: Receives progress.
    """
    config, validator, merged = session.config, session.validator, session.merged
    if merged is None or validator is None or session.strategy.is_sharded:
        return None
    try:
        with session.evaluating(average=config.saving.average == "instead"):
            trained = _trained_tensors(session)
            if trained is None:
                return None
            _mix(merged, trained)
            found = validator.of_held_out.measure(
                session.trainable.unet, session.eval_conditioner, session.recipe, progress=progress
            )
    except (RuntimeError, MemoryError, KeyboardInterrupt) as error:
        if not isinstance(error, KeyboardInterrupt) and not is_out_of_memory(error):
            raise
        progress.note("The exported mixture was not measured; everything else is complete.")
        return None
    return found.mean if math.isfinite(found.mean) else None


def _trained_tensors(session: Session) -> Mapping[str, Mapping[str, Tensor]] | None:
    """Return the exported tensors by network; None if some are not the networks' own tensors."""
    exported = session.trainable.export()
    for component, tensors in exported.items():
        network = session.model.networks[component]
        own = {tensor.data_ptr() for tensor in network.state_dict().values()}
        if not all(tensor.data_ptr() in own for tensor in tensors.values()):
            return None
    return exported


@torch.no_grad()
def _mix(merged: MergedWithBase, trained: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Replace the trained weights by their mixture with the base model's, in place."""
    for component, tensors in sorted(trained.items()):
        for name, tensor in sorted(tensors.items()):
            if tensor.is_floating_point():
                base = merged.base[component][name.removeprefix("text_model.")]
                own = base.read_as(tensor.dtype).to(tensor.device)
                tensor.lerp_(own, 1 - merged.ratio)
