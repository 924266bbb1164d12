"""Moves deleted models to a trash folder, restores them, or removes them permanently.

A trash folder may come from an untrusted source or another program: only subfolders named as by
`delete` count, links in their place are not followed, and a note in one can name only a path inside
the folder that contains the trash.
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
"""Name of the folder for deleted models, inside the folder that they were in."""

_DELETED = re.compile(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)\d\d-\d+", re.ASCII)
_NOTE = (
    ".from.json"  # beside a model in the trash: its original path; no listed model has such a name
)


@dataclass(frozen=True)
class DeletedModel:
    """A model in the trash.

    Attributes:
        name: Its name in addresses.
        path: Its path in the trash.
        folder: The folder that contains its trash.
        origin: Its original path; directly in `folder` if that is not recorded.
        size: Its size in bytes.
    """

    name: str
    path: Path
    folder: Path
    origin: Path
    size: int

    @property
    def address(self) -> str:
        """The address of the deleted model's page."""
        return f"/models/deleted/{self.name}"

    @property
    def as_it_was(self) -> FoundModel:
        """The model at its original path, for `users_of`: runs that name this path need it."""
        return FoundModel(
            "deleted", "", self.origin, self.folder, self.size, 0.0, run_that_exported(self.origin)
        )

    def view(self) -> dict[str, Any]:
        """Return the model as plain values for templates."""
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
    """Move a model into `TRASH` of the given folder that contains it; return its new path.

    Raises:
        StorageError: The model cannot be moved: another program has it open, the folder is
            read-only, or the model is the given folder itself.
    """
    if model.path == model.folder:
        raise StorageError(
            f"{model.path} is itself a model folder of the studio (--models), so nothing was "
            f"deleted. Delete it by hand."
        )
    trash = model.folder / TRASH
    stamp = time.strftime("%Y%m%d-%H%M%S")
    with storage_errors.reported(model.path):
        if presence.is_link(trash) or (trash.exists() and not trash.is_dir()):
            raise StorageError(f"{trash} is not a folder, so nothing was deleted. Remove it.")
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
    """Return the models in the trash of the given folders, the newest first.

    Subfolders are searched too, since `impasto models delete` uses the trash of the model's own
    folder, which may be below a given one.
    """
    given = given_folders(folders)
    found = [one for folder in _with_trash(folders) for one in _deleted_in(folder, given)]
    return sorted(found, key=lambda one: one.path.parent.name, reverse=True)


def find_deleted(folders: Folders, name: str) -> DeletedModel | None:
    """Return the deleted model that an address names, or None if there is none."""
    return next((one for one in all_deleted(folders) if one.name == name), None)


def deleted_at(path: Path) -> DeletedModel:
    """Return the deleted model at a path in any trash.

    Raises:
        ModelError: There is no deleted model at this path.
    """
    path = path.absolute()
    folder = path.parents[2] if len(path.parents) > 2 else path
    found = next((one for one in _deleted_in(folder, [folder]) if one.path == path), None)
    if found is None:
        raise ModelError(
            f"{path} is not a deleted model. `impasto models list --deleted FOLDER` shows the "
            f"models in the trash of a folder."
        )
    return found


def restore(model: DeletedModel) -> Path:
    """Move a deleted model back to its original path, and return that path.

    Raises:
        ModelError: The original path exists, which is never replaced; or the entry is not a model,
            or its original path leads out of the folder.
        StorageError: The model cannot be moved: another program has it open, or the folder is
            read-only.
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
    """Remove a deleted model permanently.

    Raises:
        StorageError: A file is held open or read-only.
    """
    with storage_errors.reported(model.path):
        _remove(model.path)
    _tidy(model.path.parent)


def empty_trash(folders: Folders, names: Collection[str]) -> list[DeletedModel]:
    """Remove the named deleted models permanently, and return those that were removed.

    Args:
        folders: The given folders.
        names: `DeletedModel.name` of the models that the user has seen listed. Models deleted
            later are kept.

    Raises:
        StorageError: A file is held open or read-only.
    """
    wanted = [one for one in all_deleted(folders) if one.name in names]
    for one in wanted:
        purge(one)
    return wanted


def given_folders(folders: Folders) -> list[Path]:
    """Return the folders of models and runs, each once, as numbered in addresses of the trash."""
    return list(dict.fromkeys([*folders.models, *folders.runs]))


def _with_trash(folders: Folders) -> list[Path]:
    """Return the given folders and subfolders that have a trash, each once, links followed."""
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
    """Return the entries of this folder's trash; empty if another program made `.trash`."""
    trash = folder / TRASH
    if presence.is_link(trash) or not presence.is_dir(trash):
        return []
    return [entry for entry in _entries(trash) if _DELETED.fullmatch(entry.name)]


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder in the order of names; empty if it may not be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _origin_of(path: Path, folder: Path) -> Path:
    """Return the original path of a model in the trash, from its note if that is trustworthy."""
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
    """Return the reason why a model cannot be restored, or an empty text if it can."""
    path, origin = model.path, model.origin
    if presence.is_link(path):
        target = files.real_path(origin.parent / path.readlink())
        if not target.is_relative_to(files.real_path(model.folder)):
            return f"it is a link that leads out of {model.folder}"
    elif not is_diffusers(path) and not (
        path.suffix.lower() in MODEL_ENDINGS and presence.is_file(path)
    ):
        return "it is not a model; move it by hand"
    if not files.is_inside(origin.parent, model.folder):
        return f"{origin.parent} leads out of {model.folder} by a link"
    return _taken(origin) if os.path.lexists(origin) else ""


def _taken(path: Path) -> str:
    return f"{path} already exists, and nothing is replaced; rename that first"


def _tidy(entry: Path) -> None:
    """Remove the trash entry that held a model, unless it contains anything else."""
    if [path.name for path in entry.iterdir()] in ([], [_NOTE]):
        with storage_errors.reported(entry):
            _remove(entry)


def _remove(path: Path) -> None:
    """Remove a file, a link without its target, or a folder with its contents.

    `Path.unlink` also removes a Windows junction without its target.
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
