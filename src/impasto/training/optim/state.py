"""The learning rate of an optimizer, and its state as named tensors."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from impasto.checkpoints.tensors import LazyTensor
from impasto.errors import RunError
from impasto.models.trainable import TrainedModule
from impasto.training.optim.chunked import ChunkedOptimizer
from impasto.training.optim.offload import MIN_NUMEL

_GROUP = "group."


class LrSetter:
    """Sets each parameter group's learning rate for a step, relative to its initial rate."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, factor: float) -> float:
        """Set all rates to a factor in [0, 1] of the initial ones; return the first group's rate.

        The first group is the U-Net's.
        """
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return self._rates[0] * factor


def parameter_names(modules: Sequence[TrainedModule]) -> dict[Tensor, str]:
    """Return each trained parameter -> its name with its network, as in `unet.conv_in.weight`."""
    return {
        parameter: f"{trained.name}.{name}"
        for trained in modules
        for name, parameter in trained.parameters().items()
    }


def module_names(
    optimizer: torch.optim.Optimizer, modules: Sequence[TrainedModule]
) -> tuple[str, ...]:
    """Return the name of the network that each parameter group of an optimizer belongs to."""
    names = parameter_names(modules)
    return tuple(names[g["params"][0]].partition(".")[0] for g in optimizer.param_groups)


def require_savable(optimizer: torch.optim.Optimizer) -> None:
    """Check, after a first step, that all of an optimizer's state can be saved and restored.

    Raises:
        RunError: The state has an entry that is neither a tensor nor a number, or that belongs to
            no parameter.
    """
    stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for parameter, entries in optimizer.state.items():
        if parameter not in stepped:
            raise RunError(
                f"The optimizer {type(optimizer).__name__} keeps {parameter!r} for all weights "
                f"together, which cannot be saved, so a run with it could not be resumed. Choose "
                f"another optimizer.kind."
            )
        for entry, value in entries.items():
            if value is not None and not isinstance(value, (Tensor, bool, int, float)):
                raise RunError(
                    f"The optimizer {type(optimizer).__name__} keeps {entry!r} as a "
                    f"{type(value).__name__}, which cannot be saved, so a run with it could not be "
                    f"resumed. Choose another optimizer.kind."
                )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state, as `<parameter>:<entry>` -> tensor.

    Tensors of parameter groups have keys such as `group.0:d`. The tensors are not copied.
    """
    found = {
        f"{names[parameter]}:{entry}": value
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
        if isinstance(value, Tensor)
    }
    found |= {
        f"{_GROUP}{number}:{entry}": value
        for number, group in enumerate(optimizer.param_groups)
        for entry, value in group.items()
        if isinstance(value, Tensor)
    }
    return {key: value.detach() for key, value in found.items()}


def optimizer_scalars(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Any]:
    """Return the state that is not tensors: numbers per parameter, and numbers of groups.

    The name of each group's first parameter is included, so that a resumed run with differently
    divided groups can assign the groups' numbers to its parameters.
    """
    per_parameter = {
        f"{names[parameter]}:{entry}": value
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
        if isinstance(value, (bool, int, float))
    }
    starts = [names[group["params"][0]] for group in optimizer.param_groups]
    return {
        "parameters": dict(sorted(per_parameter.items())),  # a resumed run inserts in another order
        "groups": group_scalars(optimizer),
        "group_starts": starts,
    }


def group_scalars(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the numbers of each parameter group, without the learning rate, which is scheduled."""
    return [
        {k: v for k, v in group.items() if isinstance(v, (bool, int, float)) and k != "lr"}
        for group in optimizer.param_groups
    ]


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, LazyTensor],
    scalars: Mapping[str, Any],
    device: torch.device | None = None,
) -> None:
    """Restore a saved state of an optimizer.

    Args:
        optimizer: The optimizer to restore.
        names: Parameter -> its name, for the optimizer's parameters.
        tensors: The saved result of `optimizer_tensors`.
        scalars: The saved result of `optimizer_scalars`.
        device: The device that weights are stepped on, which may differ from where they are stored;
            None means where they are stored.

    Raises:
        RunError: The state has parameters that this run does not train, or incompatible groups.
    """
    by_name = {name: parameter for parameter, name in names.items()}
    origins = _saved_groups(optimizer, names, scalars)
    kept_away = isinstance(optimizer, ChunkedOptimizer) and optimizer.offloads_states
    for key, value in {**tensors, **scalars["parameters"]}.items():
        name, entry = split_key(key)
        if name.startswith(_GROUP):
            number = int(name.removeprefix(_GROUP))
            for group, saved in zip(optimizer.param_groups, origins, strict=True):
                if saved == number:
                    group[entry] = value.read().to(device or group["params"][0].device)
            continue
        if name not in by_name:
            raise RunError(
                f"The saved state has an optimizer entry for {name}, which this run does not "
                f"train. It belongs to another model or other settings."
            )
        parameter = by_name[name]
        where = _device_of(entry, optimizer, parameter, device or parameter.device)
        buffer = _paged_buffer(optimizer, parameter, value)
        optimizer.state[parameter][entry] = (
            _like(parameter, value, where, kept_away=kept_away)
            if buffer is None
            else buffer.copy_(value.read())
        )
    for group, number in zip(optimizer.param_groups, origins, strict=True):
        group.update(scalars["groups"][number])


