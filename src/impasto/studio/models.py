"""The models that the studio shows: files and Diffusers folders, and the exports of runs.

No model is opened here: `impasto inspect` examines its contents in a separate process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import files, presence
from impasto.errors import ModelError
from impasto.invocation import command
from impasto.parsing import printable
from impasto.progress import size_text
from impasto.runs import RunDirectory
from impasto.studio.folders import Folders, address_of, path_of

DEPTH = 3
"""Number of levels below a given folder that are searched for models."""

CHECKPOINT_ENDINGS = frozenset({".safetensors", ".ckpt"})
MODEL_ENDINGS = CHECKPOINT_ENDINGS | {".pt"}  # hypernetworks
"""The extensions of files that may be models, in lower case."""

MOST_SCANNED = 50_000
"""Maximum number of folders and possible model files examined in a given folder, so that a whole
disk takes less than a minute."""

_RUN_FOLDERS = ("export", "models")
_INDEX = "model_index.json"


@dataclass(frozen=True)
class FoundModel:
    """A model in one of the folders.

    Attributes:
        root: The kind of folder that contains it, for addresses: `models` or `runs`.
        name: Its name in addresses, relative to `root`.
        path: The file or Diffusers folder.
        folder: The given folder that contains it.
        size: Its size in bytes, as far as its files can be read.
        changed_at: Time of its last change, in seconds since 1970.
        run: The run that exported it; None for other models.
    """

    root: str
    name: str
    path: Path
    folder: Path
    size: int
    changed_at: float
    run: RunDirectory | None = None

    @property
    def address(self) -> str:
        """The address of the model's page."""
        return f"/models/{self.root}/{self.name}"

    @property
    def title(self) -> str:
        """The title on pages: the printable name of the file or folder."""
        return printable(self.path.name)

    @property
    def key(self) -> str:
        """A hash of path, size and time of change, constant while the model is unchanged."""
        text = f"{os.fsencode(self.path)!r} {self.size} {self.changed_at}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def view(self) -> dict[str, Any]:
        """Return the model as plain values for templates."""
        return {
            "address": self.address,
            "title": self.title,
            "place": printable(str(self.path.parent)),
            "kind": "Diffusers folder" if self.path.is_dir() else self.path.suffix.lower(),
            "size": size_text(self.size),
            "when": time.strftime("%Y-%m-%d %H:%M", time.localtime(self.changed_at)),
            "run": None if self.run is None else printable(self.run.path.name),
        }


def model_files(folder: Path, cut: list[Path] | None = None) -> Iterator[Path]:
    """Yield the files and Diffusers folders below a folder that may be models, sorted by name.

    The folder itself may be a Diffusers folder; its contents are part of that model. No file is
    opened: only the extensions count (`MODEL_ENDINGS`).

    Args:
        folder: The folder.
        cut: A list to which the folder is added if it has too many entries to examine them all.
    """
    for path, is_folder in walk_models(folder, cut):
        if is_diffusers(path) if is_folder else path.suffix.lower() in MODEL_ENDINGS:
            yield path


def walk_models(folder: Path, cut: list[Path] | None = None) -> Iterator[tuple[Path, bool]]:
    """Yield a folder and its subfolders and possible model files: path, and whether a folder.

    Folders are searched up to `DEPTH` levels below the given one, in the order of names. Hidden
    entries, files with other extensions, run directories, the contents of Diffusers folders, and
    links that lead out of the given folder are left out.

    Args:
        folder: The folder.
        cut: A list to which the folder is added if it has more than `MOST_SCANNED` entries.
    """
    left = MOST_SCANNED
    waiting = [(folder, True, 0)]
    while waiting and left > 0:
        path, is_folder, level = waiting.pop()
        left -= 1
        yield path, is_folder
        if is_folder and level <= DEPTH and not is_diffusers(path):
            inside = _entries(path, folder)
            waiting += [(entry, is_inner, level + 1) for entry, is_inner in reversed(inside)]
    if waiting and cut is not None:
        cut.append(folder)


def _entries(folder: Path, top: Path) -> list[tuple[Path, bool]]:
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        path = Path(entry.path)
        may_be_model = path.suffix.lower() in MODEL_ENDINGS
        if entry.name.startswith(".") or (_is_file(entry) and not may_be_model):
            continue
        if presence.is_link(path) and not _stays_in(path, top):
            continue
        is_folder = presence.is_dir(path)
        if not RunDirectory(path).is_there() if is_folder else may_be_model:
            found.append((path, is_folder))
    return found


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether a directory entry is a file, by its cached type, without disk access."""
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _stays_in(link: Path, top: Path) -> bool:
    """Return whether a link's target is inside a folder, and is not a parent of the link."""
    target = files.real_path(link)
    real_top = files.real_path(top)
    return target.is_relative_to(real_top) and not files.real_path(link.parent).is_relative_to(
        target
    )


def is_diffusers(path: Path) -> bool:
    """Return whether a path seems to be a Diffusers folder; no file is opened."""
    return presence.is_file(path / _INDEX)


