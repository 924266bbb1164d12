"""The items of a run directory that are uploaded to a store, each as a unit, and their order.

A folder is complete if its mark exists, which is uploaded last and removed first: `state.json` for
a training state, `model_index.json` for a Diffusers folder. Metrics are uploaded before states,
since a run that is resumed from a state needs those of the steps before it. The record of models
comes after them, and the status last, so that it never names anything missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from impasto.runs.steps import step_in

STATE_MARK, FOLDER_MARK = "state.json", "model_index.json"
SETTINGS, MODELS_RECORD = "config.toml", "models.json"
OWNERS = "owners"
"""The folder in the store that records which process writes the run; never on a disk."""

_NOT_SENT = {"commands", OWNERS}
_WAITING = re.compile(r"waiting-.*\.safetensors")
_NEVER_CHANGED = {"samples", "averages"}
_MODELS = {"models", "export"}
_ODD = re.compile(r'[\\:<>"|?*\x00-\x1f]')


@dataclass(frozen=True)
class UploadItem:
    """Files of a run that appear in the store together: one item.

    Attributes:
        key: A file, or the folder that contains all of them, below the run.
        files: Keys below the run; the mark of a folder is the last.
        mark: The key that makes a folder complete; None for a file, and for a folder without one.
        turn: Items with a lower number are uploaded first.
        grows: Whether it is written to continuously: a log, or the status of the run.
    """

    key: str
    files: tuple[str, ...]
    mark: str | None = None
    turn: int = 2
    grows: bool = False


def items_in(folder: Path) -> list[UploadItem]:
    """Return all items of a run directory that belong in the store, in upload order.

    Raises:
        OSError: A folder exists and cannot be listed, so its content is unknown.
    """
    found: list[UploadItem] = []
    for entry in _entries(folder):
        name = entry.name
        if name in _NOT_SENT or _WAITING.fullmatch(name):
            continue
        if not entry.is_dir():
            found.append(UploadItem(name, (name,), None, TURNS.get(name, 1), grows=True))
        elif name == "states" or name in _MODELS:
            found += [_item(folder, inner, TURNS[name]) for inner in _entries(entry)]
        else:
            grows = name not in _NEVER_CHANGED
            found += [UploadItem(key, (key,), None, 2, grows) for key in _keys_below(folder, entry)]
    return sorted((thing for thing in found if thing.files), key=lambda thing: thing.turn)


TURNS = {
    SETTINGS: 0, "metrics.jsonl": 3, "events.jsonl": 3, "image_losses.csv": 3, "states": 4,
    "models": 5, "export": 5, MODELS_RECORD: 6, "report.html": 7, "status.json": 8,
}  # fmt: skip
"""Position of a file or folder of a run in the upload order; other files have 1, other folders
2."""


def is_of_models(key: str) -> bool:
    """Return whether a key is that of a model, or of a file in one."""
    return key.partition("/")[0] in _MODELS


def state_of_key(key: str) -> int | None:
    """Return the step of the state that a key belongs to; None if it belongs to none."""
    names = PurePosixPath(key).parts
    return step_in(names[1]) if len(names) == 3 and names[0] == "states" else None


def whole_states(keys: Iterable[str]) -> list[int]:
    """Return the steps of the states that are complete in a listing, in order."""
    marked = {state_of_key(key) for key in keys if key.endswith(f"/{STATE_MARK}")}
    return sorted(step for step in marked if step is not None)


def is_among(key: str, keys: Iterable[str]) -> bool:
    """Return whether a file or folder of a run is among the keys of a listing."""
    return any(other == key or other.startswith(f"{key}/") for other in keys)


def is_safe(key: str) -> bool:
    """Return whether a key, which may be from an untrusted source, may become a local path."""
    names = key.split("/")
    return not any(_ODD.search(name) or name in {"", ".", ".."} for name in names)


def _item(folder: Path, entry: Path, turn: int) -> UploadItem:
    key = entry.relative_to(folder).as_posix()
    if not entry.is_dir():
        return UploadItem(key, (key,), None, turn)
    mark = f"{key}/{STATE_MARK if turn == TURNS['states'] else FOLDER_MARK}"
    keys = _keys_below(folder, entry)
    if mark not in keys:
        return UploadItem(key, tuple(keys), None, turn)
    return UploadItem(key, (*(other for other in keys if other != mark), mark), mark, turn)


def _keys_below(folder: Path, entry: Path) -> list[str]:
    found: list[str] = []
    for inner in _entries(entry):
        if inner.is_dir():
            found += _keys_below(folder, inner)
        else:
            found.append(inner.relative_to(folder).as_posix())
    return found


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, by name, except links and files that are being written.

    Raises:
        OSError: It exists and cannot be listed: not the same as empty, since files that are missing
            here are removed from the store.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):  # gone, or not created yet
        return []
    paths = (folder / name for name in names if not name.startswith("."))
    return [path for path in paths if not path.is_symlink()]
