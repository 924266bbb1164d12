"""Which validations, previews, models and states are due: by steps, by epochs or by the clock."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator

from impasto.config.run import RunConfig

USUAL_SNAPSHOTS = 8
"""How many times averages are stored in a run, if `saving.posthoc_every_steps` is not set."""


class Triggers:
    """Decides what is due after a step, with the same answers on all processes of a run.

    Args:
        config: The settings.
        steps_per_epoch: Optimizer steps in an epoch.
    """

    def __init__(self, config: RunConfig, steps_per_epoch: int) -> None:
        self._config, self._per_epoch = config, steps_per_epoch
        self._saved_at = time.monotonic()

    def log(self, done: int) -> bool:
        """Return whether a line of metrics is due after `done` steps."""
        return done % self._config.logging.every_steps == 0

    def line(self, done: int, total: int) -> bool:
        """Return whether a line of metrics is written, regardless of signals and the clock.

        It is at the last step, when a line is due, and when a state is due by steps.
        """
        return done == total or self.log(done) or self.saves_state_by_steps(done)

    def validation(self, done: int) -> bool:
        """Return whether validation is due after `done` steps."""
        return done % self._config.validation.every_steps == 0

    def preview(self, done: int) -> bool:
        """Return whether previews are due: by epochs if `every_epochs` is set, else by steps."""
        previews = self._config.previews
        if previews.every_epochs is not None:
            return self._ends_epochs(done, previews.every_epochs)
        return bool(previews.every_steps) and done % previews.every_steps == 0

    def uses_weights(self, done: int) -> bool:
        """Return whether a validation, previews or a model are due after `done` steps."""
        return self.validation(done) or self.preview(done) or bool(self.model_endings(done))

    def averages(self, done: int, total: int) -> bool:
        """Return whether the averages of `training.posthoc_ema` are due after `done` steps.

        They are stored at the end of the run as well, which this does not report.

        Args:
            done: Steps completed.
            total: Steps of the run.
        """
        return self._config.training.posthoc_ema and done % self.averages_every(total) == 0

    def averages_every(self, total: int) -> int:
        """Return the number of steps between two stored averages.

        It is `saving.posthoc_every_steps`; if that is not set, the multiple of `ema_every` that
        stores at most `USUAL_SNAPSHOTS` of them in `total` steps.
        """
        asked, each = self._config.saving.posthoc_every_steps, self._config.training.ema_every
        return asked or -(-total // (USUAL_SNAPSHOTS * each)) * each

    def model_endings(self, done: int) -> list[str]:
        """Return the name suffixes of the models due after `done` steps, named as by sd-scripts.

        "000002" for epoch 2, "step00000100" for step 100; empty if none is due.
        """
        saving, endings = self._config.saving, []
        if self._ends_epochs(done, saving.model_every_epochs):
            endings.append(f"{done // self._per_epoch:06d}")
        if saving.model_every_steps is not None and done % saving.model_every_steps == 0:
            endings.append(f"step{done:08d}")
        return endings

    def planned_endings(self, total: int) -> list[str]:
        """Return the name suffixes of all intermediate models of a run of `total` steps."""
        saving = self._config.saving
        rhythms = (saving.model_every_steps, (saving.model_every_epochs or 0) * self._per_epoch)
        dues = sorted({done for every in rhythms if every for done in range(every, total, every)})
        return [ending for done in dues for ending in self.model_endings(done)]

    def saves_state_by_steps(self, done: int) -> bool:
        """Return whether a state is due by steps, independent of signals and the clock."""
        every = self._config.saving.state_every_steps
        return bool(every) and done % every == 0

    def state(self, done: int, accelerator: Accelerator) -> bool:
        """Return whether a state is due: by steps, or by the clock of the main process.

        With several processes the clock counts only when a line of metrics is due, since they have
        to agree on it.
        """
        saving = self._config.saving
        if self.saves_state_by_steps(done):
            return True
        if saving.state_every_minutes is None:
            return False
        late = time.monotonic() - self._saved_at > 60 * saving.state_every_minutes
        if accelerator.num_processes == 1:
            return late
        if not self.log(done):
            return False
        mine = torch.tensor([int(late and accelerator.is_main_process)], device=accelerator.device)
        return bool(accelerator.gather(mine).max())

    def restart_clock(self) -> None:
        """Restart the clock that measures the time between states."""
        self._saved_at = time.monotonic()

    def _ends_epochs(self, done: int, every: int | None) -> bool:
        return every is not None and done % (every * self._per_epoch) == 0