def all_models(folders: Folders, cut: list[Path] | None = None) -> list[FoundModel]:
    """Return the models of all model folders and the exports of all runs, the newest first.

    Args:
        folders: The folders that are shown.
        cut: A list to which model folders are added that have too many entries to examine them all.
    """
    found: dict[Path, FoundModel] = {}
    for folder in folders.models:
        for path in model_files(folder, cut):
            _add(found, folders, "models", folder, path, None)
    for summary in folders.all_runs():
        for path in _exports_of(summary.run):
            folder = next(f for f in folders.runs if path.is_relative_to(f))
            _add(found, folders, "runs", folder, path, summary.run)
    return sorted(found.values(), key=lambda model: -model.changed_at)


def find_model(folders: Folders, root: str, name: str) -> FoundModel | None:
    """Return the model that an address names, or None if it does not exist or is not listed."""
    roots = {"models": folders.models, "runs": folders.runs}.get(root, ())
    path = path_of(roots, name)
    if path is None:
        return None
    folder = roots[int(name.partition(".")[0])]
    inside = path.relative_to(folder).parts
    if any(level.startswith(".") or level == ".." for level in inside):
        return None
    if root == "models":
        is_listed = len(inside) <= DEPTH + 1 and not _is_within_model(path, folder)
        return _found("models", name, path, folder, None) if is_listed else None
    run = run_that_exported(path)
    return None if run is None else _found("runs", name, path, folder, run)


def run_that_exported(path: Path) -> RunDirectory | None:
    """Return the run that exported a model, judged by its path, or None if no run did."""
    run = RunDirectory(path.parent.parent)
    return run if path.parent.name in _RUN_FOLDERS and run.is_there() else None


def model_at(path: Path) -> FoundModel:
    """Return the model at any path, with the folder that has its trash: its own, or its run's.

    Raises:
        ModelError: There is no model, or the path is a part of another model or of a run.
    """
    path = path.absolute()
    run = run_that_exported(path)
    folder = path.parent if run is None else run.path.parent
    _require_whole(path, run)
    found = _found("models" if run is None else "runs", "", path, folder, run)
    if found is None and not presence.exists(path):
        listing = command("models", "list", "--deleted", folder)
        raise ModelError(f"{path} does not exist. {listing} lists deleted models.")
    if found is None:
        endings = " or ".join(sorted(CHECKPOINT_ENDINGS if run is None else MODEL_ENDINGS))
        raise ModelError(
            f"{path} is not a model: neither a file that ends in {endings} nor a Diffusers folder."
        )
    return found


def _require_whole(path: Path, run: RunDirectory | None) -> None:
    """Check that a path is not inside a Diffusers folder, nor in a run unless the run exported it.

    Raises:
        ModelError: It is; the message has the path to give instead.
    """
    real = files.real_path(path.parent) / path.name
    for above in real.parents:
        if is_diffusers(above):
            raise ModelError(f"{path} is a part of the model {above}. Give that folder.")
        if run is None and RunDirectory(above).is_there():
            exports = [str(export) for export in _exports_of(RunDirectory(above))]
            instead = ", ".join(exports) or "there is none yet"
            raise ModelError(
                f"{path} belongs to the run {above}. Give a model that the run has exported, "
                f"by its path there: {instead}."
            )


def _add(
    found: dict[Path, FoundModel],
    folders: Folders,
    root: str,
    folder: Path,
    path: Path,
    run: RunDirectory | None,
) -> None:
    roots = folders.models if root == "models" else folders.runs
    model = _found(root, address_of(roots, path), path, folder, run)
    if model is not None:
        found.setdefault(path, model)


def _found(
    root: str, name: str, path: Path, folder: Path, run: RunDirectory | None
) -> FoundModel | None:
    """Return the model at a path, or None if there is none or a link leads out of the folder."""
    endings = CHECKPOINT_ENDINGS if run is None else MODEL_ENDINGS
    try:
        is_file = path.suffix.lower() in endings and path.is_file()
        if not (is_file or is_diffusers(path)) or not files.is_inside(path, folder):
            return None
        return FoundModel(root, name, path, folder, size_of_model(path), path.stat().st_mtime, run)
    except OSError:
        return None


def _is_within_model(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a Diffusers folder or a run."""
    if path == folder:
        return False
    inside = path.relative_to(folder).parents
    return is_diffusers(folder) or any(
        is_diffusers(folder / above) or RunDirectory(folder / above).is_there()
        for above in inside
        if above.parts
    )


def _exports_of(run: RunDirectory) -> Iterator[Path]:
    for name in _RUN_FOLDERS:
        try:
            entries = sorted((run.path / name).iterdir())
        except OSError:
            continue
        yield from (entry for entry in entries if not entry.name.startswith("."))


def size_of_model(path: Path) -> int:
    """Return the size in bytes of a file or of all files in a folder; unreadable ones count 0."""
    if not path.is_dir():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).stat().st_size
    return total
