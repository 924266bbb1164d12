"""Reads and writes the `.npz` latents that sd-scripts keeps beside images, in all their formats.

They hold one unscaled sample of the VAE's posterior in float32, not its moments, and do not record
which VAE made them (kohya-ss/sd-scripts: `finetune/prepare_buckets_latents.py`,
`library/train_util.py` and `library/strategy_sd.py` over the years):

    <stem>.npz, <stem>_flip.npz            arr_0                                  until July 2023
    <stem>.npz                             latents, latents_flipped, original_size, ...    to 0.9.1
    <stem>_<W>x<H>_sd.npz, ..._sdxl.npz    the same; W x H is the image's size          from 2024
    the same                               latents_<h>x<w>, latents_flipped_<h>x<w>, ...  from 2026
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from impasto import files
from impasto.data.engines.stages import Failure
from impasto.data.records import PlannedImage, Size

CELL = 8
CHANNELS = 4
CLOCK_SLACK_NS = 1_000_000_000
_MOST_VALUES = 1 << 26  # latents of an image of 32768x32768 pixels
WITH_CROP = "the image has a crop of its own, which sd-scripts ignores"
SD_ENDINGS = ("_sd", "_sdxl")  # fine_tune.py of early 2026 wrote SD latents as _sdxl
SDXL_ENDINGS = ("_sdxl",)
PLAIN_NAMES = ("latents", "latents_flipped", "original_size", "crop_ltrb")


class DamagedNpzError(ValueError):
    """A file is not an .npz of numeric arrays, or is damaged; the message says how."""


@dataclass(frozen=True)
class NpzLatents:
    """Latents read from a file: unscaled samples, float32 [4, h, w] each.

    Attributes:
        file: The file.
        latents: The sample of the image.
        flipped: The sample of the mirror image; None if the file has none.
    """

    file: Path
    latents: np.ndarray
    flipped: np.ndarray | None


def npz_candidates(image: PlannedImage, endings: Sequence[str] = SD_ENDINGS) -> Iterator[Path]:
    """Yield the paths at which sd-scripts may have put an image's latents, newest format first.

    Args:
        image: The image.
        endings: Endings of file names that the model uses; the first is the one written.
    """
    path, root, size = image.record.path, image.record.subset.root, image.record.whole
    for ending in endings:
        yield path.with_name(f"{path.stem}_{size.width:04d}x{size.height:04d}{ending}.npz")
    yield path.with_suffix(".npz")
    if root != path.parent:
        yield root / f"{path.stem}.npz"


def npz_file(image: PlannedImage, endings: Sequence[str] = SD_ENDINGS) -> Path:
    """Return the path at which today's sd-scripts stores an image's latents."""
    return next(npz_candidates(image, endings))


def read_npz(file: Path, image: PlannedImage) -> NpzLatents | Failure:
    """Read a file's latents if they fit the planned image; otherwise return the reason."""
    if image.record.rotated:
        return Failure("the image is rotated by EXIF, which sd-scripts ignores")
    if image.record.cut:
        return Failure(WITH_CROP)
    if is_older(file, image):
        return Failure(f"older than {image.record.path.name}, which was changed after it was made")
    try:
        arrays = arrays_of(file, lambda name: _is_wanted(name, image))
        flipped = _flipped_sidecar(file, image)
    except (DamagedNpzError, OSError) as error:
        return Failure(f"damaged ({error})")
    return _checked(file, arrays, flipped, image)


def is_older(file: Path, image: PlannedImage) -> bool:
    """Return whether an image was changed after a file of latents was made from it.

    One second of tolerance allows for file systems and archives with coarse times. False if the
    file cannot be read.
    """
    try:
        return image.record.stamp.mtime_ns > file.stat().st_mtime_ns + CLOCK_SLACK_NS
    except OSError:
        return False  # reading the file raises the same error, which is then reported


def write_npz(
    image: PlannedImage,
    latents: np.ndarray,
    flipped: np.ndarray | None,
    endings: Sequence[str] = SD_ENDINGS,
) -> Path:
    """Write latents as today's sd-scripts does, and retain those of other sizes in the same file.

    Args:
        image: The image.
        latents: One unscaled sample, float32 [4, h, w].
        flipped: The sample of the mirror image; None if there is none.
        endings: Endings of file names that the model uses; the first is the one written.

    Returns:
        The file, beside the image.

    Raises:
        StorageError: It could not be written.
    """
    file = npz_file(image, endings)
    arrays: dict[str, np.ndarray] = {}
    if os.path.isfile(file) and not is_older(file, image):  # noqa: PTH113 - False for long names
        try:
            arrays = arrays_of(file)
        except (DamagedNpzError, OSError):
            arrays = {}  # sd-scripts could not read the file either
    tail = _tail(image)
    arrays[f"latents{tail}"] = latents.astype(np.float32)
    arrays.pop(f"latents_flipped{tail}", None)
    if flipped is not None:
        arrays[f"latents_flipped{tail}"] = flipped.astype(np.float32)
    size = image.record.size
    arrays[f"original_size{tail}"] = np.array([size.width, size.height])
    arrays[f"crop_ltrb{tail}"] = np.array(crop_ltrb(image.bucket, size))
    arrays = _with_plain_names(arrays, tail)
    with files.rewrite_file(file) as partial, partial.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **arrays)
    return file


