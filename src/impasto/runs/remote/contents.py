"""What of a run directory goes into a store, as things that appear there whole, and in which order.

A folder is whole when its mark is there, which is put last and removed first: `state.json` of a
training state, `model_index.json` of a Diffusers folder. Metrics go ahead of states, since a run
that goes on from a state has those of the steps before it. The record of models goes after them,
and the status last, so that it never names what is not there.
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
"""The folder in the store of who writes the run; never on a disk."""

_NOT_SENT = {"commands", OWNERS}
_WAITING = re.compile(r"waiting-.*\.safetensors")
_NEVER_CHANGED = {"samples", "averages"}
_MODELS = {"models", "export"}
_ODD = re.compile(r'[\\:<>"|?*\x00-\x1f]')


@dataclass(frozen=True)
class Thing:
    """Files of a run that appear in the store together.

    Attributes:
        key: A file, or the folder that has them all, below the run.
        files: Keys below the run; the mark of a folder is the last.
        mark: The key that makes a folder whole; None of a file, and of a folder without one.
        turn: Things with a lower number go first.
        grows: Whether it is written on all the time: a log, or what the run says of itself.
    """

    key: str
    files: tuple[str, ...]
    mark: str | None = None
    turn: int = 2
    grows: bool = False


def things_in(folder: Path) -> list[Thing]:
    """All that is to be in the store of a run directory, in the order in which it is put there.

    Raises:
        OSError: A folder is there and cannot be listed, so it is not known what is in it.
    """
    found: list[Thing] = []
    for entry in _entries(folder):
        name = entry.name
        if name in _NOT_SENT or _WAITING.fullmatch(name):
            continue
        if not entry.is_dir():
            found.append(Thing(name, (name,), None, TURNS.get(name, 1), grows=True))
        elif name == "states" or name in _MODELS:
            found += [_thing(folder, inner, TURNS[name]) for inner in _entries(entry)]
        else:
            grows = name not in _NEVER_CHANGED
            found += [Thing(key, (key,), None, 2, grows) for key in _keys_below(folder, entry)]
    return sorted((thing for thing in found if thing.files), key=lambda thing: thing.turn)


TURNS = {
    SETTINGS: 0, "metrics.jsonl": 3, "events.jsonl": 3, "image_losses.csv": 3, "states": 4,
    "models": 5, "export": 5, MODELS_RECORD: 6, "report.html": 7, "status.json": 8,
}  # fmt: skip
"""When it is the turn of a file or folder of a run; other files come at 1, other folders at 2."""


def is_of_models(key: str) -> bool:
    """Whether a key is that of a model, or of a file in one."""
    return key.partition("/")[0] in _MODELS


def state_of_key(key: str) -> int | None:
    """The step of the state that a key belongs to; None of what belongs to none."""
    names = PurePosixPath(key).parts
    return step_in(names[1]) if len(names) == 3 and names[0] == "states" else None


def whole_states(keys: Iterable[str]) -> list[int]:
    """The steps of the states that are whole in a listing, in order."""
    marked = {state_of_key(key) for key in keys if key.endswith(f"/{STATE_MARK}")}
    return sorted(step for step in marked if step is not None)


def is_among(key: str, keys: Iterable[str]) -> bool:
    """Whether a file or folder of a run is among the keys of a listing."""
    return any(other == key or other.startswith(f"{key}/") for other in keys)


def is_safe(key: str) -> bool:
    """Whether a key may become the path of a file here: whoever wrote it may be a stranger."""
    names = key.split("/")
    return not any(_ODD.search(name) or name in {"", ".", ".."} for name in names)


def _thing(folder: Path, entry: Path, turn: int) -> Thing:
    key = entry.relative_to(folder).as_posix()
    if not entry.is_dir():
        return Thing(key, (key,), None, turn)
    mark = f"{key}/{STATE_MARK if turn == TURNS['states'] else FOLDER_MARK}"
    keys = _keys_below(folder, entry)
    if mark not in keys:
        return Thing(key, tuple(keys), None, turn)
    return Thing(key, (*(other for other in keys if other != mark), mark), mark, turn)


def _keys_below(folder: Path, entry: Path) -> list[str]:
    found: list[str] = []
    for inner in _entries(entry):
        if inner.is_dir():
            found += _keys_below(folder, inner)
        else:
            found.append(inner.relative_to(folder).as_posix())
    return found


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, in order of names; no links, and nothing that is just being written.

    Raises:
        OSError: It is there and cannot be listed: not the same as empty, since what is gone here is
            removed from the store.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):  # it is gone, or not there yet
        return []
    paths = (folder / name for name in names if not name.startswith("."))
    return [path for path in paths if not path.is_symlink()]
