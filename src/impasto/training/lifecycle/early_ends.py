"""Handles a run that ends early: its message, its status, and the files to remove."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from accelerate import Accelerator

from impasto.config.run import RunConfig
from impasto.datasets.distributed import is_process_loss
from impasto.errors import ImpastoError, Interrupted, RunError
from impasto.runs import Phase, RunDirectory
from impasto.runs.given_code import how_to_resume
from impasto.training.builders.model import WAITING
from impasto.training.devices import is_out_of_memory
from impasto.training.planning.out_of_memory import out_of_memory
from impasto.training.signals import interrupted


@contextlib.contextmanager
def explain_exits(accelerator: Accelerator, then: Callable[[], str]) -> Iterator[None]:
    """Turn a signal, or the end of another process, outside of steps into an error with advice.

    Args:
        accelerator: The processes of the run.
        then: Returns what is saved and what to do; called when the run has ended.

    Raises:
        Interrupted: A signal asked to stop.
        RunError: Another process has ended.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise interrupted(stop, f"Stopped at once. {then()}") from stop
    except RuntimeError as error:
        if accelerator.num_processes > 1 and is_process_loss(error):
            raise RunError(
                f"Another process of this run has ended, so this one stops; its own message says "
                f"why. {then()}"
            ) from error
        raise


@contextlib.contextmanager
def explain_memory(
    config: RunConfig, run: RunDirectory, accelerator: Accelerator, *, has_state: bool
) -> Iterator[None]:
    """Turn running out of memory before the first step of a new or resumed run into an error.

    Args:
        config: The settings.
        run: The run.
        accelerator: Gives the device.
        has_state: Whether the run continues from a saved state.

    Raises:
        OutOfMemoryError: RAM or VRAM ran out; the message says what would help.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        doing, device = "loading the model and encoding the images", accelerator.device
        if not has_state:
            raise out_of_memory(error, config, doing, "Nothing was trained yet.", device) from error
        then, resume = "The states of the run are kept.", how_to_resume(run.path, run.address)
        raise out_of_memory(error, config, doing, then, device, resume, has_state=True) from error


@contextlib.contextmanager
def removing_waiting(run: RunDirectory, accelerator: Accelerator) -> Iterator[None]:
    """Remove the files of offloaded networks if the run fails before its first step."""
    try:
        yield
    except BaseException:
        remove_waiting(run, accelerator)
        raise


def remove_waiting(run: RunDirectory, accelerator: Accelerator) -> None:
    """Remove the files in the run directory that networks were offloaded to."""
    pattern = WAITING.format(component="*", process=accelerator.process_index)
    for file in run.path.glob(pattern):
        file.unlink(missing_ok=True)
    if not accelerator.is_main_process:  # empty on a machine that has only the offloaded files
        with contextlib.suppress(OSError):
            run.path.rmdir()


@contextlib.contextmanager
def writing_end(accelerator: Accelerator, run: RunDirectory) -> Iterator[None]:
    """Write "stopped" or "failed" to the status of a run that ends with an exception.

    A run that has finished keeps its status, even if removing its states fails afterwards.
    """
    try:
        yield
    except BaseException as error:
        is_finished = run.live_status is not None and run.live_status.is_finished
        if accelerator.is_main_process and not is_finished:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            phase: Phase = "stopped" if stopped else "failed"
            expected = isinstance(error, ImpastoError)
            message = str(error) if expected else f"{type(error).__name__}: {error}".rstrip(": ")
            run.write_status(phase, message=message)
        raise