def arrays_of(
    file: Path | IO[bytes], wanted: Callable[[str], bool] = bool
) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name; each header is checked before the values are read.

    Args:
        file: The file.
        wanted: Returns whether to read the array of a name.

    Raises:
        DamagedNpzError: The file is damaged, or an array holds objects or more values than latents
            can have (a compressed array may expand to any size).
        OSError: The file cannot be read.
    """
    try:
        return _read_arrays(file, wanted)
    except OSError:
        raise
    except Exception as error:  # zipfile, its decompressors and NumPy raise a dozen classes
        raise DamagedNpzError(str(error) or type(error).__name__) from error


def _read_arrays(file: Path | IO[bytes], wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            if name != member and wanted(name):
                with archive.open(member) as content:
                    _require_small(name, content)
                with archive.open(member) as content:
                    arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
    return arrays


def _require_small(name: str, content: IO[bytes]) -> None:
    version = np.lib.format.read_magic(content)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"{name} has the unknown format version {version}")
    shape, _, dtype = readers[version](content)
    if dtype.hasobject or dtype.kind not in "fiu" or math.prod(shape) > _MOST_VALUES:
        raise ValueError(f"{name} has {math.prod(shape)} values of type {dtype}")


def _with_plain_names(arrays: dict[str, np.ndarray], tail: str) -> dict[str, np.ndarray]:
    """Return the arrays with names without a size too, if all latents in the file are of one size.

    Up to February 2026 sd-scripts reads `latents` alone (`library/strategy_sd.py` of 48d368f)
    without checking its shape, so with several sizes that name is not written. If sd-scripts has
    left an array of another shape under it, the arrays are returned unchanged.
    """
    before = arrays.get("latents")
    sized = [name for name in arrays if name.startswith("latents_") and name[8:9].isdigit()]
    if before is not None and all(arrays[name].shape != before.shape for name in sized):
        return arrays
    kept = {name: array for name, array in arrays.items() if name not in PLAIN_NAMES}
    if len(sized) > 1:
        return kept
    plain = {name: kept[f"{name}{tail}"] for name in PLAIN_NAMES if f"{name}{tail}" in kept}
    return {**kept, **plain}


def _tail(image: PlannedImage) -> str:
    return f"_{image.bucket.height // CELL}x{image.bucket.width // CELL}"


def crop_ltrb(bucket: Size, size: Size) -> tuple[float, float, float, float]:
    """Return where the whole image would lie in its bucket: SDXL's crop, which SD does not use.

    kohya-ss/sd-scripts, `library/train_util.py`, BucketManager.get_crop_ltrb.
    """
    if size.aspect > bucket.aspect:
        width, height = float(bucket.width), bucket.width / size.aspect
    else:
        width, height = bucket.height * size.aspect, float(bucket.height)
    left, top = (bucket.width - width) // 2, (bucket.height - height) // 2
    return left, top, left + width, top + height


def _is_wanted(name: str, image: PlannedImage) -> bool:
    bases = ("arr_0", "latents", "latents_flipped", "original_size")
    return name in bases or name in {f"{base}{_tail(image)}" for base in bases[1:]}


def _flipped_sidecar(file: Path, image: PlannedImage) -> np.ndarray | None:
    """Return the mirror image's latents in the oldest format, a separate file; None if missing.

    Raises:
        DamagedNpzError: The file is damaged.
        OSError: It cannot be read.
    """
    beside = file.with_name(f"{file.stem}_flip.npz")
    if not os.path.isfile(beside) or is_older(beside, image):  # noqa: PTH113 - as above
        return None
    arrays = arrays_of(beside, lambda name: name == "arr_0")
    if "arr_0" not in arrays:
        raise DamagedNpzError(f"{beside.name} holds no arr_0")
    return arrays["arr_0"]


def _checked(
    file: Path, arrays: Mapping[str, np.ndarray], flipped: np.ndarray | None, image: PlannedImage
) -> NpzLatents | Failure:
    tail = _tail(image)
    original = arrays.get(f"original_size{tail}", arrays.get("original_size"))
    size = image.record.size
    if original is not None and original.flatten().tolist() != list(size.wh):
        return Failure(f"made from an image of size {original.tolist()}, which is now {size}")
    expected = (CHANNELS, image.bucket.height // CELL, image.bucket.width // CELL)
    latents = arrays.get(f"latents{tail}", arrays.get("latents", arrays.get("arr_0")))
    if latents is None:
        return Failure("holds no latents for this size")
    if flipped is None:
        flipped = arrays.get(f"latents_flipped{tail}", arrays.get("latents_flipped"))
    for array in (latents, flipped):
        if array is None:
            continue
        if array.shape != expected:
            return Failure(f"latents of shape {array.shape}; the plan expects {expected}")
        if array.dtype.kind != "f" or not np.isfinite(array.astype(np.float32)).all():
            return Failure("latents with NaN, infinite or integer values")
    return NpzLatents(
        file, latents.astype(np.float32), None if flipped is None else flipped.astype(np.float32)
    )
