"""Between what is trained and a training state: what a run would need to continue, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from impasto.data.sampler import EpochSampler
from impasto.training.monitoring.metrics import MetricsWindow
from impasto.training.optim.ema import EmaWeights
from impasto.training.optim.mixed_precision import Precision
from impasto.training.parallel.strategy import OptimizerState, ParallelStrategy
from impasto.training.saving.state import TrainingState


@dataclass(frozen=True)
class SessionState:
    """All that changes while a run trains, and what tells its states from those of other runs.

    Attributes:
        names: The name of each parameter that is trained.
        fingerprint: What a state has to agree with, by name.
    """

    strategy: ParallelStrategy
    names: Mapping[Tensor, str]
    optimizer: torch.optim.Optimizer
    precision: Precision
    ema: EmaWeights | None
    sampler: EpochSampler
    fingerprint: Mapping[str, str]

    def capture(
        self, done: int, best_validation: float | None = None, window: MetricsWindow | None = None
    ) -> TrainingState:
        """All that a run would need to continue after `done` steps.

        Where processes share the model out, all of them read its tensors, in the same order.
        """
        strategy = self.strategy
        optimizer = strategy.optimizer_state(self.optimizer, self.names)
        return TrainingState(
            step=done,
            samples_seen=self.sampler.samples_before(done),
            fingerprint=self.fingerprint,
            weights=strategy.whole({name: parameter for parameter, name in self.names.items()}),
            optimizer=optimizer.tensors,
            optimizer_scalars=optimizer.scalars,
            ema=strategy.whole(self.ema.tensors()) if self.ema else {},
            scaler=self.precision.state(),
            best_validation=best_validation,
            window=window,
        )

    def restore(self, state: TrainingState) -> None:
        """Put a captured state into a new run.

        Raises:
            RunError: It does not fit what the run trains.
        """
        strategy = self.strategy
        strategy.put(self.names, state.weights)
        remembered = OptimizerState(state.optimizer, state.optimizer_scalars)
        strategy.load_optimizer_state(self.optimizer, self.names, remembered)
        self.precision.restore(state.scaler)
        if self.ema is not None:
            self.ema.restore(strategy.shard(state.ema))
