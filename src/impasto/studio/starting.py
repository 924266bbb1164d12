"""Turns the form of a new run into a settings file, or into the command that writes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto import files, presence, storage_errors
from impasto.config.fields import fields_of
from impasto.config.goals import GOALS
from impasto.config.moved import as_seen_from, cache_of_moved_run
from impasto.config.names import file_name_problem
from impasto.config.setting_files import read_toml
from impasto.errors import ConfigError, RunError
from impasto.hub_ids import is_hub_id
from impasto.remote_paths import is_remote
from impasto.runs import RunDirectory
from impasto.studio.drafts import Draft
from impasto.studio.folders import Folders
from impasto.studio.forms import whole_number
from impasto.studio.models import CHECKPOINT_ENDINGS
from impasto.studio.named_choices import dataset_choices, model_choices, path_of_name


def fields_of_run(run: RunDirectory) -> dict[str, str]:
    """Return the settings of a run as form fields, with a new run directory.

    Relative paths that exist are made absolute, since the new run is started in another folder.

    Raises:
        ConfigError: The settings cannot be read, or are those of another version.
        ValueError: A setting is given under two names.
    """
    tree = read_toml(run.config_file)
    try:
        folder = Path(str(run.status().get("folder") or "."))
    except RunError:
        folder = Path()
    fields = fields_of(as_seen_from(_with_cache_where_it_is(tree, folder, run.path), folder))
    return {**fields, "output_dir": str(presence.free_path(run.path))}


def _with_cache_where_it_is(tree: dict[str, Any], folder: Path, where: Path) -> dict[str, Any]:
    """Return the settings of a run with the cache folder that moved with it.

    Args:
        tree: The settings.
        folder: The folder in which the run was started.
        where: The current path of the run.
    """
    dataset, began = tree.get("dataset"), tree.get("output_dir")
    if not isinstance(dataset, dict) or not isinstance(began, str):
        return tree
    cache = dataset.get("cache_dir")
    if not isinstance(cache, str) or is_remote(cache) or is_remote(began):
        return tree
    found = cache_of_moved_run(folder / cache, folder / began, where)
    return (
        tree
        if found == folder / cache
        else {**tree, "dataset": {**dataset, "cache_dir": str(found)}}
    )


def choose_file(typed: Mapping[str, str], folders: Folders) -> Path:
    """Return the path of the settings file chosen in the form, in one of the folders of runs.

    Raises:
        ConfigError: The folder does not exist, or the name is invalid.
    """
    number = typed.get("to.folder", "0")
    if number not in map(str, range(len(folders.runs))):
        raise ConfigError("There is no such folder of runs.")
    usual = Path(typed.get("output_dir") or "my-run").name
    name = (typed.get("to.name", "").strip() or usual).removesuffix(".toml")
    fault = file_name_problem(name)
    if fault is not None:
        raise ConfigError(f"{name[:60]!r} {fault}. Enter another name for the settings file.")
    return folders.runs[int(number)] / f"{name}.toml"


def write_settings(file: Path, text: str, *, same_is_fine: bool = False) -> None:
    """Write a new settings file; an existing one is never replaced.

    Args:
        file: The path of the file.
        text: Its content.
        same_is_fine: Whether to accept an existing file with the same content.

    Raises:
        ConfigError: The file exists.
        StorageError: The file cannot be written.
    """
    if _reserve(file):
        files.write_text(file, text)
    elif not (same_is_fine and _has(file, text)):
        raise ConfigError(
            f"{file} already exists and was not changed. Enter another name for the settings file."
        )


def _reserve(file: Path) -> bool:
    """Create an empty file; return False if the name is taken, including by a broken link."""
    with storage_errors.reported(file):
        try:
            file.open("x").close()
        except FileExistsError:  # an empty file was left by a process that was killed here
            return file.is_file() and not file.is_symlink() and not file.stat().st_size
    return True


def named_paths(
    typed: Mapping[str, str], folders: Folders
) -> tuple[dict[str, str], dict[str, str]]:
    """Replace the names of a dataset and a model in the form by paths.

    The choices from the lists (`data-of`, `model-of`) count if the text fields are empty.

    Returns:
        The fields with paths, and the faults by field.
    """
    found, faults = dict(typed), dict[str, str]()
    for name, list_choices in (("data", dataset_choices), ("model", model_choices)):
        text = typed.get(name, "").strip() or typed.get(f"{name}-of", "").strip()
        try:
            found[name] = path_of_name(text, list_choices(folders)) if text else ""
        except ConfigError as error:
            found[name], faults[name] = text, str(error)
    return found, faults


def goal_faults(typed: Mapping[str, str], folders: Folders) -> dict[str, str]:
    """Return the faults of the goal form by field; names have been replaced by paths."""
    faults = {}
    if typed.get("goal") not in GOALS:
        faults["goal"] = "Choose a goal."
    data, model = typed.get("data", "").strip(), typed.get("model", "").strip()
    if not data:
        faults["data"] = "Choose a dataset, or enter an image folder."
    elif not Path(data).is_absolute():
        faults["data"] = (
            f"There is no dataset {data[:100]!r}. Choose one, or enter an absolute path."
        )
    elif not _is_in(data, folders.data):
        faults["data"] = f"It is outside the image folders of the studio: {_named(folders.data)}."
    elif not Path(data).is_dir():
        faults["data"] = "There is no such folder."
    if fault := _model_fault(model, folders):
        faults["model"] = fault
    for name, least, most in (("vram", 1, 1024), ("resolution", 64, 8192), ("clip_skip", 1, 12)):
        text = typed.get(name, "").strip()
        if text and whole_number(text, most, least) is None:
            faults[name] = f"Enter a whole number from {least} to {most}, or leave it empty."
    return faults


def goal_arguments(typed: Mapping[str, str], draft: Draft, folders: Folders) -> list[Any]:
    """Return the arguments of `impasto new` for a goal; the fields must have no faults."""
    data = Path(typed["data"].strip())
    title = f"{data.absolute().name or 'run'}-{typed['goal']}"
    arguments: list[Any] = [
        "new", "--goal", typed["goal"], "--data", data, "--model", typed["model"].strip(),
        "--out", draft.imported_file, "--output-dir", presence.free_path(folders.runs[0] / title),
    ]  # fmt: skip
    for name in ("vram", "resolution", "clip_skip"):
        if typed.get(name, "").strip():
            arguments += [f"--{name.replace('_', '-')}", typed[name].strip()]
    return arguments


def _model_fault(model: str, folders: Folders) -> str:
    if not model or model.startswith("-"):
        return "Choose a model, or enter a file, a folder, or a Hub id such as owner/name."
    if _is_path(model):
        if not _is_in(model, (*folders.models, *folders.runs)):
            return f"It is outside the model folders of the studio: {_named(folders.models)}."
        return "" if presence.exists(Path(model)) else "There is no such file or folder."
    hub_id, _, _ = model.partition("@")
    if is_hub_id(hub_id) and Path(model).suffix.lower() not in CHECKPOINT_ENDINGS:
        return ""
    return (
        f"There is no model {model[:100]!r}. Choose one, or enter an absolute path, or a Hub id "
        f"such as owner/name."
    )


def _is_path(model: str) -> bool:
    """Return whether a model is given as a path, not as an id on the Hub."""
    return Path(model).is_absolute() or presence.exists(Path(model))


def _is_in(text: str, folders: Sequence[Path]) -> bool:
    try:
        return any(files.is_inside(Path(text), folder) for folder in folders)
    except (OSError, ValueError):
        return False


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders)) or "none was given"


def _has(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False
