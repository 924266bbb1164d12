"""What the templates of the pages of datasets show: plain values, no HTML."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.data.formats import EXTENSIONS
from impasto.data.image_list import ImageList, ListedImage, is_hidden
from impasto.data.listing import CROP
from impasto.data.mask_folders import MaskNames, mask_names
from impasto.invocation import command
from impasto.parsing import printable
from impasto.runs import RunDirectory
from impasto.runs.tasks import TaskDirectory
from impasto.studio.core import Studio
from impasto.studio.datasets import DatasetSummary, derived_of, find_all, image_files
from impasto.studio.folders import address_of
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
from impasto.studio.losses import Losses, read_losses
from impasto.studio.pages.tasks import task_view
from impasto.studio.resolutions import USUAL
from impasto.studio.tag_index import TagIndex
from impasto.studio.thumbnails import hash_file, reason_of, version_of
from impasto.studio.uploads import CAPTIONS

LIST_FILE = Path("studio") / "images.jsonl"
REPORT_FILE = Path("studio") / "report.html"
BUCKET_OPTIONS = {
    "resolution": "Resolution",
    "min_side": "Shortest side",
    "max_side": "Longest side",
    "step": "Step of sides",
}
"""Options of `impasto dataset list` that the page has fields for."""

_CAPTION_SHOWN = 160
_RUNS_AT_MOST = 50


@dataclass(frozen=True)
class Dataset:
    """A dataset that is shown.

    Attributes:
        studio: What it is shown by.
        path: Its folder.
    """

    studio: Studio
    path: Path

    @property
    def name(self) -> str:
        """The name of the dataset in addresses."""
        return address_of(self.studio.folders.data, self.path)

    @property
    def address(self) -> str:
        """The address of its gallery."""
        return f"/data/{self.name}"

    @property
    def derived(self) -> Path:
        """The folder for what is derived from it."""
        return derived_of(self.path, self.studio.home)

    @property
    def title(self) -> str:
        """The name of the dataset as people see it."""
        return printable(self.path.name or str(self.path))

    def newest_task(self, verb: str) -> TaskDirectory | None:
        """The task that did something to it last: `list` or `report`."""
        tasks = self.studio.tasks.newest("dataset", verb)
        return next((t for t in tasks if t.description().get("back") == self.address), None)


@dataclass(frozen=True)
class _Beside:
    """What a card says of its image that is not in the list.

    Attributes:
        losses: Those of a run, if one is chosen.
        masks: The masks of the dataset; None where there are none.
        resolution: What the list was made for, in pixels.
    """

    losses: Losses
    masks: MaskNames | None
    resolution: int

    def has_mask(self, image: ListedImage) -> bool:
        return bool(image.mask) or (self.masks is not None and self.masks.has(image.path))


def datasets_page(studio: Studio) -> dict[str, Any]:
    """All datasets, with some thumbnails of each."""
    found = find_all(studio.folders)
    return {
        "datasets": [_dataset_row(studio, summary) for summary in found if not summary.packed],
        "packed": [
            (printable(str(summary.path)), summary.packed) for summary in found if summary.packed
        ],
        "places": [printable(str(folder)) for folder in studio.folders.data],
        "start_words": start_words(studio),
    }


def start_words(studio: Studio) -> str:
    """The command that starts the studio with its folders and one more folder of images."""
    folders = studio.folders
    given: list[tuple[str, object]] = [("--runs", folder) for folder in folders.runs]
    given += [("--data", folder) for folder in (*folders.data, "FOLDER")]
    given += [("--models", folder) for folder in folders.models]
    given += [("--queue", studio.queue), *studio.listens]
    return command("studio", *(printable(str(word)) for pair in given for word in pair))


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


def thumbnail_address(dataset: Dataset, derived: Path, path: Path) -> str:
    """Where the thumbnail of an image is; another address once the image has changed.

    Browsers keep what is at such an address. It has no version of an image that is not there.

    Args:
        dataset: The dataset.
        derived: Its folder for what is derived from it.
        path: The image.
    """
    address = f"{dataset.address}/thumbnails/{address_of([dataset.path], path)}"
    try:
        return f"{address}?v={version_of(hash_file(derived, dataset.path, path))}"
    except (OSError, ValueError):
        return address


def gallery_page(dataset: Dataset, choice: GalleryFilter) -> dict[str, Any]:
    """A page of the gallery: a hundred images at most."""
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
    is_now = facts is not None and is_of_now(dataset.path, listing, shown)
    return {
        "dataset": dataset,
        "place": printable(str(dataset.path)),
        "choice": choice,
        "facts": facts,
        "cards": _cards(dataset, derived, shown, choice, _Beside(losses, masks, resolution)),
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
        "reads_itself": not is_now and bool(listing.images) and not _has_failed(dataset),
        "trashed": [{"name": one.name, "images": one.images} for one in trashed(dataset.path)],
        "endings": sorted(EXTENSIONS | CAPTIONS),
    }


def _listed(dataset: Path, derived: Path) -> LoadedList:
    """The list that was made last; a plain one if there is none with an image."""
    loaded = load_list(derived / LIST_FILE)
    if loaded is not None and loaded.found.images:
        return loaded
    plain = _plain_list(dataset)
    if loaded is not None and not plain:
        return loaded
    return LoadedList(ImageList(plain), None, TagIndex(()))


def listed_options(dataset: Dataset) -> dict[str, str]:
    """The options that the list was made with, as a form has them; empty without a resolution."""
    loaded = load_list(dataset.derived / LIST_FILE)
    given = {} if loaded is None else _options(loaded.found.options)
    if not given.get("resolution"):
        return {}
    numbers = {name: str(given[name]) for name in BUCKET_OPTIONS if given[name]}
    return {**numbers, **({"no_upscale": "1"} if given["no_upscale"] else {})}


def _plain_list(dataset: Path) -> list[ListedImage]:
    """What there is to show before a list was made: the images by their endings alone."""
    return [ListedImage(name) for name in image_files(dataset)]


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: given[name] if type(given.get(name)) is int else "" for name in BUCKET_OPTIONS}
    return {**fields, "no_upscale": given.get("no_upscale") is True}


def _has_failed(dataset: Dataset) -> bool:
    """Whether the last list failed, and nothing in the folder has changed since."""
    task = dataset.newest_task("list")
    if task is None or dataset.studio.tasks.state_of(task).state not in ("failed", "killed"):
        return False
    return not _is_outdated(dataset, task)


def _is_outdated(dataset: Dataset, task: TaskDirectory) -> bool:
    """Whether a folder has changed since a task began on it."""
    began = task.description().get("started_at", 0)
    try:
        return bool(dataset.path.stat().st_mtime > began + 1)
    except OSError:
        return False


def _cards(
    dataset: Dataset,
    derived: Path,
    images: Sequence[ListedImage],
    choice: GalleryFilter,
    beside: _Beside,
) -> list[dict[str, Any]]:
    cards, group = list[dict[str, Any]](), 0
    for image in images:
        own = getattr(image, choice.alike) if choice.alike else 0
        card = _card(dataset, derived, image, beside)
        if card is not None:
            cards.append({**card, "group": own if own != group else 0})
            group = own
    return cards


def _card(
    dataset: Dataset, derived: Path, image: ListedImage, beside: _Beside
) -> dict[str, Any] | None:
    path = dataset.path / image.path
    if is_hidden(image.path) or not path.is_relative_to(dataset.path):
        return None  # of a list that somebody else made
    name, is_cropped = address_of([dataset.path], path), _has_crop(path)
    try:
        reason = reason_of(hash_file(derived, dataset.path, path))
    except (OSError, ValueError):
        reason = image.skipped or "It is not there any more."
    return {
        "address": f"{dataset.address}/images/{name}",
        "name": name,
        "thumbnail": thumbnail_address(dataset, derived, path),
        "reason": reason,
        "title": printable(image.path),
        "caption": image.caption[:_CAPTION_SHOWN]
        + ("…" if len(image.caption) > _CAPTION_SHOWN else ""),
        "badges": [
            *([("", "crop")] if is_cropped else []),
            *_badges(image, beside),
        ],
        "size": f"{image.width} × {image.height}{' after its crop' * is_cropped}"
        if image.width
        else "",
    }


def _has_crop(path: Path) -> bool:
    try:
        return os.path.lexists(path.with_name(path.name + CROP))
    except ValueError:
        return False


def _badges(image: ListedImage, beside: _Beside) -> list[tuple[str, str]]:
    """What to notice about an image: kind and words.

    Args:
        image: It.
        beside: What else is said of it.
    """
    if image.skipped:
        return [("bad", f"skipped: {image.skipped}")]
    bucket, percent = image.bucket.replace("x", " × "), 100 * image.cropped
    ratio, times = beside.losses.get(image.path, (0.0, 0))
    rows: list[tuple[Any, str, str]] = [
        (bucket, "bucket", f"bucket {bucket}"),
        (bucket and not image.captioned, "bad", "no caption"),
        (image.enlarged, "warn", f"enlarged ×{image.enlarged:.2g} at {beside.resolution} pixels"),
        (percent >= 0.5, "", f"{percent:.0f} % cropped away"),
        (image.copies, "warn", "copy"),
        (image.near, "warn", "near copy"),
        (beside.has_mask(image), "", "mask"),
        (times, "", f"{ratio:.2f} × the usual loss, shown {times}×"),
    ]
    return [(kind, words) for holds, kind, words in rows if holds]


def work_view(dataset: Dataset, verb: str) -> dict[str, Any] | None:
    """The task that is at work on a dataset, or that failed last; None where there is none."""
    task = dataset.newest_task(verb)
    return None if task is None else task_part(dataset, task, verb)


def task_part(dataset: Dataset, task: TaskDirectory, verb: str) -> dict[str, Any]:
    """How a task that works on a dataset stands; an error ends where the folder has changed."""
    view = task_view(dataset.studio.tasks, task)
    errors = [text for kind, text in view["messages"] if kind == "error"]
    printed = "\n".join(view["printed"][-5:]) if view["state"] == "failed" else ""
    error = (errors[-1] if errors else printed).removesuffix(".")
    return {**view, "verb": verb, "error": error, "is_old": _is_outdated(dataset, task)}


def _runs_with_losses(studio: Studio) -> list[tuple[str, str]]:
    """The runs that can be chosen for their losses: address and title."""
    found = []
    for summary in studio.folders.all_runs():
        run: RunDirectory = summary.run
        if run.image_losses_file.is_file() and studio.folders.run_of(studio.folders.name_of(run)):
            found.append((studio.folders.name_of(run), printable(run.path.name)))
    return found[:_RUNS_AT_MOST]
