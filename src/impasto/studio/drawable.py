"""The models and hypernetworks that the page "Draw" offers, by their addresses."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from impasto import files
from impasto.parsing import parse_toml, printable, read_text
from impasto.runs import RunDirectory
from impasto.runs.learning import checkpoints_of
from impasto.runs.listing import find_runs
from impasto.studio.folders import Folders, address_of
from impasto.studio.models import MOST_SCANNED, model_files

_MOST = 2000
_OF_HYPERNETWORKS = "hypernet"  # in the name of a folder, as in A1111's models/hypernetworks


@dataclass(frozen=True)
class DrawableModel:
    """A model or hypernetwork that can be chosen.

    Attributes:
        path: The path of its file or folder.
        label: Its name on the page.
    """

    path: Path
    label: str


@dataclass
class Drawable:
    """All models and hypernetworks that can be chosen, by address.

    Attributes:
        models: Files and Diffusers folders, and the exports of runs: the final model, the best one,
            and those exported during training.
        hypernetworks: Files of hypernetworks, and those exported by runs.
        is_full: Whether there are more models than are offered.
        cut: Model folders with too many entries to search them all.
    """

    models: dict[str, DrawableModel] = field(default_factory=dict)
    hypernetworks: dict[str, DrawableModel] = field(default_factory=dict)
    is_full: bool = False
    cut: list[Path] = field(default_factory=list)

    @property
    def warning(self) -> str:
        """A clause that explains why models are missing from the list; empty if none are."""
        if self.is_full:
            return f"there are over {_MOST:,} models, and no more are offered"
        if self.cut:
            places = ", ".join(printable(str(folder)) for folder in self.cut)
            most = f"{MOST_SCANNED:,}"
            return f"over {most} folders and models in {places}, where the search stops"
        return ""

    def address_of(self, path: str) -> str:
        """Return the address of the model at a path, or an empty text if it is not offered."""
        for address, choice in (self.models | self.hypernetworks).items():
            if str(choice.path) == path:
                return address
        return ""


def find_drawable(folders: Folders) -> Drawable:
    """Find the models in the model folders, three levels deep, and those that runs have exported.

    Only names are considered, no file is opened: `.pt` files and all files below a folder with
    "hypernet" in its name are hypernetworks. Links that lead out of the folders are left out.
    """
    found = Drawable()
    for run in find_runs(folders.runs):
        exported, on_the_way = _exported(run, folders), _on_the_way(run, folders)
        if exported is None and not on_the_way:
            continue
        kind = found.hypernetworks if _trains_hypernetwork(run) else found.models
        if exported is not None:
            address = f"r{address_of(folders.runs, run.path)}"
            kind[address] = DrawableModel(exported, printable(f"{run.path.name} (run)"))
        for path in on_the_way:
            address = f"c{address_of(folders.runs, path)}"
            kind[address] = DrawableModel(path, printable(f"{run.path.name}: {path.name}"))
    for folder in folders.models:
        for path in model_files(folder, found.cut):
            inside = path.relative_to(folder)
            address = f"m{address_of(folders.models, path)}"
            if len(found.models) + len(found.hypernetworks) >= _MOST:
                found.is_full = True
                return found
            kind = found.hypernetworks if _is_hypernetwork(path, inside) else found.models
            kind.setdefault(address, DrawableModel(path, printable(str(inside))))
    return found


def _exported(run: RunDirectory, folders: Folders) -> Path | None:
    """Return the final exported model of a run; None if missing or outside the shown folders."""
    path = run.exported_model()
    if path is None or not any(files.is_inside(path, f) for f in (*folders.runs, *folders.models)):
        return None
    return path


def _on_the_way(run: RunDirectory, folders: Folders) -> list[Path]:
    """Return the other exports of a run: the best model and those exported during training."""
    last, kept = run.exported_model(), (checkpoint.path for checkpoint in checkpoints_of(run))
    return [
        path for path in kept
        if path != last and any(path.is_relative_to(f) and files.is_inside(path, f)
                                for f in folders.runs)
    ]  # fmt: skip


def _trains_hypernetwork(run: RunDirectory) -> bool:
    try:
        method = parse_toml(read_text(run.config_file, "replace")).get("method")
    except (OSError, tomllib.TOMLDecodeError):
        return False
    return isinstance(method, Mapping) and method.get("kind") == "hypernetwork"


def _is_hypernetwork(path: Path, inside: Path) -> bool:
    above = (name.lower() for name in inside.parts[:-1])
    return path.suffix.lower() == ".pt" or any(_OF_HYPERNETWORKS in name for name in above)
