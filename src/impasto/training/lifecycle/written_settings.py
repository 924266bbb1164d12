"""What a run writes down of itself as it begins, and what has to be the same when it goes on.

A state says by itself what it belongs to (`fingerprints/`). A run that ended before its first one
has nothing but this, and its settings cannot say what it was given in code.
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
    """Write the settings of a run that begins, and what it is given in code.

    Args:
        run: Where.
        config: The settings.
        code: What is given in code in the place of some; see `Overrides.given`.
    """
    identities = {
        name.removesuffix(GIVEN): identity for name, identity in code_fingerprint(code).items()
    }
    _write(run, config, {CODE: list(code), CODE_IDENTITIES: identities})


def replace_settings(run: RunDirectory, changed: RunConfig) -> None:
    """Write other settings of a run that goes on; what it was given in code stays."""
    said = run.read_json(CHANGED_SETTINGS)
    kept = {name: said[name] for name in (CODE, CODE_IDENTITIES) if name in said}
    _write(run, made_own(run, changed), kept)


def _write(run: RunDirectory, config: RunConfig, code: Mapping[str, Any]) -> None:
    """The settings, and which are not as usual, for reports, which do not know the usual ones."""
    belongs = (
        config if run.location is None else config.model_copy(update={"output_dir": run.location})
    )
    files.write_text(run.config_file, dump_toml(belongs))
    files.write_json(run.path / CHANGED_SETTINGS, {"paths": list(changed_settings(config)), **code})


def require_same_code(run: RunDirectory, code: Mapping[str, Any]) -> None:
    """Make sure that a run without a state is given the same parts in code as when it began.

    A state is compared when it is restored. Runs that earlier versions began say the names of
    their parts alone, or nothing.

    Raises:
        RunError: It is given other parts, or lacks some.
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
            f"{'; '.join(differing)}. Put it back as it was, or start a new run: no state of this "
            f"one was saved."
        )


def _identities(said: Mapping[str, Any]) -> dict[str, str]:
    return dict(said.get(CODE_IDENTITIES, {}))
