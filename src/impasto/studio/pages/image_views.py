"""The content of the page of an image, as plain values for its template."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto import files, temporary_names
from impasto.data.folders.beside import SidecarLookup
from impasto.data.folders.listing import CAPTION, TAGS
from impasto.data.folders.mask_folders import usual_mask_folders
from impasto.data.folders.masks import mask_file
from impasto.data.pixels.cuts import (
    bucket_of,
    crop_file,
    read_cut,
    remove_cut,
    why_not_cut,
    write_cut,
)
from impasto.data.pixels.images import UnreadableImageError
from impasto.data.planning.plan import BucketRules
from impasto.data.records import Box, FileStamp, ImageRecord, PlannedImage, Size
from impasto.data.subsets import MaskRules, Subset
from impasto.errors import ConfigError, DatasetError
from impasto.parsing import decode_caption, printable
from impasto.studio.datasets import image_files
from impasto.studio.folders import address_of, leads_out
from impasto.studio.forms import whole_number
from impasto.studio.pages.buckets import OFFERED, bucket_rules, resolution_of

_CAPTION_BYTES = 100_000
_LONGEST_SIDE = 1 << 30


def image_page(
    dataset: Path, image: Path, facts: Mapping[str, Any], masks: Path, resolution: int
) -> dict[str, Any]:
    """Return the content of the page of an image.

    Args:
        dataset: The folder of the dataset.
        image: The image.
        facts: The result of `Views.facts` for the image.
        masks: The folder of its mask, which need not exist.
        resolution: The resolution in pixels for which the bucket is shown first.
    """
    whole = _whole(facts)
    cut, fault = None, ""
    try:
        if os.path.lexists(crop_file(image)) and not leads_out(crop_file(image), dataset):
            cut = read_cut(crop_file(image), whole)
    except UnreadableImageError as error:
        fault = str(error)
    box = cut.box if cut else Box(0, 0, whole)
    before, after, position, total = _neighbours(dataset, image)
    mask = mask_of(dataset, image, masks)
    return {
        "name": printable(image.relative_to(dataset).as_posix()),
        "dataset_name": printable(dataset.name),
        "whole": whole,
        "crop": {"x": box.left, "y": box.top, "width": box.size.width, "height": box.size.height},
        "has_crop": cut is not None,
        "crop_fault": fault,
        "facts": _facts(facts, whole, box if cut else None),
        "captions": _captions(dataset, image),
        "before": before,
        "after": after,
        "position": position,
        "total": total,
        "masks": printable(str(masks)),
        "has_mask": mask is not None and files.is_inside(mask, masks),
        "resolutions": sorted({*OFFERED, resolution}),
        "resolution": resolution,
    }


def masks_folder(data: Sequence[Path], dataset: Path, text: str) -> Path | None:
    """Return the mask folder named in a form, or None if it is outside the image folders.

    Args:
        data: The image folders that the studio shows.
        dataset: The dataset, from which relative paths are resolved.
        text: The path. If empty, it is `<dataset>-masks` beside the dataset or, if that is outside
            the image folders, `.masks` inside it, which scans ignore.
    """
    given = text.strip()
    wanted = [dataset / given] if given else [*usual_mask_folders(dataset)]
    for one_of in wanted:
        folder = Path(os.path.normpath(one_of))  # before links are followed
        try:
            if any(len(os.fsencode(name)) > temporary_names.LONGEST_NAME for name in folder.parts):
                return None
            if any(files.is_inside(folder, one) for one in data):
                return folder
        except (OSError, ValueError):
            return None
    return None


def mask_of(dataset: Path, image: Path, masks: Path) -> Path | None:
    """Return the mask that training would use for an image, or None if there is none."""
    subset = Subset(root=dataset, masks=MaskRules(folder=masks))
    return mask_file(ImageRecord(image, Size(1, 1), FileStamp(0, 0), subset=subset))


def bucket_answer(
    image: Path, facts: Mapping[str, Any], given: Mapping[str, str], known: Mapping[str, str]
) -> dict[str, Any]:
    """Return the bucket of a rectangle of an image and the part that it keeps, or its `fault`.

    Args:
        image: The image.
        facts: The result of `Views.facts` for the image.
        given: The rectangle and the resolution, as texts of a form.
        known: The bucket options of its dataset (`known_options`).
    """
    try:
        box = _box_of(given)
    except ValueError:
        return {"fault": "Enter whole numbers."}
    whole = _whole(facts)
    fault = why_not_cut(whole, box)
    resolution = whole_number(given.get("resolution", ""), _LONGEST_SIDE) or 0
    if resolution not in (*OFFERED, resolution_of(known)):
        fault = "has a resolution that is not offered here"
    if fault:
        return {"fault": f"The crop {fault}."}
    rules = BucketRules(**bucket_rules(known, resolution))
    try:
        planned = bucket_of(image, whole, box, resolution, rules)
    except ConfigError as error:  # invalid options in a list that was edited by hand
        return {"fault": str(error)}
    return {
        "bucket": str(planned.bucket),
        "kept": _kept(planned),
        "cropped": planned.cropped_fraction,
        "enlarged": planned.resized.area > box.size.area,
    }


def keep_crop(image: Path, facts: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Write the crop in a form to its file beside the image.

    Raises:
        DatasetError: The crop is not a rectangle inside the image.
        StorageError: The file cannot be written.
    """
    try:
        box = _box_of(given)
    except ValueError as error:
        raise DatasetError("X, y, width and height must be whole numbers.") from error
    write_cut(image, _whole(facts), box)


