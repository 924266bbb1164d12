"""Restores a run from its newest undamaged state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import Accelerator

from impasto.datasets.distributed import ending_together, process_group
from impasto.errors import RunError, StorageError
from impasto.progress import Progress
from impasto.runs import RunDirectory, step_name
from impasto.storage_errors import cause_of
from impasto.training.fingerprints.fingerprint import changes_of_rounding
from impasto.training.saving.session_state import SessionState
from impasto.training.saving.state import DamagedStateError, TrainingState, load_state
from impasto.training.saving.state_copies import state_here

_WITHOUT_HASHES = (
    "was written by an earlier version of Impasto without hashes, so damage cannot be detected; "
    "states that are written from now on have hashes."
)

_UP_TO_ROUNDING = (
    "From now on, results equal those of the run without this change up to rounding, and may "
    "differ in the last digits."
)


def restore_newest(
    resumable: SessionState,
    accelerator: Accelerator,
    run: RunDirectory,
    progress: Progress,
    found: Callable[[int], None],
) -> TrainingState | None:
    """Restore the newest undamaged state of a run, and return it; None if the run has none yet.

    The main process chooses the state. Damaged states are reported and renamed, but not deleted.

    Args:
        resumable: The objects to restore.
        accelerator: The processes.
        run: The run whose states are read.
        progress: Receives progress, and notes on damaged states.
        found: Called with the step of the chosen state, or 0, before it is restored.

    Raises:
        RunError: All states are damaged, or the newest undamaged one does not fit this run.
    """
    group = process_group(accelerator)
    with ending_together(group):
        own = 0
        if accelerator.is_main_process:
            own = _newest_whole(resumable.fingerprint, run, progress)
        chosen = int(group.gather(str(own))[0])
    found(chosen)
    if not chosen:
        return None
    with state_here(run, chosen, accelerator, group) as folder:
        return _restored(folder, resumable, progress)


def _restored(folder: Path, resumable: SessionState, progress: Progress) -> TrainingState:
    """Load a state from a folder into a session, and return it."""
    state = load_state(folder, resumable.fingerprint, check_tensors=False)
    if not state.is_hashed:
        progress.note(f"{folder} {_WITHOUT_HASHES}")
    if changed := changes_of_rounding(state.fingerprint, resumable.fingerprint):
        progress.note(
            f"Changed since {folder} was written: {'; '.join(changed)}. {_UP_TO_ROUNDING}"
        )
    try:
        resumable.restore(state)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        if state.is_hashed:
            raise  # the hashes match, so the state is not damaged: this is another fault
        raise RunError(
            f"The training state {folder} is damaged ({error!r}). It has no hashes, so this was "
            f"found only now. Move the folder away and run the same command, which then uses the "
            f"next older state."
        ) from error
    return state


def _newest_whole(fingerprint: Mapping[str, str], run: RunDirectory, progress: Progress) -> int:
    """Return the step of the newest undamaged state, or 0 if there are no states.

    Damaged states are renamed.

    Raises:
        RunError: All states are damaged, or the newest undamaged one does not fit this run.
    """
    steps = run.saved_steps()
    while steps:
        step = steps.pop()
        folder = run.states / step_name(step)
        try:
            load_state(folder, fingerprint, progress)
        except DamagedStateError as error:
            steps = steps or (run.older() if run.older is not None else [])
            if not steps:
                raise _all_damaged(run, error) from error
            progress.note(
                f"{error} It is kept as {_renamed(folder).name}; continuing from the earlier "
                f"state {step_name(steps[-1])}."
            )
        else:
            return step
    return 0


def _renamed(folder: Path) -> Path:
    """Rename the folder of a damaged state to an unused name, and return the new path.

    Raises:
        StorageError: The folder cannot be renamed.
    """
    number, target = 2, folder.with_name(f"{folder.name}-damaged")
    while target.exists():
        number, target = number + 1, folder.with_name(f"{folder.name}-damaged-{number}")
    try:
        return folder.rename(target)
    except OSError as error:
        raise StorageError(
            f"The training state {folder} is damaged and could not be renamed: "
            f"{cause_of(error)}. Move it away and run the same command, which then uses the next "
            f"older state."
        ) from error


def _all_damaged(run: RunDirectory, error: DamagedStateError) -> RunError:
    in_store = "" if run.location is None else f", delete {run.address}/states"
    return RunError(
        f"{error} There is no older undamaged state, and nothing was deleted. To train again "
        f"from the first step, move the folder {run.states} away{in_store} and run the same "
        f"command."
    )
