"""Filters and sorts the image list of a dataset for its gallery."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from impasto.data.folders.mask_folders import MaskNames
from impasto.data.inspecting.image_list import (
    ImageList,
    ListedImage,
    caption_tags,
    changed_at,
    read_image_list,
)
from impasto.studio.forms import whole_number
from impasto.studio.losses import Losses
from impasto.studio.tag_index import TagIndex

PER_PAGE = 100
SORTS = {"name": "name", "newest": "newest first", "size": "largest first", "loss": "highest loss"}
ALIKE = {"copies": "copies", "near": "near copies"}
_NAMED_TAGS = 300
_LONGEST = 500


@dataclass(frozen=True)
class GalleryFilter:
    """Filters, sort order and page number in the address of a gallery; empty ones have no effect.

    Attributes:
        caption: `none` for images without a caption, `some` for images with one.
        use: `used` or `skipped`.
        why: Only images that are skipped for this reason.
        small: Whether to show only images that are enlarged for their bucket.
        alike: `copies` or `near`: only images with copies or near copies, in groups.
        mask: `some` for images with a mask, `none` for images without one.
        cropped: Only images of which more than this percentage is cropped away.
        bucket: Only images of this bucket.
        tag: Comma-separated tags that a caption must all have, ignoring letter case.
        words: Text that the caption or the name must contain, ignoring letter case.
        run: The name in addresses of the run whose losses are shown.
        sort: One of `SORTS`.
        page: The number of the page, counted from 1.
    """

    caption: str = ""
    use: str = ""
    why: str = ""
    small: bool = False
    alike: str = ""
    mask: str = ""
    cropped: int | None = None
    bucket: str = ""
    tag: str = ""
    words: str = ""
    run: str = ""
    sort: str = ""
    page: int = 1

    @classmethod
    def of(cls, given: Mapping[str, str]) -> GalleryFilter:
        """Parse the query of an address, ignoring invalid values."""
        return cls(
            caption=_one_of(given.get("caption", ""), ("none", "some")),
            use=_one_of(given.get("use", ""), ("used", "skipped")),
            why=given.get("why", "")[:_LONGEST],
            small=given.get("small") == "1",
            alike=_one_of(given.get("alike", ""), ALIKE),
            mask=_one_of(given.get("mask", ""), ("none", "some")),
            cropped=_at_most(given.get("cropped", ""), 99),
            bucket=given.get("bucket", "")[:20],
            tag=given.get("tag", "")[:_LONGEST].strip(),
            words=given.get("words", "")[:_LONGEST].strip(),
            run=given.get("run", "")[:1000],
            sort=_one_of(given.get("sort", ""), SORTS),
            page=max(1, _at_most(given.get("page", ""), 10**6) or 1),
        )

    def address(self, **changes: Any) -> str:
        """Return the query of the address of this gallery, with some attributes changed."""
        return "?" + urlencode(replace(self, **changes).asked, errors="replace")

    @property
    def asked(self) -> dict[str, str]:
        """The query parameters of this gallery; attributes that have no effect are left out."""
        return {
            name: "1" if value is True else str(value)
            for name, value in self.__dict__.items()
            if value != "" and value is not None and value is not False
            if not (name == "page" and value == 1)
        }

    @property
    def filters(self) -> bool:
        """Whether any filter is set."""
        plain = GalleryFilter(run=self.run, sort=self.sort, page=self.page)
        return self != plain


def chosen(
    images: Sequence[ListedImage],
    choice: GalleryFilter,
    losses: Losses,
    tags: TagIndex,
    masks: MaskNames | None = None,
) -> list[ListedImage]:
    """Return the images that match the filters, in the requested order.

    Args:
        images: All images, in the order of their paths.
        choice: The filters and the sort order.
        losses: The losses of a run, if one is chosen. If sorted by loss, images without one are
            last.
        tags: The tags of the images.
        masks: The masks of the images; None if the dataset has none.
    """
    tests, wanted = _tests(choice), caption_tags(choice.tag)
    if choice.mask:
        with_mask = choice.mask == "some"
        tests.append(lambda image: (masks is not None and masks.has(image.path)) == with_mask)
    asked = [images[row] for row in tags.rows(wanted)] if wanted else images
    found = [image for image in asked if all(test(image) for test in tests)]
    sort = choice.sort or ("loss" if losses else "name")
    if sort == "newest":
        found.sort(key=lambda image: -image.mtime_ns)
    elif sort == "size":
        found.sort(key=lambda image: -image.width * image.height)
    elif sort == "loss":
        found.sort(key=lambda image: -losses.get(image.path, (float("-inf"), 0))[0])
    if choice.alike == "copies":
        found.sort(key=lambda image: image.copies)
    elif choice.alike == "near":
        found.sort(key=lambda image: image.near)
    return found


def _tests(choice: GalleryFilter) -> list[Callable[[ListedImage], bool]]:
    """Return the predicates that an image must satisfy, cheap ones first."""
    tests: list[Callable[[ListedImage], bool]] = []
    if choice.use or choice.why:
        skipped = choice.use != "used"
        tests.append(lambda image: bool(image.skipped) == skipped)
    if choice.why:
        tests.append(lambda image: reason_kind(image.skipped) == choice.why)
    if choice.caption:
        with_caption = choice.caption == "some"
        tests.append(lambda image: not image.skipped and image.captioned == with_caption)
    if choice.small:
        tests.append(lambda image: image.enlarged > 0)
    if choice.alike:
        tests.append(lambda image: getattr(image, choice.alike) > 0)
    if choice.cropped is not None:
        least = choice.cropped / 100
        tests.append(lambda image: image.cropped > least)
    if choice.bucket:
        tests.append(lambda image: image.bucket == choice.bucket)
    if choice.words:
        wanted = choice.words.casefold()
        tests.append(
            lambda image: wanted in image.caption.casefold() or wanted in image.path.casefold()
        )
    return tests


def reason_kind(reason: str) -> str:
    """Return a reason without the details of a single file: numbers, names, decoders' messages."""
    return reason.partition(" (")[0].partition(":")[0]


