"""Reads the settings tree: defaults < TOML file < `--set key.path=value`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from pydantic import BaseModel

from impasto import presence
from impasto.argument_types import require_kind
from impasto.config.dataset import DatasetConfig, DatasetKeys
from impasto.config.dataset_file import is_dataset_file, keys_of_all_datasets, read_dataset_file
from impasto.config.dreambooth import with_dreambooth_folders
from impasto.config.former import with_former_values
from impasto.config.moved import as_seen_from, cache_of_moved_run, folder_of_paths
from impasto.config.renamed import FormerNameWarning, present_path, with_present_names
from impasto.config.set_values import (
    overridden,
    require_not_given_below,
    require_not_given_by_datasets,
    set_values,
)
from impasto.config.setting_files import read_toml, require_text
from impasto.config.validation import validated
from impasto.errors import ConfigError
from impasto.key_paths import values_by_path
from impasto.member_paths import COMPRESSED_TARS, is_named
from impasto.remote_paths import is_remote

if TYPE_CHECKING:
    from impasto.config.run import RunConfig

_KEPT_BY_RUNS = ("cache_dir",)
"""Keys of `[dataset]` that may be given in addition to the settings of a run: they change no
image."""


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path` and apply `overrides` of the form `section.key=value`.

    Relative paths in the file start at the current folder, as on a command line.

    Settings under a former name are accepted, with a `FormerNameWarning`.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, or a value is invalid.
        TypeError: `path` is not a path, or `overrides` is a string and not a list of strings.
    """
    require_kind("load_run_config(path)", path, (str, Path), "the path of a TOML file")
    expected = 'a list of strings, such as ["training.max_steps=3"]'
    require_kind("load_run_config(overrides)", overrides, (list, tuple), expected)
    for override in overrides:
        require_kind("load_run_config(overrides)", override, str, expected)
    values = read_toml(Path(path))
    config = build_run_config(values, overrides, source=str(path))
    for note in former_names(values, overrides):
        warnings.warn(f"{path}: {note}; it is read as that.", FormerNameWarning, stacklevel=2)
    return config


@dataclass(frozen=True)
class BegunSettings:
    """The settings of a run that was started before, not yet validated.

    Attributes:
        values: The settings, with relative paths as they are to be read in the current folder.
        folder: The folder at which the run's relative paths start.
        is_elsewhere: Whether paths were made absolute, since that is not the current folder.
    """

    values: dict[str, Any]
    folder: Path
    is_elsewhere: bool


def read_begun(path: Path) -> BegunSettings:
    """Read the settings in a run directory, with their paths resolved if the run was moved.

    Raises:
        ConfigError: The file is missing or not TOML.
    """
    written = read_toml(path)
    values, folder = with_former_values(written), folder_of_paths(written, path.parent)
    if folder == Path.cwd():
        return BegunSettings(values, folder, is_elsewhere=False)
    found = as_seen_from(values, folder)
    is_elsewhere = any(found[key] != values[key] for key in values if key != "output_dir")
    return BegunSettings(found, folder, is_elsewhere)


def load_begun_config(path: Path) -> RunConfig:
    """Read the settings in a run directory, to resume the run or to measure as it did.

    Relative paths start at the folder where the run was started, unless everything exists in the
    current one too. If the run was moved, a cache within its directory is the one that moved with
    it.

    Raises:
        ConfigError: As for `load_run_config`.
    """
    config = build_run_config(read_begun(path).values, source=str(path), begun=True)
    cache = config.dataset.cache_dir
    if cache is None:
        return config
    cache = cache_of_moved_run(cache, config.output_dir, path.parent)
    dataset = config.dataset.model_copy(update={"cache_dir": cache})
    return config.model_copy(update={"dataset": dataset})


