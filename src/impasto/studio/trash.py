"""Models that were deleted: moved to a folder beside the others, put back, or removed for good.

A trash may be a stranger's, or another program's: only folders with the names that `delete` gives
count, no link in their place is followed, and a note in one leads nowhere but into the folder that
the trash is in.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import files, presence, storage_errors
from impasto.errors import ModelError, StorageError
from impasto.parsing import printable, read_object
from impasto.progress import size_text
from impasto.runs.listing import walk_runs
from impasto.studio.folders import Folders, address_of
from impasto.studio.models import (
    MODEL_ENDINGS,
    FoundModel,
    is_diffusers,
    run_that_exported,
    size_of_model,
    walk_models,
)
from impasto.studio.moving import move_to_new_name

TRASH = ".trash"
"""Where models go that are deleted, in the folder they were in, until it is emptied."""

_DELETED = re.compile(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)\d\d-\d+", re.ASCII)
_NOTE = ".from.json"  # beside a model in the trash: where it was; no listed model has such a name


@dataclass(frozen=True)
class DeletedModel:
    """A model in the trash.

    Attributes:
        name: How addresses name it.
        path: Where it is now.
        folder: The folder that its trash is in.
        origin: Where it was; in `folder` itself, where nothing says so.
        size: Its bytes.
    """

    name: str
    path: Path
    folder: Path
    origin: Path
    size: int

    @property
    def address(self) -> str:
        """The address of its page."""
        return f"/models/deleted/{self.name}"

    @property
    def as_it_was(self) -> FoundModel:
        """The model where it was, for `users_of`: who names it there misses it."""
        return FoundModel(
            "deleted", "", self.origin, self.folder, self.size, 0.0, run_that_exported(self.origin)
        )

    def view(self) -> dict[str, Any]:
        """The model as plain values, for templates."""
        return {
            "name": self.name,
            "address": self.address,
            "title": printable(self.path.name),
            "kind": "Diffusers folder" if is_diffusers(self.path) else self.path.suffix.lower(),
            "size": size_text(self.size),
            "when": _when(self.path),
            "place": printable(str(self.origin.parent)),
            "is_taken": os.path.lexists(self.origin),
        }


def delete(model: FoundModel) -> Path:
    """Move a model into `TRASH` of the given folder it is in; return where it is now.

    Raises:
        StorageError: It cannot be moved: another program has it open, the folder is read-only, or
            it is the given folder itself.
    """
    if model.path == model.folder:
        raise StorageError(
            f"{model.path} is the folder that the studio was given (--models), so nothing was "
            f"deleted. Delete it by hand."
        )
    trash = model.folder / TRASH
    stamp = time.strftime("%Y%m%d-%H%M%S")
    with storage_errors.reported(model.path):
        if presence.is_link(trash) or (trash.exists() and not trash.is_dir()):
            raise StorageError(f"{trash} is no folder, so nothing was deleted. Remove it.")
        number = 0
        while True:
            target = trash / f"{stamp}-{number}" / model.path.name
            if not target.parent.exists():
                break
            number += 1
        target.parent.mkdir(parents=True)
        note = target.parent / _NOTE
        try:
            files.write_json(note, {"from": model.path.relative_to(model.folder).as_posix()})
            model.path.rename(target)
        except (OSError, StorageError):
            note.unlink(missing_ok=True)
            target.parent.rmdir()
            raise
    return target


def all_deleted(folders: Folders) -> list[DeletedModel]:
    """What was deleted from the given folders and is still there, the newest first.

    The terminal deletes into the folder that a model was in, which may be below a given one.
    """
    given = given_folders(folders)
    found = [one for folder in _with_trash(folders) for one in _deleted_in(folder, given)]
    return sorted(found, key=lambda one: one.path.parent.name, reverse=True)


def find_deleted(folders: Folders, name: str) -> DeletedModel | None:
    """What an address names in the trash of the given folders; None where there is none."""
    return next((one for one in all_deleted(folders) if one.name == name), None)


def deleted_at(path: Path) -> DeletedModel:
    """What lies at a path in some trash.

    Raises:
        ModelError: Nothing that was deleted is there.
    """
    path = path.absolute()
    folder = path.parents[2] if len(path.parents) > 2 else path
    found = next((one for one in _deleted_in(folder, [folder]) if one.path == path), None)
    if found is None:
        raise ModelError(
            f"{path} is nothing that was deleted. `impasto models list --deleted FOLDER` shows "
            f"what is in the trash of a folder."
        )
    return found


def restore(model: DeletedModel) -> Path:
    """Move a deleted model back to where it was; return that path.

    Raises:
        ModelError: Something else has that name by now, which is never replaced; or it is no
            model, or its way back leads out of the folder.
        StorageError: It cannot be moved: another program has it open, or the folder is read-only.
    """
    why = _why_not_restored(model)
    if why:
        raise ModelError(f"{model.path} was not restored: {why}.")
    with storage_errors.reported(model.origin):
        model.origin.parent.mkdir(parents=True, exist_ok=True)
        try:
            move_to_new_name(model.path, model.origin)
        except FileExistsError as error:
            raise ModelError(f"{model.path} was not restored: {_taken(model.origin)}.") from error
    _tidy(model.path.parent)
    return model.origin


def purge(model: DeletedModel) -> None:
    """Remove a deleted model for good.

    Raises:
        StorageError: Something is held open or read-only.
    """
    with storage_errors.reported(model.path):
        _remove(model.path)
    _tidy(model.path.parent)


def empty_trash(folders: Folders, names: Collection[str]) -> list[DeletedModel]:
    """Remove for good what of some deleted models is still there; return what was removed.

    Args:
        folders: The given folders.
        names: `DeletedModel.name` of those that whoever asks for it has seen. What was deleted
            since then is left.

    Raises:
        StorageError: Something is held open or read-only.
    """
    wanted = [one for one in all_deleted(folders) if one.name in names]
    for one in wanted:
        purge(one)
    return wanted


def given_folders(folders: Folders) -> list[Path]:
    """The folders of models and runs, each once; addresses of what was deleted count them."""
    return list(dict.fromkeys([*folders.models, *folders.runs]))


def _with_trash(folders: Folders) -> list[Path]:
    """The given folders with a trash and those below them, each once, whatever links lead there."""
    passed = [path for top in folders.models for path, is_folder in walk_models(top) if is_folder]
    passed += [path for top in folders.runs for path, is_run in walk_runs(top) if not is_run]
    found: dict[Path, Path] = {}
    for path in (*given_folders(folders), *passed):
        if presence.is_dir(path / TRASH):
            found.setdefault(files.real_path(path), path)
    return list(found.values())


def _deleted_in(folder: Path, given: Sequence[Path]) -> Iterator[DeletedModel]:
    for entry in _kept_in(folder):
        if presence.is_link(entry) or not presence.is_dir(entry):
            continue
        for path in _entries(entry):
            if path.name == _NOTE:
                continue
            try:
                size = path.lstat().st_size if presence.is_link(path) else size_of_model(path)
            except OSError:
                size = 0
            yield DeletedModel(
                address_of(given, path), path, folder, _origin_of(path, folder), size
            )


def _kept_in(folder: Path) -> list[Path]:
    """The deleted models in this folder; empty if another program owns `.trash`."""
    trash = folder / TRASH
    if presence.is_link(trash) or not presence.is_dir(trash):
        return []
    return [entry for entry in _entries(trash) if _DELETED.fullmatch(entry.name)]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing of one that may not be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _origin_of(path: Path, folder: Path) -> Path:
    """Where a model in the trash was, by the note beside it, which a stranger may have written."""
    note = path.parent / _NOTE
    found = None if note.is_symlink() else read_object(note)
    origin = folder / path.name
    was = (found or {}).get("from")
    if isinstance(was, str) and was and "\0" not in was:
        noted = folder / was
        inside = noted.parts[len(folder.parts) :] if noted.is_relative_to(folder) else ()
        if inside and noted.name == path.name and not any(p.startswith(".") for p in inside):
            origin = noted
    return origin


def _why_not_restored(model: DeletedModel) -> str:
    """Why a model cannot be put back; empty where it can."""
    path, origin = model.path, model.origin
    if presence.is_link(path):
        target = files.real_path(origin.parent / path.readlink())
        if not target.is_relative_to(files.real_path(model.folder)):
            return f"it is a link that leads out of {model.folder}"
    elif not is_diffusers(path) and not (
        path.suffix.lower() in MODEL_ENDINGS and presence.is_file(path)
    ):
        return "it is no model; move it by hand"
    if not files.is_inside(origin.parent, model.folder):
        return f"{origin.parent} leads out of {model.folder} by a link"
    return _taken(origin) if os.path.lexists(origin) else ""


def _taken(path: Path) -> str:
    return f"{path} is already there, and nothing is replaced; rename that first"


def _tidy(entry: Path) -> None:
    """Remove the folder that a model had in the trash, unless something else is in it."""
    if [path.name for path in entry.iterdir()] in ([], [_NOTE]):
        with storage_errors.reported(entry):
            _remove(entry)


def _remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; of a link, the link alone.

    `Path.unlink` removes a junction of Windows too, and leaves what it leads to.
    """
    if path.is_dir() and not presence.is_link(path):
        for entry in sorted(path.iterdir()):
            _remove(entry)
        path.rmdir()
    else:
        path.unlink()


def _when(path: Path) -> str:
    found = _DELETED.fullmatch(path.parent.name)
    return "{}-{}-{} {}:{}".format(*found.groups()) if found else ""
