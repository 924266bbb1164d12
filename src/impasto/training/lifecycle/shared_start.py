"""Settings and facts that the main process sends to the other processes as a run begins.

Only the main process needs the run directory, since the machines may share no disk. The others
receive the resolved settings and the fingerprint of the newest state; so each machine needs the
images, the model and the other paths of the settings, but no file of the run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from impasto.config.former import with_former_values
from impasto.config.load import build_run_config, dump_toml, load_begun_config
from impasto.config.run import RunConfig
from impasto.data.engines.process_group import ProcessGroup
from impasto.datasets.distributed import ending_together, process_group
from impasto.errors import RunError
from impasto.parsing import parse_json, parse_toml
from impasto.runs import RunDirectory
from impasto.runs.status import finished_step_of
from impasto.training.builders.processes import planned_processes
from impasto.training.devices import build_processes
from impasto.training.lifecycle.preflight import require_machine
from impasto.training.lifecycle.resumed import in_directory_of, made_own

_NOTHING_LEFT = ""


@contextlib.contextmanager
def failing_together() -> Iterator[ProcessGroup | None]:
    """Make an error in one process before the run begins end all processes, with the same message.

    An example is a file that is missing on one machine. Yields the process group, or None for a
    single process, which needs none.
    """
    if planned_processes() == 1:
        yield None
        return
    group = process_group(build_processes())
    with ending_together(group):
        yield group


def settings_of_first(
    group: ProcessGroup, own: RunConfig | None, *, begun: bool = False
) -> RunConfig | None:
    """Return the settings that the main process has resolved, or None if the run is finished.

    Args:
        group: All processes, each of which calls this.
        own: The settings of this process; only the main process's count.
        begun: Whether they belong to a run that was started before; see `Rule.of_new_runs`.
    """
    if group.size == 1:
        return own
    text = group.gather(dump_toml(own) if own is not None and group.rank == 0 else _NOTHING_LEFT)[0]
    if group.rank == 0:
        return own
    if text == _NOTHING_LEFT:
        return None
    values = with_former_values(parse_toml(text))
    return build_run_config(values, source="the settings of the first process", begun=begun)


def first_settings_here(group: ProcessGroup, own: RunConfig, location: Path | None) -> RunConfig:
    """Return the settings that the main process has resolved, with this machine's folder.

    For a run in a store, `output_dir` is a local working folder, whose path differs per machine.
    """
    first = settings_of_first(group, own) or own
    return first if location is None else first.model_copy(update={"output_dir": own.output_dir})


def settings_to_resume(
    run: RunDirectory, changed: RunConfig | None, group: ProcessGroup | None
) -> RunConfig | None:
    """Return the settings of a resumed run, as the main process reads them; None if it is finished.

    Args:
        run: The run.
        changed: New settings that replace its own; None for none.
        group: All processes, each of which calls this; None for a single process.

    Raises:
        RunError: There is no run in the directory, or no state to continue from.
    """
    own = None
    if group is None or group.rank == 0:
        own = changed or _resumable_config(run)
        require_machine(own)
        own = made_own(run, own)
    config = own if group is None else settings_of_first(group, own, begun=True)
    if config is None:
        return None
    config = in_directory_of(run, config)
    require_machine(config)
    return config


def _resumable_config(run: RunDirectory) -> RunConfig:
    """Return the settings of a run that can be continued.

    Raises:
        RunError: There is no run in the directory, or it is finished and its states are removed.
    """
    found = replace(RunDirectory.open(run.path), location=run.location)
    if finished_step_of(found.status()) is not None and not found.saved_steps():
        raise RunError(
            f"{run.address} is finished and its states are gone (saving.keep_final_state = false), "
            f"so it cannot be made longer. Start a new run from its model, "
            f"{found.exported_model()}."
        )
    return load_begun_config(found.config_file)


def tell_nothing_is_left(group: ProcessGroup) -> None:
    """Let the other processes, which wait for settings, end, since the run is finished."""
    group.gather(_NOTHING_LEFT)


def fingerprint_of_first(group: ProcessGroup, own: Mapping[str, str]) -> Mapping[str, str]:
    """Return the fingerprint of the newest state, as the main process has read it."""
    told = group.gather(json.dumps(dict(own)) if group.rank == 0 else "")[0]
    return {str(k): str(v) for k, v in parse_json(told, halves=True).items()}
