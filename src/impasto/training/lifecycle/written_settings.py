"""Writes the settings of a run, and the identities of its parts given in code, for a resume.

A saved state has a fingerprint (`fingerprints/`). A run that ended before its first state is
checked by these records instead, since its settings do not include parts given in code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from impasto import files
from impasto.config.differences import changed_settings
from impasto.config.load import dump_toml
from impasto.config.run import RunConfig
from impasto.errors import RunError
from impasto.runs import RunDirectory
from impasto.runs.schema import CHANGED_SETTINGS, CODE, CODE_IDENTITIES
from impasto.training.fingerprints.fingerprint import GIVEN, code_fingerprint, differences
from impasto.training.lifecycle.resumed import made_own
from impasto.training.saving.state import recorded_fingerprint


def write_settings(run: RunDirectory, config: RunConfig, code: Mapping[str, Any]) -> None:
    """Write the settings of a new run, and the identities of its parts given in code.

    Args:
        run: The run directory to write to.
        config: The settings.
        code: The parts given in code, by name; see `Overrides.given`.
    """
    identities = {
        name.removesuffix(GIVEN): identity for name, identity in code_fingerprint(code).items()
    }
    _write(run, config, {CODE: list(code), CODE_IDENTITIES: identities})


def replace_settings(run: RunDirectory, changed: RunConfig) -> None:
    """Write changed settings of a resumed run, and keep the record of its parts given in code."""
    said = run.read_json(CHANGED_SETTINGS)
    kept = {name: said[name] for name in (CODE, CODE_IDENTITIES) if name in said}
    _write(run, made_own(run, changed), kept)


def _write(run: RunDirectory, config: RunConfig, code: Mapping[str, Any]) -> None:
    """Write the settings, and list those that differ from the defaults, for reports."""
    belongs = (
        config if run.location is None else config.model_copy(update={"output_dir": run.location})
    )
    files.write_text(run.config_file, dump_toml(belongs))
    files.write_json(run.path / CHANGED_SETTINGS, {"paths": list(changed_settings(config)), **code})


def require_same_code(run: RunDirectory, code: Mapping[str, Any]) -> None:
    """Make sure that a run without a state is given the same parts in code as when it began.

    A run with a state is compared when the state is restored. Runs of earlier versions have
    recorded only the names of their parts, or nothing.

    Raises:
        RunError: The parts given in code differ, or some are missing.
    """
    said = run.read_json(CHANGED_SETTINGS)
    if CODE not in said or recorded_fingerprint(run):
        return
    current = code_fingerprint(code)
    given = {name: current.get(f"{name}{GIVEN}", "given") for name in said[CODE]}
    recorded = {f"{name}{GIVEN}": text for name, text in (given | _identities(said)).items()}
    differing = differences(recorded, current)
    if differing:
        raise RunError(
            f"{run.address} cannot be resumed exactly, because this changed since: "
            f"{'; '.join(differing)}. Undo the change, or start a new run: no state of this run "
            f"was saved."
        )


def _identities(said: Mapping[str, Any]) -> dict[str, str]:
    return dict(said.get(CODE_IDENTITIES, {}))
