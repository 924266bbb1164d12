"""What the first process of a run tells the others as it begins, which may have no disk in common.

Only the first process has the run directory. The others get its settings, as they were resolved,
and what the newest state says; so each machine needs the images, the model and the settings' other
paths, and nothing of the run.
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
    """Have what ends one process of a run before it begins end all of them, with the same words.

    Such as a file that only one machine has. Without a launcher nothing is begun here: the value
    is None then.
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
    """The settings as the first process has resolved them; None where it has nothing left to do.

    Args:
        group: All processes, each of which calls it.
        own: The settings of this process; only those of the first one count.
        begun: Whether they are of a run that was begun; see `Rule.of_new_runs`.
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
    """The settings as the first process has resolved them, with this machine's own folder.

    That of a run in a store is in the folder for copies, which is elsewhere on each machine.
    """
    first = settings_of_first(group, own) or own
    return first if location is None else first.model_copy(update={"output_dir": own.output_dir})


def settings_to_resume(
    run: RunDirectory, changed: RunConfig | None, group: ProcessGroup | None
) -> RunConfig | None:
    """The settings of a run that goes on, as its first process reads them; None if it is finished.

    Args:
        run: The run.
        changed: Settings in the place of its own.
        group: All processes, each of which calls this; None for one alone.

    Raises:
        RunError: There is no run, or nothing to continue it from.
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
    """The settings of a run that can be continued.

    Raises:
        RunError: There is no run, or nothing to continue it from.
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
    """Have the other processes end, which wait for settings: the run is finished."""
    group.gather(_NOTHING_LEFT)


def fingerprint_of_first(group: ProcessGroup, own: Mapping[str, str]) -> Mapping[str, str]:
    """What the newest state belongs to, as the first process has read it."""
    told = group.gather(json.dumps(dict(own)) if group.rank == 0 else "")[0]
    return {str(k): str(v) for k, v in parse_json(told, halves=True).items()}
