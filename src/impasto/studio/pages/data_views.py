"""Contents of the dataset pages, as plain values for templates, without HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto.data.folders.formats import EXTENSIONS
from impasto.data.folders.mask_folders import mask_names
from impasto.data.inspecting.image_list import ImageList, ListedImage
from impasto.invocation import command
from impasto.parsing import printable
from impasto.runs import RunDirectory
from impasto.runs.tasks import TaskDirectory
from impasto.studio.core import Studio
from impasto.studio.datasets import FOLDERS_AT_MOST, DatasetSummary, find_all, image_files
from impasto.studio.gallery import (
    ALIKE,
    PER_PAGE,
    SORTS,
    GalleryFilter,
    LoadedList,
    chosen,
    is_of_now,
    load_list,
)
from impasto.studio.image_trash import trashed
from impasto.studio.losses import read_losses
from impasto.studio.pages.gallery_cards import CardFacts, gallery_cards
from impasto.studio.pages.shown_dataset import Dataset, thumbnail_address
from impasto.studio.pages.tasks import task_view
from impasto.studio.resolutions import USUAL
from impasto.studio.tag_index import TagIndex
from impasto.studio.uploads import CAPTIONS

LIST_FILE = Path("studio") / "images.jsonl"
REPORT_FILE = Path("studio") / "report.html"
BUCKET_OPTIONS = {
    "resolution": "Resolution",
    "min_side": "Shortest side",
    "max_side": "Longest side",
    "step": "Sides in steps of",
}
"""Options of `impasto dataset list` with their labels on the page."""

_RUNS_AT_MOST = 50


def datasets_page(studio: Studio) -> dict[str, Any]:
    """Return the content of the page of all datasets, with a few thumbnails of each."""
    cut = list[Path]()
    found = find_all(studio.folders, cut)
    return {
        "cut": [printable(str(folder)) for folder in cut],
        "most": FOLDERS_AT_MOST,
        "datasets": [_dataset_row(studio, summary) for summary in found if not summary.packed],
        "packed": [
            (printable(str(summary.path)), summary.packed) for summary in found if summary.packed
        ],
        "folders": [printable(str(folder)) for folder in studio.folders.data],
        "start_command": start_command(studio),
    }


def start_command(studio: Studio) -> str:
    """Return the command that starts the studio with its folders and one more image folder."""
    folders = studio.folders
    given: list[tuple[str, object]] = [("--runs", folder) for folder in folders.runs]
    given += [("--data", folder) for folder in (*folders.data, "FOLDER")]
    given += [("--models", folder) for folder in folders.models]
    given += [("--queue", studio.queue), *studio.listens]
    return command("studio", *(printable(str(argument)) for pair in given for argument in pair))


def _dataset_row(studio: Studio, summary: DatasetSummary) -> dict[str, Any]:
    dataset = Dataset(studio, summary.path)
    derived = dataset.derived
    return {
        "address": dataset.address,
        "title": dataset.title,
        "place": printable(str(summary.path.parent)),
        "count": summary.count,
        "thumbnails": [thumbnail_address(dataset, derived, path) for path in summary.first],
    }


def gallery_page(dataset: Dataset, choice: GalleryFilter) -> dict[str, Any]:
    """Return the content of a page of the gallery, with at most a hundred images."""
    derived = dataset.derived
    loaded = _listed(dataset.path, derived)
    listing, facts = loaded.found, loaded.facts
    runs = _runs_with_losses(dataset.studio)
    run = dataset.studio.folders.run_of(choice.run) if choice.run else None
    losses = read_losses(run, dataset.path) if run is not None and facts is not None else {}
    asked = choice if facts else GalleryFilter(page=choice.page)
    masks = mask_names(dataset.path, dataset.studio.folders.data)
    images = chosen(listing.images, asked, losses, loaded.tags, masks)
    pages = max(1, -(-len(images) // PER_PAGE))
    page = min(choice.page, pages)
    shown = images[(page - 1) * PER_PAGE : page * PER_PAGE]
    options = _options(listing.options)
    resolution = options["resolution"] or USUAL
    beside = CardFacts(losses, masks, resolution)
    is_now = facts is not None and is_of_now(dataset.path, listing, shown)
    return {
        "dataset": dataset,
        "place": printable(str(dataset.path)),
        "choice": choice,
        "facts": facts,
        "cards": gallery_cards(dataset, derived, shown, choice, beside),
        "masked": sum(map(masks.has, (i.path for i in listing.images))) if masks and facts else 0,
        "mask_folder": printable(str(masks.folder)) if masks else "",
        "found": len(images),
        "page": page,
        "pages": pages,
        "sorts": SORTS,
        "alike": ALIKE,
        "runs": runs,
        "has_losses": bool(losses),
        "list": listing,
        "options": options,
        "resolution": resolution,
        "is_now": is_now,
        "work": work_view(dataset, "list"),
        "reads_itself": not is_now and bool(listing.images) and not _came_to_nothing(dataset),
        "trashed": [{"name": one.name, "images": one.images} for one in trashed(dataset.path)],
        "endings": sorted(EXTENSIONS | CAPTIONS),
    }


def _listed(dataset: Path, derived: Path) -> LoadedList:
    """Return the list that was made last; if it has no image or is missing, a plain one."""
    loaded = load_list(derived / LIST_FILE)
    if loaded is not None and loaded.found.images:
        return loaded
    plain = _plain_list(dataset)
    if loaded is not None and not plain:
        return loaded
    return LoadedList(ImageList(plain), None, TagIndex(()))


def listed_options(dataset: Dataset) -> dict[str, str]:
    """Return the options that the list was made with, as texts; empty if it has no resolution."""
    loaded = load_list(dataset.derived / LIST_FILE)
    given = {} if loaded is None else _options(loaded.found.options)
    if not given.get("resolution"):
        return {}
    numbers = {name: str(given[name]) for name in BUCKET_OPTIONS if given[name]}
    return {**numbers, **({"no_upscale": "1"} if given["no_upscale"] else {})}


def _plain_list(dataset: Path) -> list[ListedImage]:
    """Return the list shown before one has been made: the files with an image extension."""
    return [ListedImage(name) for name in image_files(dataset)]


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: given[name] if type(given.get(name)) is int else "" for name in BUCKET_OPTIONS}
    return {**fields, "no_upscale": given.get("no_upscale") is True}


def _came_to_nothing(dataset: Dataset) -> bool:
    """Return whether the last listing failed or was stopped, with the folder unchanged since."""
    task = dataset.newest_task("list")
    ends = ("failed", "killed", "stopped")
    if task is None or dataset.studio.tasks.state_of(task).state not in ends:
        return False
    return not _is_outdated(dataset, task)


def _is_outdated(dataset: Dataset, task: TaskDirectory) -> bool:
    """Return whether a dataset's folder has changed since a task on it was started."""
    began = task.description().get("started_at", 0)
    try:
        return bool(dataset.path.stat().st_mtime > began + 1)
    except OSError:
        return False


def work_view(dataset: Dataset, verb: str) -> dict[str, Any] | None:
    """Return the newest task of a verb on a dataset, running or ended, or None if there is none."""
    task = dataset.newest_task(verb)
    return None if task is None else task_view_of(dataset, task, verb)


def task_view_of(dataset: Dataset, task: TaskDirectory, verb: str) -> dict[str, Any]:
    """Return the state of a task on a dataset; `is_old` is true if the folder has changed since."""
    view = task_view(dataset.studio.tasks, task)
    errors = [text for kind, text in view["messages"] if kind == "error"]
    printed = "\n".join(view["printed"][-5:]) if view["state"] == "failed" else ""
    error = (errors[-1] if errors else printed).removesuffix(".")
    return {**view, "verb": verb, "error": error, "is_old": _is_outdated(dataset, task)}


def _runs_with_losses(studio: Studio) -> list[tuple[str, str]]:
    """Return the address and title of each run that has losses to choose."""
    found = []
    for summary in studio.folders.all_runs():
        run: RunDirectory = summary.run
        if run.image_losses_file.is_file() and studio.folders.run_of(studio.folders.name_of(run)):
            found.append((studio.folders.name_of(run), printable(run.path.name)))
    return found[:_RUNS_AT_MOST]
