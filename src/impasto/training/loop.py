"""The loop: updates, and whatever is due between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impasto import files
from impasto.checkpoints.keymap import TEXT_ENCODER
from impasto.data.dataset import iterate_updates
from impasto.data.records import Batch
from impasto.data.sampler import Update
from impasto.errors import Interrupted, NonFiniteLossError
from impasto.randomness import derive_seed
from impasto.runs import RunDirectory, step_name
from impasto.training.advice import advice_on
from impasto.training.calendar import Calendar
from impasto.training.capture import capture_state, restore_state
from impasto.training.devices import seed_torch
from impasto.training.events import TrainingEvents
from impasto.training.export import export_best, export_model, export_on_the_way
from impasto.training.half_weights import HalfWeightOptimizer
from impasto.training.interrupts import StopRequest
from impasto.training.meter import Meter
from impasto.training.movement import MovementCheck
from impasto.training.optimizer_state import LrSetter, parameter_names, require_savable
from impasto.training.optimizers import evaluation_weights
from impasto.training.session import Session
from impasto.training.state import load_state, save_state
from impasto.training.step import sample_losses, update_share
from impasto.training.trackers import Tracker, open_trackers, shown_numbers


class TrainingLoop:
    """Takes a session from its newest state to its end.

    Args:
        session: The run, ready to train.
        run: Where it leaves what it makes.
        events: Who is told; silent on all processes but the first.
        preparing_s: Seconds that loading, scanning and encoding took, for the record.
    """

    def __init__(
        self,
        session: Session,
        run: RunDirectory,
        events: TrainingEvents,
        preparing_s: float = 0.0,
    ) -> None:
        self._session, self._run, self._events = session, run, events
        self._config = session.config
        self._accelerator = session.accelerator
        self._is_main = session.accelerator.is_main_process
        self._lr = LrSetter(session.optimizer)
        self._names = parameter_names(session.trainable.parts)
        self._parameters = list(self._names)
        self._skips_on_device = session.accelerator.device.type == "cuda" and bool(
            session.optimizer.param_groups[0].get("fused")
        )
        self._lost: set[Path] = set()
        self._has_stepped = False
        self._best: float | None = None
        self._trackers: list[Tracker] = []
        self._calendar = Calendar(session.config, session.sampler.updates_per_epoch)
        self._movement: MovementCheck | None = None
        self._meter = Meter(session.accelerator)
        self._meter.timings_s["preparing"] = preparing_s

    def train(self) -> None:
        """Train to the end, then validate, preview and export.

        Raises:
            Interrupted: A signal asked to stop.
            NonFiniteLossError: The loss or the gradient became NaN or infinite.
            StorageError: A state or the export could not be written.
        """
        step = self._restore()
        if self._is_main:
            settings = self._config.model_dump(mode="json", exclude_none=True)
            names = self._config.logging.trackers
            self._trackers = open_trackers(names, self._run, settings)
        try:
            self._train_from(step)
        finally:
            for tracker in self._trackers:
                tracker.close()

    def _train_from(self, step: int) -> None:
        session = self._session
        frozen = {"VAE": session.model.vae, "text_encoder": session.model.text_encoder}
        self._movement = MovementCheck(session.trainable.parts, frozen)
        self._announce(step)
        if step == 0:
            self._validate(0)
            if self._config.previews.at_first:
                self._preview(0)
        with StopRequest() as stop:
            self._meter.restart()
            updates = iterate_updates(
                session.data,
                session.sampler,
                step,
                session.total_steps,
                self._accelerator.process_index,
            )
            for update, batches in self._meter.waiting_for(updates):
                self._update(update, batches)
                self._after_update(update.step + 1, stop)
        self._finish()

    def _update(self, update: Update, batches: Iterator[Batch]) -> None:
        """One optimizer update: all micro-batches, clipping, step, average."""
        session, accelerator = self._session, self._accelerator
        seed_torch(derive_seed(self._config.seed, "torch", update.step))
        lr_factor = session.lr_schedule(update.step, session.total_steps)
        self._lr.set(lr_factor)
        for part in session.trainable.parts:
            if part.name == TEXT_ENCODER:
                session.conditioner.learn(now=part.learns_at(update.step))
        if isinstance(session.optimizer, HalfWeightOptimizer):
            session.optimizer.begin(derive_seed(self._config.seed, "rounding", update.step))
        total = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(update.micro_batches)
            with self._synchronizing(now=is_last):
                with session.precision.autocast():
                    losses = sample_losses(session.unet, session.conditioner, batch, session.recipe)
                share = update_share(losses, update.size, accelerator.num_processes)
                torch.autograd.backward(session.precision.scaled(share))
            total += share.detach()
        norm = self._apply_gradient(total, update.step)
        self._meter.add(total, norm, update.size)
        if session.ema is not None:
            session.ema.update(update.step)
        if self._movement is not None and lr_factor > 0:
            self._look_at_movement(self._movement, update.step)
            self._movement = None

    def _look_at_movement(self, movement: MovementCheck, step: int) -> None:
        """Once: say if a part that should learn has not moved, or one that should not has."""
        if self._session.precision.scales:
            return  # the first updates may be passed over until the scale is found
        learning = [part.name for part in self._session.trainable.parts if part.learns_at(step)]
        for finding in movement.findings(learning):
            self._events.note(f"Warning: {finding}")

    @contextlib.contextmanager
    def _synchronizing(self, *, now: bool) -> Iterator[None]:
        """Exchange gradients between processes in the last backward pass of an update only."""
        with contextlib.ExitStack() as stack:
            if not now:
                for module in self._session.synchronized:
                    stack.enter_context(self._accelerator.no_sync(module))
            yield

    def _apply_gradient(self, loss: Tensor, step: int) -> Tensor | None:
        """Clip and step; an update that is not finite is not applied. Returns the norm, if known.

        A fused optimizer on a GPU skips it on the device, so that nothing waits; the fault is
        noticed when the losses are read. A scaler skips it too, and only a loss that is not finite
        is a fault then. Elsewhere it is noticed at once.
        """
        precision, optimizer = self._session.precision, self._session.optimizer
        norm = precision.clip(optimizer, self._parameters, self._config.training.max_grad_norm)
        finite = torch.isfinite(loss)
        if norm is not None and not precision.scales:
            finite = finite & torch.isfinite(norm)
        if self._skips_on_device and not precision.scales:
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        elif not self._skips_on_device and not bool(finite):
            optimizer.zero_grad()
            raise self._not_finite(step)
        precision.step(optimizer)
        optimizer.zero_grad()
        if not self._has_stepped:
            require_savable(optimizer)
            self._has_stepped = True
        return norm

    def _not_finite(self, step: int) -> NonFiniteLossError:
        """Save what is still good and explain."""
        saved = self._save(step)
        return NonFiniteLossError(
            f"The loss or the gradient became NaN or infinite in update {step + 1}. The weights "
            f"from before it are saved in {saved}. The usual causes are a learning rate that is "
            f"too high (optimizer.lr is {self._config.optimizer.lr:g}; try a tenth) and a base "
            f"model with broken weights."
        )

    def _after_update(self, done: int, stop: StopRequest) -> None:
        """Whatever is due after `done` updates."""
        total = self._session.total_steps
        self._events.stepped(done)
        last = done == total
        stopping = self._stop_signal(stop, done)
        calendar = self._calendar
        saving = last or stopping is not None or calendar.state(done, self._accelerator)
        if saving or calendar.log(done):
            self._log(done)
        if last or calendar.validation(done):
            self._validate(done)
        if last or calendar.preview(done):
            self._preview(done)
        if saving:
            self._save(done)
        if not last:
            self._export_on_the_way(done)
        if stopping is not None and not last:
            raise Interrupted(
                f"{done} of {total} updates are done, and the state is saved. Continue with: "
                f"impasto resume {self._run.path}",
                stopping,
            )

    def _export_on_the_way(self, done: int) -> None:
        """Export what is due after `done` updates, by epochs and by steps."""
        endings = self._calendar.model_endings(done)
        if endings and self._is_main:
            with self._meter.aside("export"), self._averaged():
                for ending in endings:
                    export_on_the_way(self._session, self._run, self._events, ending)
        if endings:
            self._accelerator.wait_for_everyone()

    def _stop_signal(self, stop: StopRequest, done: int) -> int | None:
        """The signal that any process got; several processes agree at each logging step."""
        number = stop.signal_number or 0
        if self._accelerator.num_processes > 1:
            if not self._calendar.log(done):
                return None
            mine = torch.tensor([number], device=self._accelerator.device)
            number = int(self._accelerator.gather(mine).max())
        return number or None

    def _log(self, done: int) -> None:
        """Write the mean loss of the updates since the last line; the device is waited for here."""
        reading = self._meter.read()
        if reading is None:
            return
        for path, reason in self._newly_lost():
            self._events.note(f"{path} cannot be read any more and is passed over: {reason}")
        record = {
            "step": done,
            "epoch": (done - 1) // self._session.sampler.updates_per_epoch,
            "samples_seen": self._session.sampler.samples_before(done),
            "loss": float(reading.losses.mean()),
            "lr": self._session.optimizer.param_groups[0]["lr"],
            **self._rates_of_other_parts(),
            "images_per_s": reading.images_per_s,
            "data_wait": round(reading.data_wait, 4),
            "memory_mib": round(reading.memory_mib),
        }
        if reading.grad_norm is not None:
            record["grad_norm"] = reading.grad_norm
        self._write(record)
        if not torch.isfinite(reading.losses).all():
            raise self._not_finite(done)
        self._session.precision.require_living_scale()

    def _rates_of_other_parts(self) -> dict[str, float]:
        """`lr_<part>` of what is trained beside the U-Net."""
        rates = {}
        for group in reversed(self._session.optimizer.param_groups):
            part = self._names[group["params"][0]].partition(".")[0]
            rates[f"lr_{part}"] = float(group["lr"])
        return {name: rate for name, rate in rates.items() if name != "lr_unet"}

    def _newly_lost(self) -> list[tuple[Path, str]]:
        """Pictures that training met and could not read since the last look."""
        lost = self._session.data.lost
        fresh = [(path, reason) for path, reason in list(lost.items()) if path not in self._lost]
        self._lost.update(path for path, _ in fresh)
        return fresh

    def _validate(self, done: int) -> None:
        validator = self._session.validator
        if validator is None or not self._is_main:
            return
        with self._meter.aside("validation"), self._averaged(), self._session.precision.autocast():
            loss = validator.measure(
                self._session.trainable.unet,
                self._session.watching_conditioner,
                self._session.recipe,
            )
            if self._best is None or loss.mean < self._best:
                self._best = loss.mean
                if self._config.saving.best_model and done > 0:
                    export_best(self._session, self._run, self._events)
        self._write({"step": done, **loss.as_record()})

    def _preview(self, done: int) -> None:
        if self._is_main:
            with (
                self._meter.aside("previews"),
                self._averaged(),
                self._session.precision.autocast(),
            ):
                self._session.previewer.draw(self._run, done, self._events)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The weights that are looked at and exported, in the place of those that are trained."""
        ema = self._session.ema
        with (
            evaluation_weights(self._session.optimizer),
            contextlib.nullcontext() if ema is None else ema.in_place(),
        ):
            yield

    def _write(self, record: dict[str, Any]) -> None:
        if self._is_main:
            self._run.append_metrics(record)
            self._events.measured(record)
            step, numbers = shown_numbers(record)
            for tracker in self._trackers:
                tracker.log(numbers, step)

    def _save(self, done: int) -> Path | None:
        """Write the training state; all processes wait for the one that writes."""
        path = None
        self._calendar.state_is_saved()
        with self._meter.aside("saving states"):
            if self._is_main:
                state = capture_state(self._session, self._names, done, self._best)
                path = save_state(self._run, state, keep=self._config.saving.keep_states)
                self._run.write_status("training", step=done, total_steps=self._session.total_steps)
            self._accelerator.wait_for_everyone()
        return path

    def _restore(self) -> int:
        """Load the newest state, if there is one, and return its step."""
        steps = self._run.saved_steps()
        if not steps:
            if self._is_main:
                self._run.metrics_file.unlink(missing_ok=True)
            return 0
        state = load_state(self._run.states / step_name(steps[-1]), self._session.fingerprint)
        restore_state(self._session, self._names, state)
        self._best = state.best_validation
        if self._is_main:
            self._run.rewind_metrics(state.step)
        return state.step

    def _announce(self, step: int) -> None:
        session = self._session
        texts = [image.record.steady_caption for image in session.prepared.training.images]
        dataset = {
            **session.prepared.summary(),
            "too_long": session.conditioner.too_long(texts),
            "max_tokens": self._config.model.max_tokens,
        }
        if self._is_main:
            files.write_json(self._run.path / "dataset.json", dataset)
            self._run.write_status("training", step=step, total_steps=session.total_steps)
        parts = {
            part.name: sum(p.numel() for p in part.parameters().values())
            for part in session.trainable.parts
        }
        for line in advice_on(self._config, session.model.identity):
            self._events.note(f"Warning: {line}")
        self._events.started(
            {
                "family": session.model.identity.family.name,
                "prediction": session.model.identity.prediction.name,
                "parts": parts,
                "device": str(self._accelerator.device),
                "processes": self._accelerator.num_processes,
                "updates_per_epoch": session.sampler.updates_per_epoch,
                **dataset,
            },
            step,
            session.total_steps,
        )

    def _finish(self) -> None:
        """Export the model, which is the point of it all."""
        total = self._session.total_steps
        if self._is_main:
            with self._meter.aside("export"), self._averaged():
                model = export_model(self._session, self._run, self._events)
            timings = {name: round(s, 2) for name, s in self._meter.timings_s.items()}
            self._run.write_status(
                "finished",
                step=total,
                total_steps=total,
                timings_s=timings,
                **({"model": str(model)} if self._config.saving.model_dir else {}),
            )
        self._accelerator.wait_for_everyone()
