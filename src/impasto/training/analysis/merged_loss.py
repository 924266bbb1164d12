"""The validation loss of the mixture that a run has exported (`saving.merge_ratio`).

Every other figure of a run is of what was trained; this one is of what its model file holds.
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
    """Measure the exported mixture on the held-out images; None where it is none, or cannot be.

    Not without held-out images, where the loss is no number, where models are sharded, where what
    is exported is computed by code of somebody's own, where memory runs out, and when the
    measurement is stopped. To be called by the first process alone, so that it keeps no other from
    its end, when all is saved, exported and recorded: afterwards the weights in memory are the
    mixture.

    Args:
        session: The run, after its last step.
        progress: Is told how far it is.
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
        progress.note("The mixture that was exported was not measured; all else is done.")
        return None
    return found.mean if math.isfinite(found.mean) else None


def _trained_tensors(session: Session) -> Mapping[str, Mapping[str, Tensor]] | None:
    """The tensors that are exported, where they are those of the networks themselves."""
    exported = session.trainable.export()
    for component, tensors in exported.items():
        network = session.model.networks[component]
        own = {tensor.data_ptr() for tensor in network.state_dict().values()}
        if not all(tensor.data_ptr() in own for tensor in tensors.values()):
            return None
    return exported


@torch.no_grad()
def _mix(merged: MergedWithBase, trained: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put the mixture in the place of what was trained."""
    for component, tensors in sorted(trained.items()):
        for name, tensor in sorted(tensors.items()):
            if tensor.is_floating_point():
                base = merged.base[component][name.removeprefix("text_model.")]
                own = base.read_as(tensor.dtype).to(tensor.device)
                tensor.lerp_(own, 1 - merged.ratio)
