"""The cards of a gallery: thumbnail, caption and badges of each image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.data.folders.listing import CROP
from impasto.data.folders.mask_folders import MaskNames
from impasto.data.inspecting.image_list import ListedImage, is_hidden
from impasto.parsing import printable
from impasto.studio.folders import address_of
from impasto.studio.gallery import GalleryFilter
from impasto.studio.losses import Losses
from impasto.studio.pages.shown_dataset import Dataset, thumbnail_address
from impasto.studio.thumbnails import hash_file, reason_of

_CAPTION_SHOWN = 160


@dataclass(frozen=True)
class CardFacts:
    """Facts for the cards of a gallery that are not in its image list.

    Attributes:
        losses: The losses of a run; empty if none is chosen.
        masks: The masks of the dataset; None if it has none.
        resolution: The resolution that the list was made for, in pixels.
    """

    losses: Losses
    masks: MaskNames | None
    resolution: int

    def has_mask(self, image: ListedImage) -> bool:
        """Return whether an image has a mask, according to the list or as a file."""
        return bool(image.mask) or (self.masks is not None and self.masks.has(image.path))


def gallery_cards(
    dataset: Dataset,
    derived: Path,
    images: Sequence[ListedImage],
    choice: GalleryFilter,
    facts: CardFacts,
) -> list[dict[str, Any]]:
    """Return the cards of images; the first card of each group of copies has the group's number.

    Args:
        dataset: The dataset.
        derived: Its folder of derived data.
        images: The images of a page of the gallery.
        choice: The filters and the order of the gallery.
        facts: Facts that are not in the list.
    """
    cards, group = list[dict[str, Any]](), 0
    for image in images:
        own = getattr(image, choice.alike) if choice.alike else 0
        card = _card(dataset, derived, image, facts)
        if card is not None:
            cards.append({**card, "group": own if own != group else 0})
            group = own
    return cards


def _card(
    dataset: Dataset, derived: Path, image: ListedImage, facts: CardFacts
) -> dict[str, Any] | None:
    path = dataset.path / image.path
    if is_hidden(image.path) or not path.is_relative_to(dataset.path):
        return None  # from a list of an untrusted source
    name, is_cropped = address_of([dataset.path], path), _has_crop(path)
    try:
        reason = reason_of(hash_file(derived, dataset.path, path))
    except (OSError, ValueError):
        reason = image.skipped or "It no longer exists."
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
            *_badges(image, facts),
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


def _badges(image: ListedImage, facts: CardFacts) -> list[tuple[str, str]]:
    """Return the badges of an image: kind and text.

    Args:
        image: The image.
        facts: Facts that are not in the list.
    """
    if image.skipped:
        return [("bad", f"skipped: {image.skipped}")]
    bucket, percent = image.bucket.replace("x", " × "), 100 * image.cropped
    ratio, times = facts.losses.get(image.path, (0.0, 0))
    rows: list[tuple[Any, str, str]] = [
        (bucket, "bucket", f"bucket {bucket}"),
        (bucket and not image.captioned, "bad", "no caption"),
        (
            image.enlarged,
            "warn",
            f"enlarged ×{_times(image.enlarged)} at {facts.resolution} pixels",
        ),
        (percent >= 0.5, "", f"{percent:.0f} % cropped away"),
        (image.copies, "warn", "copy"),
        (image.near, "warn", "near copy"),
        (facts.has_mask(image), "", "mask"),
        (times, "", f"{ratio:.2f} × the usual loss, shown {times}×"),
    ]
    return [(kind, text) for holds, kind, text in rows if holds]


def _times(factor: float) -> str:
    """Format a factor with two significant digits, or without decimals from 10 on."""
    return f"{factor:.2g}" if factor < 10 else f"{factor:,.0f}"