def former_names(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> list[str]:
    """Return a note for each setting that is given under a former name."""
    _, notes = with_present_names(values)
    paths = (override.partition("=")[0].strip() for override in overrides)
    renamed = [path for path in paths if present_path(path) != path]
    return [*notes, *(f"{path} is now called {present_path(path)}" for path in renamed)]


def build_run_config(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str,
    begun: bool = False,
) -> RunConfig:
    """Validate a nested mapping; `source` names it in errors.

    Args:
        values: The settings.
        overrides: `section.key=value`, which take precedence over them.
        source: The name of the settings' source.
        begun: Whether they are those of a run that was started before; see `Rule.of_new_runs`.

    Raises:
        ConfigError: As for `load_run_config`.
    """
    from impasto.config.run import RunConfig  # imports all sections; scanning a folder needs one

    tree = overridden(values, overrides, source)
    asked = set_values(tree, overrides)
    if isinstance(tree.get("dataset"), dict):
        content = with_dreambooth_folders(tree["dataset"])
        require_not_given_below(content, asked)
        tree["dataset"] = with_dataset_file(content)
    require_text(tree, source)
    source = f"{source} with --set" if overrides else source
    config = validated(RunConfig, tree, source, begun=begun)
    require_not_given_by_datasets(config, asked)
    return config


def build_dataset_config(values: Mapping[str, Any], *, source: str) -> DatasetConfig:
    """Validate the settings of a dataset alone.

    Raises:
        ConfigError: A key is unknown, or a value is invalid.
    """
    return validated(DatasetConfig, with_dataset_file(with_dreambooth_folders(values)), source)


def load_dataset_config(path: Path, values: Mapping[str, Any]) -> DatasetConfig:
    """Return the dataset that a path names: a folder of images, a metadata or settings file.

    Args:
        path: A folder, or a tar or table of images; a URL of those or of a metadata file; a `.toml`
            or `.json` dataset configuration of sd-scripts; the settings of a run; or the directory
            of a run.
        values: Keys of `[dataset]` that hold where the source does not set them. For a run, only
            `cache_dir` has an effect: the others determine what it is trained on.

    Raises:
        ConfigError: As for `load_run_config`.
    """
    if is_remote(path):
        kind = "metadata_file" if is_metadata_file(path) else "image_dir"
        return build_dataset_config({**values, kind: path}, source="command line")
    run = load_run_of_source(path)
    if run is not None:
        kept = {key: values[key] for key in _KEPT_BY_RUNS if key in values}
        checked = build_dataset_config({**kept, "image_dir": "."}, source="command line")
        return run.dataset.model_copy(update={key: getattr(checked, key) for key in kept})
    if presence.is_dir(path) or not path.suffix or is_named(path):
        return build_dataset_config({**values, "image_dir": path}, source="command line")
    if is_metadata_file(path):
        return build_dataset_config({**values, "metadata_file": path}, source="command line")
    return build_dataset_config({**values, "config": path}, source=str(path))


def without_effect(path: Path, keys: Iterable[str]) -> list[str]:
    """Return those of `keys` of `[dataset]` that have no effect, since the source determines them.

    Raises:
        ConfigError: As for `load_run_config`.
    """
    asked = [key for key in keys if key not in _KEPT_BY_RUNS]
    if not asked or is_remote(path):
        return []
    if load_run_of_source(path) is not None:
        return asked
    if presence.is_dir(path) or not path.suffix or is_named(path) or is_metadata_file(path):
        return []
    return keys_of_all_datasets(path, asked)


_TEXT_FILES = ("", ".toml", ".json", ".jsonl")
"""The suffixes of files that may describe a dataset."""


def load_run_of_source(path: Path) -> RunConfig | None:
    """Return the run whose settings or directory a path is; None if it names a dataset alone.

    Settings that are missing in a run directory have the values that held when the run started.

    Raises:
        ConfigError: As for `load_run_config`.
    """
    if is_remote(path) or is_named(path):
        return None
    if path.name.lower().endswith(COMPRESSED_TARS) and not presence.is_dir(path):
        raise ConfigError(
            f"{path} is a compressed tar, in which single files cannot be found; decompress it."
        )
    if presence.is_dir(path) and presence.is_file(path / "config.toml"):
        path = path / "config.toml"
    if path.suffix.lower() not in _TEXT_FILES and presence.is_file(path):
        raise ConfigError(
            f"{path} is not a dataset; expected a folder of images, a dataset configuration or "
            f"settings (.toml), a metadata file (.json, .jsonl), or a run."
        )
    if presence.is_dir(path) or not path.suffix or is_metadata_file(path) or is_dataset_file(path):
        return None
    is_of_run = path == path.with_name("config.toml")
    if is_of_run and presence.is_file(path.with_name("status.json")):
        return load_begun_config(path)
    return load_run_config(path)


def is_metadata_file(path: Path) -> bool:
    """Return whether a file holds the captions of many images, and not settings.

    Raises:
        ConfigError: It is a JSON file that is missing or malformed.
    """
    ending = path.suffix.lower()
    if is_remote(path):
        return ending in {".json", ".jsonl"}
    return not presence.is_dir(path) and (
        ending == ".jsonl" or (ending == ".json" and not is_dataset_file(path))
    )


def dump_toml(config: BaseModel) -> str:
    """Return the resolved tree as TOML, without settings that are off."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def settings_by_path(config: BaseModel) -> dict[str, Any]:
    """Return every setting by its path, as in `dataset.datasets[0].resolution`; None if it is off.

    Lists are values unless they contain sections. An empty table is a value too.
    """
    return dict(values_by_path(config.model_dump(mode="json")))


def with_dataset_file(values: Mapping[str, Any], *, formerly: bool = False) -> dict[str, Any]:
    """Return the content of `[dataset]` with the file that `config` names replaced by its content.

    Args:
        values: The content of `[dataset]`.
        formerly: As for `read_dataset_file`.

    Raises:
        ConfigError: As for `read_dataset_file`.
    """
    content = dict(values)
    file = content.pop("config", None)
    if file is None:
        return content
    fallbacks = {k: content.pop(k) for k in list(content) if k in DatasetKeys.model_fields}
    return content | read_dataset_file(Path(file), fallbacks, formerly=formerly)
