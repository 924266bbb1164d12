"""What is due after a step: by steps, by passes over the data, or by the clock."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator

from impasto.config.run import RunConfig

USUAL_SNAPSHOTS = 8
"""How often averages are stored in a run that does not say."""


class Triggers:
    """The occasions of a run, the same on all its processes.

    Args:
        config: The settings.
        steps_per_epoch: Optimizer steps in a pass over the data.
    """

    def __init__(self, config: RunConfig, steps_per_epoch: int) -> None:
        self._config, self._per_epoch = config, steps_per_epoch
        self._saved_at = time.monotonic()

    def log(self, done: int) -> bool:
        """Whether a line of metrics is due after `done` steps."""
        return done % self._config.logging.every_steps == 0

    def line(self, done: int, total: int) -> bool:
        """Whether a line of metrics is written, whatever a signal or the clock asks for."""
        return done == total or self.log(done) or self.saves_state_by_steps(done)

    def validation(self, done: int) -> bool:
        """Whether validation is due after this step."""
        return done % self._config.validation.every_steps == 0

    def preview(self, done: int) -> bool:
        """Whether previews are: by epochs where those are given, else by steps."""
        previews = self._config.previews
        if previews.every_epochs is not None:
            return self._ends_epochs(done, previews.every_epochs)
        return bool(previews.every_steps) and done % previews.every_steps == 0

    def uses_weights(self, done: int) -> bool:
        """Whether the weights are validated, drawn with or exported."""
        return self.validation(done) or self.preview(done) or bool(self.model_endings(done))

    def averages(self, done: int, total: int) -> bool:
        """Whether the averages of `training.posthoc_ema` are stored, in a run of so many steps.

        They are once more at its end.
        """
        return self._config.training.posthoc_ema and done % self.averages_every(total) == 0

    def averages_every(self, total: int) -> int:
        """Steps between two times that averages are stored: a multiple of `ema_every`."""
        asked, each = self._config.saving.posthoc_every_steps, self._config.training.ema_every
        return asked or -(-total // (USUAL_SNAPSHOTS * each)) * each

    def model_endings(self, done: int) -> list[str]:
        """What the models are called that are exported now, in sd-scripts' way."""
        saving, endings = self._config.saving, []
        if self._ends_epochs(done, saving.model_every_epochs):
            endings.append(f"{done // self._per_epoch:06d}")
        if saving.model_every_steps is not None and done % saving.model_every_steps == 0:
            endings.append(f"step{done:08d}")
        return endings

    def planned_endings(self, total: int) -> list[str]:
        """What all models on the way will be called, in a run of so many steps."""
        saving = self._config.saving
        rhythms = (saving.model_every_steps, (saving.model_every_epochs or 0) * self._per_epoch)
        dues = sorted({done for every in rhythms if every for done in range(every, total, every)})
        return [ending for done in dues for ending in self.model_endings(done)]

    def saves_state_by_steps(self, done: int) -> bool:
        """Whether a state is due by steps, which is the same whenever the run is stopped."""
        every = self._config.saving.state_every_steps
        return bool(every) and done % every == 0

    def state(self, done: int, accelerator: Accelerator) -> bool:
        """Whether a state is due: by steps, or by the clock of the first process."""
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
        """Begin to measure the time between states anew."""
        self._saved_at = time.monotonic()

    def _ends_epochs(self, done: int, every: int | None) -> bool:
        return every is not None and done % (every * self._per_epoch) == 0