def split_key(key: str) -> tuple[str, str]:
    """Split a key into parameter name and entry; entries may contain colons, names do not."""
    name, _, entry = key.partition(":")
    return name, entry


def _saved_groups(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], scalars: Mapping[str, Any]
) -> list[int]:
    """Return, for each parameter group, the index of the saved group that has its parameters.

    Groups are divided differently when `training.offload_optimizer` is turned on or off; the order
    of parameters is the same.

    Raises:
        RunError: The saved groups are of other parameters, or a state of an earlier version has
            another number of groups whose counters differ.
    """
    groups, saved = optimizer.param_groups, scalars["groups"]
    starts = scalars.get("group_starts")
    if starts is None and len(saved) == len(groups):
        return list(range(len(groups)))
    if starts is None:
        if any(one != saved[0] for one in saved):
            raise RunError(
                f"The saved state has {len(saved)} groups of weights where this run has "
                f"{len(groups)}, with counters that differ. Resume the run with the value of "
                f"training.offload_optimizer that it was started with."
            )
        return [0] * len(groups)
    order = {names[p]: n for n, p in enumerate(p for group in groups for p in group["params"])}
    begins = [order.get(name, -1) for name in starts]
    if -1 in begins or begins != sorted(begins):
        raise RunError(
            "The saved state's groups of weights are not those of this run. It belongs to another "
            "model or other settings."
        )
    return [bisect.bisect_right(begins, order[names[g["params"][0]]]) - 1 for g in groups]


def _device_of(
    entry: str, optimizer: torch.optim.Optimizer, parameter: Tensor, device: torch.device
) -> torch.device:
    """Return the device of a state entry: `device`, or the CPU for step counters of torch.optim.

    Fused and capturable optimizers have step counters on the device. The rule is that of
    `torch.optim.Optimizer.load_state_dict`; for other optimizers, each step would wait for each
    counter on the GPU.
    """
    if isinstance(optimizer, ChunkedOptimizer):
        optimizer = optimizer.inner_optimizer(parameter)
    if entry != "step" or not type(optimizer).__module__.startswith("torch.optim."):
        return device
    (group,) = (g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    return device if group.get("fused") or group.get("capturable") else torch.device("cpu")


def _paged_buffer(optimizer: torch.optim.Optimizer, parameter: Tensor, value: Any) -> Tensor | None:
    """Return a new buffer for a state entry of a paged optimizer; None if it is not paged.

    bitsandbytes' paged optimizers use memory that CUDA moves between GPU and RAM, for states of the
    parameter's shape (`Optimizer8bit.get_state_buffer`), and only if they allocate it themselves.
    """
    if isinstance(optimizer, ChunkedOptimizer):
        optimizer = optimizer.inner_optimizer(parameter)
    is_paged = getattr(optimizer, "is_paged", False) and parameter.device.type != "cpu"
    if not (is_paged and isinstance(value, LazyTensor) and value.shape == parameter.shape):
        return None
    make: Callable[..., Tensor] = optimizer.get_state_buffer  # type: ignore[attr-defined]
    return make(parameter, dtype=value.dtype)


def _like(parameter: Tensor, value: Any, device: torch.device, *, kept_away: bool) -> Any:
    """Return a saved entry on its device; numbers are returned unchanged.

    With `kept_away`, large tensors go to RAM. A tensor of the parameter's shape gets the
    parameter's memory layout.
    """
    if not isinstance(value, LazyTensor):
        return value
    value = value.read()
    if kept_away and value.numel() >= MIN_NUMEL:
        device = torch.device("cpu")
    if value.shape != parameter.shape:
        return value.to(device)
    like = torch.empty_like(parameter, dtype=value.dtype, device=device, requires_grad=False)
    return like.copy_(value)
