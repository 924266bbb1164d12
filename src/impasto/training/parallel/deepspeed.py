"""A model whose gradients and optimizer state are sharded over processes, by DeepSpeed.

Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054), stages 1 and 2: each process has all weights,
updates its shard of them, and sends it to the others. For saved states, DeepSpeed's own functions
gather the shards, so that the states are the same as those of other strategies.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.errors import ConfigError
from impasto.models.trainable import TrainedModule
from impasto.training.optim.finite_updates import NonFiniteError
from impasto.training.optim.state import group_scalars, split_key
from impasto.training.optim.updates import OptimizerUpdate, UpdateInputs
from impasto.training.parallel.strategy import (
    DataParallelStrategy,
    LocalTensors,
    OptimizerState,
    ParameterNames,
    broadcast_bool,
)

_OWN = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "gradient_clipping", "zero_optimization", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "steps_per_print",
}  # fmt: skip
_ELSEWHERE = {
    "optimizer": "[optimizer]",
    "scheduler": "[schedule]",
    "fp16": "training.mixed_precision",
    "bf16": "training.mixed_precision",
    "amp": "training.mixed_precision",
    "torch_autocast": "training.mixed_precision",
}


def deepspeed_config(plugin: Any, *, max_grad_norm: float, accumulation: int) -> dict[str, Any]:
    """Build DeepSpeed's configuration: sharding from accelerate, the rest from the run's settings.

    Args:
        plugin: accelerate's `DeepSpeedPlugin`; None if it has none.
        max_grad_norm: The norm that gradients are clipped to; 0 clips nothing.
        accumulation: Micro-batches in a step.

    Raises:
        ConfigError: accelerate's configuration requests an unsupported feature, or contradicts the
            run's settings.
    """
    if plugin is None:
        raise ConfigError(
            "accelerate is configured for DeepSpeed and for the CPU (use_cpu), which it cannot "
            "combine. Run `accelerate config` and choose FSDP, or a GPU."
        )
    asked = dict(plugin.deepspeed_config)
    for section, ours in _ELSEWHERE.items():
        held = asked.get(section)
        if isinstance(held, Mapping) and (section not in {"fp16", "bf16", "amp", "torch_autocast"}
                                          or held.get("enabled") is True):  # fmt: skip
            raise ConfigError(
                f"DeepSpeed's configuration has a section {section}. Remove it, since {ours} in "
                f"the run's settings takes its place."
            )
    for theirs, ours, value, usual in (
        ("gradient_clipping", "max_grad_norm", max_grad_norm, "auto"),
        ("gradient_accumulation_steps", "gradient_accumulation_steps", accumulation, 1),
    ):
        if asked.get(theirs, "auto") not in {"auto", value, usual}:
            raise ConfigError(
                f"DeepSpeed's {theirs} is {asked[theirs]}, but training.{ours} is {value:g}. "
                f"Remove the former, or set both to the same value."
            )
    return {
        **{k: v for k, v in asked.items() if k not in {*_OWN, *_ELSEWHERE} and v != "auto"},
        "train_micro_batch_size_per_gpu": 1,  # without effect: losses are scaled already
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": _zero_section(asked.get("zero_optimization", {})),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 40,
    }


def _zero_section(asked: Mapping[str, Any]) -> dict[str, Any]:
    section = {key: value for key, value in asked.items() if value != "auto"}
    stage = section.setdefault("stage", 2)
    if stage not in {1, 2}:
        raise ConfigError(
            f"accelerate's zero_stage is {stage}; expected 1 or 2. To shard the weights too, as "
            f"stage 3 does, run `accelerate config` and choose FSDP."
        )
    for name in ("offload_param", "offload_optimizer"):
        if dict(section.pop(name, None) or {}).get("device", "none") != "none":
            raise ConfigError(
                f"accelerate's {name}_device keeps a shard in RAM, which is not "
                f"supported. Set it to none; training.gradient_checkpointing saves VRAM."
            )
    return section


class DeepSpeedStrategy(DataParallelStrategy):
    """Holds all weights in each process, and the optimizer state of that process's shard of them.

    Args:
        accelerator: The processes.
        settings: DeepSpeed's configuration; see `deepspeed_config`.
    """

    def __init__(self, accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
        super().__init__(accelerator)
        stage = settings["zero_optimization"]["stage"]
        what = "optimizer state" if stage == 1 else "gradients and optimizer state"
        self.is_sharded = True
        self.description = (
            f"DeepSpeed, ZeRO stage {stage}: each of {accelerator.num_processes} processes holds "
            f"a shard of the {what}."
        )
        self._settings = dict(settings)
        self._is_main, self._device = accelerator.is_main_process, accelerator.device
        self._modules: list[nn.Module] = []
        self._weights: dict[str, nn.Parameter] = {}
        self._engine: Any = None

    @property
    def participates(self) -> bool:
        """True, since each process holds a shard of the state that is saved."""
        return True

    def agreed(self, answer: bool) -> bool:  # noqa: FBT001 - the question is the caller's
        """Return the main process's answer, on all processes."""
        return broadcast_bool(answer, self._device)

    def wrap(self, module: nn.Module) -> Any:
        """Move a module to the device and return it; `start` hands it to DeepSpeed."""
        self._modules.append(module.to(self._device))
        return module

    def start(self, modules: Sequence[TrainedModule], optimizer: torch.optim.Optimizer) -> None:
        """Let DeepSpeed shard the optimizer's groups over the processes."""
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of untested optimizers
        warnings.filterwarnings("ignore", r"`torch\.distributed\..*deprecated", FutureWarning)
        for trained in modules:
            self._weights |= {f"{trained.name}.{n}": p for n, p in trained.parameters().items()}
        self._engine, *_ = deepspeed.initialize(
            model=nn.ModuleList(self._modules),
            optimizer=optimizer,
            config=self._settings,
            dist_init_required=False,
        )

    def build_update(self, inputs: UpdateInputs) -> OptimizerUpdate:
        """Build the update that uses DeepSpeed's engine."""
        return DeepSpeedUpdate(self._engine, measures=inputs.max_norm > 0)

    def gather_modules(self, tensors: Mapping[str, LocalTensors]) -> Mapping[str, LocalTensors]:
        """Return copies of whole tensors on the CPU, on the main process; empty on the others."""
        if not self._is_main:
            return {}
        return {
            component: {name: tensor.detach().to("cpu", copy=True) for name, tensor in held.items()}
            for component, held in tensors.items()
        }

    @torch.no_grad()
    def put(self, names: ParameterNames, weights: Tensors) -> None:
        """Copy whole tensors into the weights, and into the float32 copy that is updated."""
        del names
        from deepspeed.utils import safe_set_full_fp32_param

        for name, weight in self._weights.items():
            weight.copy_(weights[name].read())
            safe_set_full_fp32_param(weight, weight.detach())

    def optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames
    ) -> OptimizerState:
        """Return the optimizer's whole state, gathered tensor by tensor as it is read."""
        del names
        self._link(optimizer)
        flat, entries = next(iter(optimizer.state.items()), (None, {}))
        tensors, numbers = {}, {}
        for name, weight in self._weights.items():
            for entry, value in entries.items():
                if not isinstance(value, Tensor):
                    numbers[f"{name}:{entry}"] = value
                elif flat is not None and value.shape == flat.shape:
                    tensors[f"{name}:{entry}"] = _gathered(weight, entry)
                else:
                    tensors[f"{name}:{entry}"] = LazyTensor.of(value)
        scalars = {"parameters": numbers, "groups": group_scalars(optimizer)}
        return OptimizerState(tensors, scalars)

    @torch.no_grad()
    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames, state: OptimizerState
    ) -> None:
        """Allocate the shards' state as the first step would, then fill it."""
        from deepspeed.utils import safe_set_full_optimizer_state

        del names
        for group, saved in zip(optimizer.param_groups, state.scalars["groups"], strict=True):
            group.update(saved)
        held = {**state.tensors, **state.scalars["parameters"]}
        first = next(iter(self._weights))
        entries = {split_key(k)[1]: v for k, v in held.items() if k.startswith(f"{first}:")}
        laid_out = {
            entry
            for entry, value in entries.items()
            if isinstance(value, LazyTensor) and value.shape == tuple(self._weights[first].shape)
        }
        for group in optimizer.param_groups:
            for flat in group["params"]:
                optimizer.state[flat] = {
                    entry: torch.zeros_like(flat) if entry in laid_out else _copy(value)
                    for entry, value in entries.items()
                }
        self._link(optimizer)
        for name, weight in self._weights.items():
            for entry in laid_out:
                value = held[f"{name}:{entry}"].read().to(weight.device)
                safe_set_full_optimizer_state(weight, value, entry)

    def _link(self, optimizer: torch.optim.Optimizer) -> None:
        """Link weights to their optimizer state; DeepSpeed 0.19 does so only after a first step."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self._engine.optimizer
        for group, flat in zip(
            zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True
        ):
            if optimizer.state.get(flat):
                lazy_init_hp_params_optimizer_state(group, flat, optimizer.state)


class DeepSpeedUpdate:
    """Runs the backward pass and the optimizer step by DeepSpeed's engine.

    Args:
        engine: DeepSpeed's engine.
        measures: Whether `apply` returns the gradient norm.
    """

    def __init__(self, engine: Any, *, measures: bool) -> None:
        self._engine, self._measures = engine, measures
        self.is_stepping = False

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Run the backward pass, which adds to this process's shard of the gradients."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=is_last)
        self._engine.backward(loss)

    def apply(self, loss: Tensor) -> Tensor | None:
        """Clip the gradients and step the optimizer; return the gradient norm if it is measured.

        Raises:
            NonFiniteError: The loss is not finite (the weights are intact), or the gradient is not
                (the weights are changed).
        """
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(weights_intact=True)
        self.is_stepping = True
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=loss.device).float()
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(weights_intact=False)
        return norm if self._measures else None

    def require_applied(self) -> None:
        """Do nothing, since `apply` finds values that are not finite at once."""


def _gathered(weight: Tensor, entry: str) -> LazyTensor:
    """Return an entry of a weight's whole state; all processes gather it when it is read."""
    from deepspeed.utils import safe_get_full_optimizer_state

    return LazyTensor(
        tuple(weight.shape),
        torch.float32,
        lambda: safe_get_full_optimizer_state(weight, entry).detach().cpu(),
        owns_memory=True,
    )


def _copy(value: Any) -> Any:
    return value.read().clone() if isinstance(value, LazyTensor) else value
