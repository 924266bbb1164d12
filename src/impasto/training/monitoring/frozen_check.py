"""Looks, after the first step that counts, whether what should learn has moved, and nothing else.

People find out after a night that a part was frozen (kohya-ss/sd-scripts, threads 855 and 890).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from impasto.models.trainable import TrainedModule

SAMPLED = 8


class FrozenCheck:
    """Remembers some tensors of each module.

    Args:
        modules: What learns.
        frozen: What must not, by name.
    """

    def __init__(self, modules: Sequence[TrainedModule], frozen: Mapping[str, nn.Module]) -> None:
        self._learning = {trained.name: _sample(trained.parameters()) for trained in modules}
        self._frozen = {
            name: _sample({n: p for n, p in module.named_parameters() if not p.requires_grad})
            for name, module in frozen.items()
        }

    def findings(self, learning_now: Sequence[str]) -> list[str]:
        """What is not as it should be, in sentences; `learning_now` should have moved."""
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
    """Some parameters from all over a module, with copies on the CPU: modules change devices."""
    every = [p for p in parameters.values() if p.device.type != "meta"]  # those are in a file
    step = max(1, len(every) // SAMPLED)
    return [(parameter, _here(parameter).to("cpu", copy=True)) for parameter in every[::step]]


def _has_changed(kept: ParameterCopies) -> bool:
    return any(not torch.equal(_here(parameter).cpu(), before) for parameter, before in kept)


def _here(parameter: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    to_local = getattr(parameter, "to_local", None)
    return (parameter if to_local is None else to_local()).detach()
