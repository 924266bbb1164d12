"""How a run ends early: its message, its status, and the files that are removed."""

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
    """Explain a signal, and the end of another process, outside the steps.

    Args:
        accelerator: Knows how many processes there are.
        then: Says, once it has ended, what is kept and what to do.

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
    """Explain memory running out before the steps of a run, or of its continuation.

    Args:
        config: The settings.
        run: The run.
        accelerator: Knows the device.
        has_state: Whether it goes on from a state.

    Raises:
        OutOfMemoryError: Memory ran out.
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
    """Leave no networks behind in a run that does not come to its first step."""
    try:
        yield
    except BaseException:
        remove_waiting(run, accelerator)
        raise


def remove_waiting(run: RunDirectory, accelerator: Accelerator) -> None:
    """Remove the networks that wait in files of the run directory for being used again."""
    pattern = WAITING.format(component="*", process=accelerator.process_index)
    for file in run.path.glob(pattern):
        file.unlink(missing_ok=True)
    if not accelerator.is_main_process:  # on a machine without the run, nothing else is in it
        with contextlib.suppress(OSError):
            run.path.rmdir()


@contextlib.contextmanager
def writing_end(accelerator: Accelerator, run: RunDirectory) -> Iterator[None]:
    """Have the status of a run say how it ended before its time.

    Not what comes after its end, as while its states are removed: it is finished all the same.
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
