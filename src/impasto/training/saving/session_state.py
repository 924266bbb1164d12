"""Captures a training state from the objects of a session, and restores it into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.data.loading.sampler import EpochSampler
from impasto.diffusion.uncertainty import Uncertainty
from impasto.training.monitoring.metrics import MetricsWindow
from impasto.training.optim.ema import EmaWeights
from impasto.training.optim.mixed_precision import Precision
from impasto.training.parallel.strategy import OptimizerState, ParallelStrategy
from impasto.training.saving.state import TrainingState

SIGMA_REL = "/"
"""Separates an average's sigma_rel from the name of a weight, as in `0.05/unet.conv_in.bias`."""

LOSS_WEIGHTS = "loss weights/"
"""Prefix of the names of learned loss weights, which are stored with the optimizer's tensors."""


@dataclass(frozen=True)
class SessionState:
    """The objects of a session that change during training, and the fingerprint of the run.

    Attributes:
        names: The name of each trained parameter.
        ema: The running average that is evaluated and exported; None if the run has none.
        posthoc: Averages that post-hoc EMA combines after training, by sigma_rel.
        uncertainty: The learned loss weights, stored with the optimizer; None if they are fixed.
        fingerprint: Facts that a saved state must agree with, by name.
    """

    strategy: ParallelStrategy
    names: Mapping[Tensor, str]
    optimizer: torch.optim.Optimizer
    precision: Precision
    ema: EmaWeights | None
    posthoc: Mapping[float, EmaWeights]
    uncertainty: Uncertainty | None
    sampler: EpochSampler
    fingerprint: Mapping[str, str]

    def capture(
        self, done: int, best_validation: float | None = None, window: MetricsWindow | None = None
    ) -> TrainingState:
        """Return the state that a run needs to continue after `done` steps, lazily read.

        If the model is sharded, all processes have to read its tensors, in the same order.
        """
        strategy = self.strategy
        optimizer = strategy.optimizer_state(self.optimizer, self.names)
        return TrainingState(
            step=done,
            samples_seen=self.sampler.samples_before(done),
            fingerprint=self.fingerprint,
            weights=strategy.whole({name: parameter for parameter, name in self.names.items()}),
            optimizer={**optimizer.tensors, **self._learned_weights()},
            optimizer_scalars=optimizer.scalars,
            ema={
                f"{prefix}{name}": tensor
                for prefix, average in self.averages().items()
                for name, tensor in strategy.whole(average.tensors()).items()
            },
            scaler=self.precision.state(),
            best_validation=best_validation,
            window=window,
        )

    def restore(self, state: TrainingState) -> None:
        """Load a captured state into the objects of this session.

        Raises:
            RunError: The state does not fit the trained parameters.
        """
        strategy = self.strategy
        strategy.put(self.names, state.weights)
        weights = {n: t for n, t in state.optimizer.items() if n.startswith(LOSS_WEIGHTS)}
        stepped = {n: t for n, t in state.optimizer.items() if n not in weights}
        remembered = OptimizerState(stepped, state.optimizer_scalars)
        strategy.load_optimizer_state(self.optimizer, self.names, remembered)
        self.precision.restore(state.scaler)
        self._restore_averages(state.ema)
        if self.uncertainty is not None:
            for name, tensor in self.uncertainty.tensors().items():
                tensor.copy_(weights[f"{LOSS_WEIGHTS}{name}"].read())

    def _learned_weights(self) -> dict[str, LazyTensor]:
        if self.uncertainty is None:
            return {}
        tensors = self.uncertainty.tensors()
        return {f"{LOSS_WEIGHTS}{name}": LazyTensor.of(t) for name, t in tensors.items()}

    def averages(self) -> dict[str, EmaWeights]:
        """Return all running averages, by the prefix of their tensors' names in a state."""
        plain = {} if self.ema is None else {"": self.ema}
        return plain | {f"{sigma_rel:g}{SIGMA_REL}": a for sigma_rel, a in self.posthoc.items()}

    def _restore_averages(self, tensors: Tensors) -> None:
        by_prefix: dict[str, dict[str, LazyTensor]] = {}
        for name, tensor in tensors.items():
            sigma_rel, mark, own = name.rpartition(SIGMA_REL)
            by_prefix.setdefault(sigma_rel + mark, {})[own] = tensor
        for prefix, average in self.averages().items():
            average.restore(self.strategy.shard(by_prefix.get(prefix, {})))
