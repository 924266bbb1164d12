"""Reads the settings tree: defaults < TOML file < `--set key.path=value`, with helpful errors."""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from impasto.config.dataset import DatasetConfig
from impasto.config.run import RunConfig
from impasto.errors import ConfigError


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path` and apply `overrides` of the form `section.key=value`.

    Relative paths in the file are taken from the current folder, as on a command line.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, a value does not fit.
    """
    return build_run_config(read_toml(path), overrides, source=str(path))


def build_run_config(
    values: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str
) -> RunConfig:
    """Validate a nested mapping; `source` names it in errors.

    Raises:
        ConfigError: As for `load_run_config`.
    """
    tree = _copied(values)
    for override in overrides:
        _apply(tree, override)
    return _validated(RunConfig, tree, source)


def build_dataset_config(values: Mapping[str, Any], *, source: str) -> DatasetConfig:
    """Validate the settings of a data set alone.

    Raises:
        ConfigError: A key is unknown, or a value does not fit.
    """
    return _validated(DatasetConfig, values, source)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: It is missing or malformed; the message has line and column.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"The settings file {path} is not there. Check its path.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}. A path on Windows goes into single quotes, "
            f"as in 'C:\\pictures'."
        ) from error


def dump_toml(config: BaseModel) -> str:
    """The resolved tree as TOML; settings that are off are left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


S = TypeVar("S", bound=BaseModel)


def _validated(section: type[S], values: Mapping[str, Any], source: str) -> S:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, section, source)) from error


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one value; it is read as TOML, or as a plain string where that is not TOML.

    `none` takes a setting out, so that its default holds; for optional ones that is "off".
    """
    path, equals, raw = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override!r} is not of the form section.key=value, as in "
            f"--set optimizer.lr=1e-5"
        )
    section = tree
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override!r}: {key} is a value, not a section.")
    if raw.strip() == "none":
        section.pop(keys[-1], None)
    else:
        section[keys[-1]] = _read_value(raw.strip())


def _read_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _explain(error: ValidationError, root: type[BaseModel], source: str) -> str:
    """All faults of a tree in one paragraph, one for each key path."""
    faults: dict[str, str] = {}
    for fault in error.errors():
        path, text = _explain_one(dict(fault), root)
        faults.setdefault(path, text)
    return f"{source}: " + ". ".join(faults.values()) + "."


def _explain_one(fault: dict[str, Any], root: type[BaseModel]) -> tuple[str, str]:
    """The key path of a fault, and the fault in words."""
    location = [str(part) for part in fault["loc"] if "constrained" not in str(part)]
    path = ".".join(location)
    return path, _fault_in_words(fault, location, path, root)


def _fault_in_words(
    fault: dict[str, Any], location: list[str], path: str, root: type[BaseModel]
) -> str:
    if fault["type"] == "extra_forbidden":
        allowed = _allowed_keys(root, location[:-1])
        near = difflib.get_close_matches(location[-1], allowed, n=1, cutoff=0.5)
        hint = f"the nearest is {near[0]}" if near else f"known here: {', '.join(allowed)}"
        return f"unknown key {path} ({hint})"
    if fault["type"] == "missing":
        return f"{path} is missing; it has to be given"
    if fault["type"] == "value_error":
        reason = str(fault["ctx"]["error"])
        return f"{path}: {reason}" if path else reason
    message = str(fault["msg"])
    return f"{path}: {message[0].lower()}{message[1:]} (found {fault['input']!r})"


def _allowed_keys(root: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys of the section at `location` of the tree."""
    section = root
    for key in location:
        field = section.model_fields.get(key)
        if field is None:
            return []
        section = next(
            candidate
            for candidate in (field.annotation, *typing.get_args(field.annotation))
            if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        )
    return sorted(section.model_fields)
