"""What the page "Draw" can draw with: models and hypernetworks, by their addresses."""

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
_OF_HYPERNETWORKS = "hypernet"  # in the name of a folder, as A1111's models/hypernetworks


@dataclass(frozen=True)
class DrawableModel:
    """A model or hypernetwork that can be chosen.

    Attributes:
        path: Where it is.
        label: How it is called on the page.
    """

    path: Path
    label: str


@dataclass
class Drawable:
    """Everything that can be chosen, by address.

    Attributes:
        models: Files and Diffusers folders, and what runs have exported: the model of the end, the
            best one, those on the way.
        hypernetworks: Files of hypernetworks, and the exported ones of runs.
        is_full: Whether there are more than are offered.
        cut: Folders of models with too much in them to look at all of it.
    """

    models: dict[str, DrawableModel] = field(default_factory=dict)
    hypernetworks: dict[str, DrawableModel] = field(default_factory=dict)
    is_full: bool = False
    cut: list[Path] = field(default_factory=list)

    @property
    def warning(self) -> str:
        """A sentence about models that are not offered; empty where all of them are."""
        if self.is_full:
            return f"there are over {_MOST:,} models, and no more are offered"
        if self.cut:
            places = ", ".join(printable(str(folder)) for folder in self.cut)
            most = f"{MOST_SCANNED:,}"
            return f"over {most} folders and models are in {places}, and no more are looked at"
        return ""

    def address_of(self, path: str) -> str:
        """The address of what was drawn with; empty where it cannot be chosen any more."""
        for address, choice in (self.models | self.hypernetworks).items():
            if str(choice.path) == path:
                return address
        return ""


def find_drawable(folders: Folders) -> Drawable:
    """Look through the folders of models, three levels deep, and through all runs.

    Names decide what is offered, nothing is opened: `.pt` files and what is below a folder with
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
    """The exported model of a run, unless what it says leads out of the folders shown."""
    path = run.exported_model()
    if path is None or not any(files.is_inside(path, f) for f in (*folders.runs, *folders.models)):
        return None
    return path


def _on_the_way(run: RunDirectory, folders: Folders) -> list[Path]:
    """The models that a run has exported besides that of its end: the best one, those by steps."""
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