def remove_crop(image: Path) -> None:
    """Remove the crop of an image, so that the whole image is used.

    Raises:
        StorageError: The file cannot be removed.
    """
    remove_cut(image)


def _whole(facts: Mapping[str, Any]) -> Size:
    return Size(facts["width"], facts["height"])


def _box_of(given: Mapping[str, str]) -> Box:
    """Return the rectangle in a form.

    Raises:
        ValueError: A number is missing, invalid, or far too large.
    """
    names = ("x", "y", "width", "height")
    typed = (whole_number(given.get(name, ""), _LONGEST_SIDE, -_LONGEST_SIDE) for name in names)
    numbers = [number for number in typed if number is not None]
    if len(numbers) < len(names):
        raise ValueError("not a whole number, or far too large")
    x, y, width, height = numbers
    return Box(x, y, Size(width, height))


def _kept(planned: PlannedImage) -> list[float]:
    """Return the part of a crop that its bucket keeps: x, y, width, height as fractions of it."""
    width, height = planned.resized.wh
    crop = planned.crop
    return [
        crop.left / width,
        crop.top / height,
        crop.size.width / width,
        crop.size.height / height,
    ]


def _facts(facts: Mapping[str, Any], whole: Size, cut: Box | None) -> dict[str, str]:
    turned = ", turned by EXIF" if facts["rotated"] else ""
    frames = f", the first of {facts['frames']} frames" if facts["frames"] > 1 else ""
    return {
        "Size": f"{whole.width} × {whole.height}{turned}",
        **({"Crop": f"{cut.size.width} × {cut.size.height}"} if cut else {}),
        "Pixels": f"{whole.area / 1e6:.1f} million" if whole.area >= 1e6 else f"{whole.area:,}",
        "File": _bytes(facts["size_bytes"]),
        "Format": f"{facts['format']}, {facts['mode']}{frames}",
    }


def _bytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


def _captions(dataset: Path, image: Path) -> list[dict[str, str]]:
    """Return the caption files beside an image: name and text."""
    lookup, found = SidecarLookup(), []
    for ending in (CAPTION, TAGS):
        file = lookup.file(image, ending)
        try:
            if file.is_file() and not leads_out(file, dataset):
                with file.open("rb") as content:
                    text = decode_caption(content.read(_CAPTION_BYTES), errors="replace")
                found.append({"file": printable(file.name), "text": text.strip()})
        except OSError:
            continue
    return found


def _neighbours(dataset: Path, image: Path) -> tuple[str, str, int, int]:
    """Return the addresses of the previous and the next image, the image's number, and the total.

    Images are in the order of their paths, as in scans. An address is empty if there is no such
    image. Numbers start at 1; the number is 0 if the image is not in the dataset.
    """
    found = image_files(dataset)
    try:
        index = found.index(image.relative_to(dataset).as_posix())
    except ValueError:
        return "", "", 0, len(found)

    def address(number: int) -> str:
        known = 0 <= number < len(found)
        return address_of([dataset], dataset / found[number]) if known else ""

    return address(index - 1), address(index + 1), index + 1, len(found)