@dataclass(frozen=True)
class Facts:
    """Counts over a whole dataset, which a gallery shows and offers as filters.

    Attributes:
        images: Number of images.
        uncaptioned: Number of usable images without a caption.
        skipped: Number of images that cannot be used.
        small: Number of images that are enlarged for their bucket.
        copies: Number of images that exist more than once, including the first of each.
        near: Number of images that look nearly like another one.
        reasons: Kinds of reasons for which images are skipped, with the numbers of images.
        buckets: Buckets with their numbers of images, the most frequent first.
        tags: The most frequent tags.
    """

    images: int = 0
    uncaptioned: int = 0
    skipped: int = 0
    small: int = 0
    copies: int = 0
    near: int = 0
    reasons: list[tuple[str, int]] = field(default_factory=list)
    buckets: list[tuple[str, int]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


def facts_of(images: Sequence[ListedImage], tags: TagIndex) -> Facts:
    """Return the counts over a list of images."""
    return Facts(
        images=len(images),
        uncaptioned=sum(not (image.captioned or image.skipped) for image in images),
        skipped=sum(bool(image.skipped) for image in images),
        small=sum(image.enlarged > 0 for image in images),
        copies=sum(image.copies > 0 for image in images),
        near=sum(image.near > 0 for image in images),
        reasons=Counter(reason_kind(i.skipped) for i in images if i.skipped).most_common(),
        buckets=Counter(image.bucket for image in images if image.bucket).most_common(),
        tags=[tag for tag in tags.most_frequent(_NAMED_TAGS) if len(tag) < 80],
    )


@dataclass(frozen=True)
class LoadedList:
    """An image list with its counts and tags, as a gallery needs it.

    Attributes:
        found: The list.
        facts: The counts over the list; None for a list that has only the names of images.
        tags: The tags of its images.
    """

    found: ImageList
    facts: Facts | None
    tags: TagIndex


def load_list(file: Path) -> LoadedList | None:
    """Load an image list from a file, cached until the file changes; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return _loaded(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _loaded(file: Path, size: int, changed: int) -> LoadedList | None:  # noqa: ARG001 - a key
    found = read_image_list(file)
    if found is None:
        return None
    tags = TagIndex(found.images)
    return LoadedList(found, facts_of(found.images, tags), tags)


def is_of_now(dataset: Path, found: ImageList, shown: Iterable[ListedImage]) -> bool:
    """Return whether a list seems up to date, judged by modification times.

    A folder's time changes when a file in it is created, removed, renamed or replaced. Images that
    were overwritten in place are noticed only if they are among the shown ones.
    """
    if not found.folders or any(
        changed_at(dataset / name) != changed for name, changed in found.folders.items()
    ):
        return False
    return all(changed_at(dataset / image.path) == image.mtime_ns for image in shown)


def _one_of(text: str, known: Iterable[str]) -> str:
    return text if text in known else ""


def _at_most(text: str, most: int) -> int | None:
    number = whole_number(text, 10**8)
    return None if number is None else min(number, most)
