"""Applies `--set section.key=value` to a tree of settings, and refuses values without effect."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.config.dataset_file import keys_of_all_datasets
from impasto.config.levels import given_below
from impasto.config.renamed import present_path, with_present_names
from impasto.config.setting_files import require_unescaped_paths
from impasto.errors import ConfigError
from impasto.parsing import parse_toml

if TYPE_CHECKING:
    from impasto.config.run import RunConfig

_OF_RUN = {"training.batch_size": "batch_size", "validation.split": "validation_split"}
"""Settings that hold for datasets which do not set their own -> the key of the dataset."""


def overridden(values: Mapping[str, Any], overrides: Sequence[str], source: str) -> dict[str, Any]:
    """Return the tree with overrides applied; both under present names, so that they match.

    Args:
        values: The settings, which are not modified.
        overrides: `section.key=value`.
        source: The name of the settings' source, for errors.

    Raises:
        ConfigError: An override is not of that form, or a setting is given under two names.
    """
    try:
        tree, _ = with_present_names(_copied(values))
    except ValueError as error:
        raise ConfigError(f"{source}: {error}.") from error
    for override in overrides:
        path, equals, value = override.partition("=")
        _apply(tree, f"{present_path(path.strip())}{equals}{value}")
    return tree


def set_values(tree: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return the paths of the settings that overrides set; not of those that they removed."""
    paths = [present_path(override.partition("=")[0].strip()) for override in overrides]
    return [path for path in paths if _is_given(tree, path)]


def require_not_given_below(dataset: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Check that values for all datasets are not overridden in each of them.

    Args:
        dataset: The content of `[dataset]`.
        paths: The settings that were given by `--set`.

    Raises:
        ConfigError: One of them would have no effect.
    """
    asked = [path.removeprefix("dataset.") for path in paths if path.startswith("dataset.")]
    keys = [key for key in asked if key in dataset]  # others were passed on to N_class folders
    file = dataset.get("config") if keys else None
    if file is None:
        unused, giver = given_below(dataset, keys), "each dataset, or each of its subsets,"
    else:
        unused, giver = keys_of_all_datasets(Path(file), keys), str(file)
    if unused:
        raise ConfigError(
            f"--set dataset.{unused[0]} has no effect: {giver} sets {unused[0]} itself. Remove one "
            f"of the two."
        )


def require_not_given_by_datasets(config: RunConfig, paths: Sequence[str]) -> None:
    """Check that settings of the run have an effect on at least one dataset.

    Raises:
        ConfigError: One of `paths`, which were given by `--set`, would have no effect.
    """
    for path in paths:
        key = _OF_RUN.get(path)
        if key and all(getattr(entry, key) is not None for entry in config.dataset.entries):
            where = "each dataset sets" if config.dataset.datasets else "[dataset] sets"
            raise ConfigError(
                f"--set {path} has no effect: {where} {key} itself, which takes precedence. Remove "
                f"one of the two."
            )


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _is_given(tree: Mapping[str, Any], path: str) -> bool:
    value: Any = tree
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one value, which is read as TOML, or as a plain string if it is not TOML.

    `none` removes a setting, so that its default holds; for optional ones that is "off".
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
    general = section.get("general") if keys[:-1] == ["dataset"] else None
    if isinstance(general, dict):  # takes precedence over [dataset], as in sd-scripts
        general.pop(keys[-1], None)
    if raw.strip() == "none":
        section.pop(keys[-1], None)
    else:
        section[keys[-1]] = _read_value(raw.strip())
        require_unescaped_paths({keys[-1]: section[keys[-1]]}, f"--set {override}")


def _read_value(raw: str) -> Any:
    try:
        return parse_toml(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw
