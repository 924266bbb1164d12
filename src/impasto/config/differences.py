"""Finds the settings in which runs differ, with defaults resolved."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from impasto.config.dataset import SubsetConfig
from impasto.config.field_docs import docs_of
from impasto.config.former import with_former_values
from impasto.config.load import build_run_config, settings_by_path
from impasto.config.run import RunConfig
from impasto.errors import ConfigError
from impasto.key_paths import values_by_path
from impasto.parsing import parse_toml

_LEFT_OUT = frozenset({"output_dir"})  # differs between any two runs
_NUMBER = re.compile(r"\[\d+\]")
_SENTENCE = re.compile(r"^(.+?)(?:\.(?=\s+[A-Z`])|;\s|\.?$)", re.DOTALL)


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs.

    Attributes:
        path: The path of the setting, such as `optimizer.lr`.
        about: The first clause of its documentation; empty if it is unknown.
        values: Its value in each run, in their order; None if it is off or unknown.
    """

    path: str
    about: str
    values: tuple[Any, ...]


def read_settings(text: str) -> tuple[dict[str, Any], str]:
    """Return the settings of a run by path, with the defaults that held when it started.

    Settings of another version of Impasto may no longer be valid; they are then returned unchecked.

    Args:
        text: The content of `config.toml`.

    Returns:
        The settings, and an error message; empty if they are valid.
    """
    try:
        tree = parse_toml(text)
    except ValueError as error:
        return {}, f"config.toml is not TOML: {error}"
    try:
        return settings_by_path(
            build_run_config(with_former_values(tree), source="config.toml", begun=True)
        ), ""
    except (ConfigError, ValueError, TypeError, AttributeError) as error:
        return dict(values_by_path(tree)), f"config.toml is not valid in this version: {error}"


def differences(settings: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Return the settings that are not the same in all runs, sorted by path.

    Args:
        settings: Those of each run, as `read_settings` returns them; a run whose settings are
            unknown (an empty mapping) is not compared.
    """
    known = [one for one in settings if one]
    paths = dict.fromkeys(path for one in known for path in one if path not in _LEFT_OUT)
    return [
        Difference(path, about_setting(path), tuple(one.get(path) for one in settings))
        for path in sorted(paths)
        if any(one.get(path) != known[0].get(path) for one in known)
    ]


def changed_settings(config: RunConfig) -> dict[str, Any]:
    """Return each setting that is not at its default, by path, with its whole value.

    A setting of a dataset or a subset is compared with the level above.
    """
    required = {
        "output_dir": str(config.output_dir),
        "model": {"path": str(config.model.path)},
        "dataset": {"image_dir": "."},
        "training": {"max_steps": 1},
    }
    usual = settings_by_path(build_run_config(required, source="defaults"))
    own = settings_by_path(config)

    def usual_of(path: str) -> Any:
        above = _LEVEL.sub("", path, count=1)
        if above != path:
            return own.get(above, usual_of(above))
        field = SubsetConfig.model_fields.get(path.removeprefix("dataset."))
        return usual.get(path, _NOTHING if field is None else field.default)

    return {
        path: value for path, value in own.items() if value is not None and usual_of(path) != value
    }


_LEVEL = re.compile(r"(?:datasets|subsets)\[\d+\]\.(?!.*(?:datasets|subsets)\[)")
"""Matches the last level of a path: a dataset, or a subset of one."""

_NOTHING = object()


def about_setting(path: str) -> str:
    """Return the first clause of a setting's documentation; empty if it is unknown."""
    sections: list[type[BaseModel]] = [RunConfig]
    *above, last = _NUMBER.sub("", path).split(".")
    for name in above:
        fields = [s.model_fields[name] for s in sections if name in s.model_fields]
        sections = [kind for field in fields for kind in _sections_in(field.annotation)]
    for section in sections:
        if last in section.model_fields:
            text = docs_of(section, last)
            match = _SENTENCE.match(text)
            return match[1] if match else text
    return ""


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for member in typing.get_args(annotation):
        yield from _sections_in(member)
