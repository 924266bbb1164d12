"""Checks after the first step that trained parts of a model have changed, and frozen ones not.

Users otherwise notice only after hours that a part was frozen (kohya-ss/sd-scripts, threads 855
and 890).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from impasto.models.trainable import TrainedModule

SAMPLED = 8


class FrozenCheck:
    """Copies some tensors of each module, to compare them after the first step.

    Args:
        modules: The trained parts.
        frozen: Networks, by name, whose parameters without gradients must not change.
    """

    def __init__(self, modules: Sequence[TrainedModule], frozen: Mapping[str, nn.Module]) -> None:
        self._learning = {trained.name: _sample(trained.parameters()) for trained in modules}
        self._frozen = {
            name: _sample({n: p for n, p in module.named_parameters() if not p.requires_grad})
            for name, module in frozen.items()
        }

    def findings(self, learning_now: Sequence[str]) -> list[str]:
        """Return a sentence for each trained part that has not changed, and frozen one that has.

        Args:
            learning_now: Names of the parts that were trained in the step.
        """
        still = [name for name in learning_now if not _has_changed(self._learning[name])]
        moved = [name for name, kept in self._frozen.items() if _has_changed(kept)]
        return [
            *(
                f"The {name} did not change in the first step, though it is trained: its "
                f"gradient or its learning rate is 0, or masks leave nothing to learn from."
                for name in still
            ),
            *(f"The {name} changed in the first step, though it is frozen." for name in moved),
        ]


ParameterCopies = list[tuple[Tensor, Tensor]]


def _sample(parameters: Mapping[str, Tensor]) -> ParameterCopies:
    """Return parameters spread over a module, each with a copy on the CPU.

    The copies are on the CPU since modules change devices. Offloaded parameters are left out.
    """
    every = [p for p in parameters.values() if p.device.type != "meta"]  # meta: offloaded
    step = max(1, len(every) // SAMPLED)
    return [(parameter, _here(parameter).to("cpu", copy=True)) for parameter in every[::step]]


def _has_changed(kept: ParameterCopies) -> bool:
    return any(not torch.equal(_here(parameter).cpu(), before) for parameter, before in kept)


def _here(parameter: Tensor) -> Tensor:
    """Return this process's shard of a tensor, or the whole tensor if it is not sharded."""
    to_local = getattr(parameter, "to_local", None)
    return (parameter if to_local is None else to_local()).detach()
