"""`train` and `resume`: run a training from its settings to its end, on any number of processes."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from impasto import files, locks, temporary_names
from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.config.run import RunConfig
from impasto.datasets.build import Survey
from impasto.datasets.distributed import ending_together, process_group
from impasto.datasets.prepare import LATENTS
from impasto.datasets.sources import require_sources
from impasto.errors import ImpastoError
from impasto.models.reading.opening_ahead import OpenedAhead
from impasto.remote_paths import is_remote
from impasto.runs import RunDirectory
from impasto.runs.given_code import how_to_resume
from impasto.runs.preparing import forget_preparing, note_preparing
from impasto.runs.remote.local_folders import location_of, working_folder
from impasto.runs.status import kept_text
from impasto.training.assembly.build import build_session
from impasto.training.assembly.model_ahead import opened_ahead
from impasto.training.builders.overrides import Overrides
from impasto.training.builders.processes import planned_processes
from impasto.training.devices import build_accelerator
from impasto.training.events import SilentEvents, TrainingEvents
from impasto.training.lifecycle.arguments import (
    require_arguments_of_resume,
    require_arguments_of_train,
)
from impasto.training.lifecycle.early_ends import (
    explain_exits,
    explain_memory,
    remove_waiting,
    removing_waiting,
    writing_end,
)
from impasto.training.lifecycle.environment import describe_environment
from impasto.training.lifecycle.output_room import require_output_room
from impasto.training.lifecycle.preflight import require_machine
from impasto.training.lifecycle.resumed import note_resumed
from impasto.training.lifecycle.run_storage import RunStorage, with_local_output_dir
from impasto.training.lifecycle.shared_start import (
    failing_together,
    fingerprint_of_first,
    first_settings_here,
    settings_to_resume,
)
from impasto.training.lifecycle.written_settings import (
    replace_settings,
    require_same_code,
    write_settings,
)
from impasto.training.loop import TrainingLoop
from impasto.training.monitoring.command_listener import CommandListener
from impasto.training.monitoring.journal import RecordedEvents
from impasto.training.parallel.accelerate_config import configured_sharding
from impasto.training.planning.disk import plan_disk
from impasto.training.planning.resolved_run import resolve_run
from impasto.training.saving.state import recorded_fingerprint
from impasto.training.session import Session
from impasto.training.signals import StopRequest


def train(
    config: RunConfig,
    events: TrainingEvents | None = None,
    overrides: Overrides | None = None,
) -> RunDirectory:
    """Start a run in a new directory, train it to its end and return the directory.

    Args:
        config: The settings of the run.
        events: Receives the events of the run; None shows none.
        overrides: Functions and objects that replace parts of the training; None for none.

    Raises:
        ImpastoError: The settings, the machine, the dataset or the model do not allow the run, or
            training failed. `Interrupted` after Ctrl-C or SIGTERM, with the state saved.
        TypeError: An argument is of the wrong type.
    """
    require_arguments_of_train(config, events, overrides)
    overrides = overrides or Overrides()
    overrides.require_fitting(config)
    require_machine(config)
    location = config.output_dir if is_remote(config.output_dir) else None
    config = with_local_output_dir(config)
    began = time.perf_counter()
    if planned_processes() == 1:  # checked early, since accelerate waits if it shards a model
        require_compatible(config, Facts(processes=1, sharding=configured_sharding()))
    accelerator = build_accelerator()
    group = process_group(accelerator)
    told = RecordedEvents(_spoken_by(accelerator, events))
    commands = None
    with contextlib.ExitStack() as held:
        stop = held.enter_context(_signals(accelerator, told))
        if accelerator.is_main_process:
            with ending_together(group):
                storage = RunStorage(held, location, _spoken_by(accelerator, events), is_new=True)
                run = storage.attach(held.enter_context(RunDirectory.begun(config.output_dir)))
            commands = _listening(held, run, stop, told)
        try:
            with (
                explain_exits(accelerator, lambda: _NOT_BEGUN),
                ending_together(group),
                opened_ahead(config, accelerator) as opened,
            ):
                known = None
                if accelerator.is_main_process:
                    config, known = _begun(run, config, accelerator, told, overrides)
                config = first_settings_here(group, config, location)
                if not accelerator.is_main_process:
                    run = replace(RunDirectory(config.output_dir), location=location)
                _use_cache(held, config, run, accelerator, told)
                session = _prepare(run, config, accelerator, told, overrides, known, opened)
        except ImpastoError:
            if accelerator.is_main_process:  # nothing was trained: remove the directory
                told.log.drop()
                run.discard()
            raise
        if accelerator.is_main_process:
            storage.start_sending()
        return _run(run, session, told, time.perf_counter() - began, stop, commands)


def _begun(
    run: RunDirectory,
    config: RunConfig,
    accelerator: Accelerator,
    told: RecordedEvents,
    overrides: Overrides,
) -> tuple[RunConfig, Survey]:
    """Resolve the settings of a new run, write them, and return them with the scanned images.

    Raises:
        ImpastoError: The settings contradict each other, or do not fit the machine or the images.
    """
    note_preparing(run.path, config.model_dump(mode="json"))
    processes, device = accelerator.num_processes, accelerator.device
    resolved = resolve_run(config, told, processes, device=device, overrides=overrides)
    write_settings(run, resolved.config, overrides.given())
    told.open(run)
    return resolved.config, resolved.survey


def resume(
    path: str | Path,
    events: TrainingEvents | None = None,
    overrides: Overrides | None = None,
    changed: RunConfig | None = None,
) -> RunDirectory:
    """Continue a run from its newest state, or from the start if it has none yet.

    Args:
        path: The run directory.
        events: Receives the events of the run; None shows none.
        overrides: The same functions and objects that the run was started with.
        changed: New settings. They replace those in the directory if the state fits them.

    Raises:
        ImpastoError: As `train`; `RunError` if the state does not fit the run any more, or another
            process is training it.
        TypeError: An argument is of the wrong type.
    """
    require_arguments_of_resume(path, events, overrides, changed)
    run = _directory_at(Path(path))
    location, config = run.location, None
    if location is None:
        with failing_together() as early:
            config = settings_to_resume(run, changed, early)
        if config is None:
            return run
    accelerator = build_accelerator()
    group = process_group(accelerator)
    told = RecordedEvents(_spoken_by(accelerator, events))
    commands = None
    began = time.perf_counter()
    with contextlib.ExitStack() as held:
        stop = held.enter_context(_signals(accelerator, told))
        with ending_together(group):
            if accelerator.is_main_process:
                storage = RunStorage(held, location, _spoken_by(accelerator, events), is_new=False)
            if location is not None:
                config = settings_to_resume(run, changed, group)
            if config is None:
                return run
            if accelerator.is_main_process:
                run = storage.attach(held.enter_context(run.held()))
                require_same_code(run, (overrides or Overrides()).given())
                commands = _listening(held, run, stop, told)
                told.open(run)
                storage.start_sending()
                note_resumed(run, told, changed)
        with (
            writing_end(accelerator, run),
            explain_exits(accelerator, lambda: _what_is_kept(run, accelerator)),
            ending_together(group),
            removing_waiting(run, accelerator),
            opened_ahead(config, accelerator) as opened,
        ):
            _use_cache(held, config, run, accelerator, told)
            session = _prepare(run, config, accelerator, told, overrides, opened=opened)
        preparing_s = time.perf_counter() - began
        return _run(run, session, told, preparing_s, stop, commands, changed)


def _directory_at(path: Path) -> RunDirectory:
    """Return the run directory of a path; for a run in a store, its local working folder."""
    location = location_of(path)
    return replace(
        RunDirectory(path if location is None else working_folder(location)), location=location
    )


def _spoken_by(accelerator: Accelerator, events: TrainingEvents | None) -> TrainingEvents:
    """Return the given events on the main process, and silent ones on the other processes."""
    return events if events and accelerator.is_main_process else SilentEvents()


_NOT_BEGUN = "Nothing was trained yet. Encoded images are kept; run the same command again."


def _what_is_kept(run: RunDirectory, accelerator: Accelerator) -> str:
    """Return a sentence that says what is saved of a run that was stopped, and how to resume it."""
    resume = how_to_resume(run.path, run.address)
    if not accelerator.is_main_process:  # this machine may not have the disk with the states
        return f"The states of the run are kept. Continue with: {resume}"
    if run.live_status is not None and run.live_status.is_finished:
        return "The run is finished, and its model is exported."
    saved = run.saved_steps()
    return f"{kept_text(saved[-1] if saved else 0)}: {resume}"


def _signals(accelerator: Accelerator, events: TrainingEvents) -> StopRequest:
    return StopRequest(events.note if accelerator.is_main_process else None)


def _listening(
    held: contextlib.ExitStack, run: RunDirectory, stop: StopRequest, told: RecordedEvents
) -> CommandListener:
    """Start to receive commands, and record the end of the run when its directory is released."""
    held.callback(told.close)
    return held.enter_context(CommandListener(run, stop, told.log))


def _use_cache(
    held: contextlib.ExitStack,
    config: RunConfig,
    run: RunDirectory,
    accelerator: Accelerator,
    events: TrainingEvents,
) -> None:
    """Lock the cached latents on each machine, so that they are not pruned during the run."""
    if process_group(accelerator).is_local_first:
        require_sources(config.dataset)  # a missing folder would be created by the lock below
        folder = config.dataset.derived_dir / LATENTS
        patience = locks.LockWaiter(events.note, f"reading {folder}")
        held.enter_context(locks.SharedLock(folder, f"training {run.path}", patience))


def _prepare(
    run: RunDirectory,
    config: RunConfig,
    accelerator: Accelerator,
    events: TrainingEvents,
    overrides: Overrides | None,
    known: Survey | None = None,
    opened: OpenedAhead | None = None,
) -> Session:
    """Remove leftovers, record the environment, and build the session of the run.

    Raises:
        ImpastoError: A part cannot be built, or the disk has no room for the run.
    """
    if accelerator.is_main_process:
        for folder in (run.path, run.states, run.samples, run.averages):
            temporary_names.remove_leftovers(folder)
        files.write_json(run.path / "environment.json", describe_environment())
        run.write_status("preparing")
        forget_preparing(run.path)  # from here on it counts as a run
    group, given = process_group(accelerator), overrides or Overrides()
    if accelerator.is_main_process:
        remove_waiting(run, accelerator)  # of a process that was killed
    with removing_waiting(run, accelerator):
        recorded = fingerprint_of_first(group, recorded_fingerprint(run))
        with explain_memory(config, run, accelerator, has_state=bool(recorded)):
            session = build_session(config, accelerator, events, given, known, recorded, opened)
        if accelerator.is_main_process:
            _require_free(run, config, session)
        group.gather("")  # the other processes start when the main process has checked the disk
    return session


def _require_free(run: RunDirectory, config: RunConfig, session: Session) -> None:
    """Make sure that the disk has room for a run, and that it overwrites no model of another."""
    steps, per_epoch = session.total_steps, session.sampler.steps_per_epoch
    plan = plan_disk(config, session.model, session.trainable, steps, per_epoch)
    require_output_room(run, config, plan, steps, per_epoch).begin()


def _run(
    run: RunDirectory,
    session: Session,
    events: TrainingEvents,
    preparing_s: float,
    stop: StopRequest,
    commands: CommandListener | None,
    changed: RunConfig | None = None,
) -> RunDirectory:
    def restored() -> None:
        """Replace the settings of the run by the changed ones, which its state fits."""
        group = process_group(accelerator)
        with ending_together(group):
            if changed is not None and accelerator.is_main_process:
                replace_settings(run, changed)
            group.gather("")  # the other processes continue when the settings are written

    shown = events if session.accelerator.is_main_process else SilentEvents()
    accelerator = session.accelerator
    try:
        with (
            writing_end(accelerator, run),
            explain_exits(accelerator, lambda: _what_is_kept(run, accelerator)),
        ):
            TrainingLoop(session, run, shown, preparing_s, stop, commands).train(restored)
    finally:
        shown.ended()
        remove_waiting(run, session.accelerator)
    return run
