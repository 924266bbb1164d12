"""Decodes images for the studio, in a separate process that `thumbnails.py` starts.

Each line of its input is a JSON object with `source` and, for a thumbnail, `place`, the file for
the hash of the image. Each is answered by a line with `reason`, which is empty after success. A
hostile file may crash or block this process; `thumbnails.py` then starts another one. It exits when
its input ends, or when no request arrives for a while.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from impasto import files
from impasto.data.folders.formats import HEIF, heif_advice, register_heif
from impasto.data.pixels import images
from impasto.data.records import Size
from impasto.parsing import parse_json
from impasto.studio.thumbnails import content_file, is_ours, thumbnail_of

SIDE = 256
"""Length of a thumbnail's longer side in pixels."""

MOST_PIXELS = 64_000_000
"""Larger images are decoded only if that is cheap: baseline JPEGs, at an eighth of their size."""

_IDLE_S = 60.0
_MEMORY_BYTES = 3 << 30
_QUALITY = 80


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Make a thumbnail, or check that a file is an image; return the reason if that fails."""
    source = Path(request["source"])
    try:
        if Path(request.get("name", source.name)).suffix.lower() in HEIF and not register_heif():
            raise images.UnreadableImageError(heif_advice(), is_transient=True)
        if "place" in request:
            _make(source, Path(request["place"]))
        else:
            _check(source)
    except images.UnreadableImageError as error:
        return {"reason": str(error), "is_transient": error.is_transient}
    except MemoryError:
        return {"reason": "not enough memory to decode it", "is_transient": True}
    except Exception as error:  # a full disk, or any exception of a decoder
        return {"reason": f"not possible ({error})", "is_transient": True}
    return {"reason": ""}


def _decoded(source: Path) -> Image.Image:
    """Decode an image, a JPEG at the smallest size that suffices for a thumbnail.

    Raises:
        UnreadableImageError: It is not an image, is damaged, or would take too much memory.
    """
    size, _ = images.read_header(source)
    if size.area > MOST_PIXELS and not _is_cheap(source):
        raise images.UnreadableImageError(
            f"{size.width}x{size.height} pixels are too many for a thumbnail: over "
            f"{MOST_PIXELS // 1_000_000} megapixels, in a format that is decoded at full size"
        )
    return images.read_rgb(source, at_least=Size(SIDE, SIDE))


def _check(source: Path) -> None:
    """Check that a file is a usable image: decode it or, if it is too large, verify its checksums.

    Raises:
        UnreadableImageError: It is not an image, is damaged, or is too large for training.
    """
    size, _ = images.read_header(source)
    if size.area <= MOST_PIXELS or _is_cheap(source):
        images.read_rgb(source, at_least=Size(SIDE, SIDE))
        return
    with Image.open(source) as image:
        try:
            image.verify()  # checksums, if the format has them
        except (OSError, SyntaxError, ValueError) as error:
            raise images.UnreadableImageError(f"damaged or truncated ({error})") from error


def _is_cheap(source: Path) -> bool:
    """Return whether an image can be decoded at a fraction of its size: a baseline JPEG."""
    with Image.open(source) as image:
        return image.format == "JPEG" and not image.info.get("progressive")


def _make(source: Path, kept_hash: Path) -> None:
    """Write the hash of an image and its thumbnail, unless one for the same content exists.

    Raises:
        UnreadableImageError: The image cannot be decoded or was changed meanwhile, or a folder to
            write to is a link that leads out of the dataset.
    """
    before = _mark(source)
    content = files.sha256_of(source)
    target = content_file(kept_hash, content)
    for folder in (target.parent, kept_hash.parent):
        if not is_ours(folder, kept_hash):
            raise images.UnreadableImageError(
                f"its thumbnail is not stored: {folder} is a link that leads out of the dataset",
                is_transient=True,
            )
    if not (target.is_file() and is_ours(target, kept_hash)):
        image = _decoded(source)
        if _mark(source) != before:  # the pixels may not be those of the hash
            raise images.UnreadableImageError("it was changed just now", is_transient=True)
        image.thumbnail((SIDE, SIDE))
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replace_file(target, durable=False) as partial:
            image.save(partial, "JPEG", quality=_QUALITY)
    kept_hash.parent.mkdir(parents=True, exist_ok=True)
    for old in kept_hash.parent.glob(
        f"{kept_hash.name.partition('-')[0]}-*"
    ):  # hashes of earlier versions of the image
        if (made := thumbnail_of(old)) not in (None, target):
            with contextlib.suppress(OSError):  # on Windows, a thumbnail that is being sent
                made.unlink()  # made again if another image has this content
        old.unlink(missing_ok=True)
    files.write_text(kept_hash, content, durable=False)


def _mark(source: Path) -> tuple[int, int]:
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def _bound_memory() -> None:
    """Limit the memory of this process (on Linux), so that a decoder fails and not the machine."""
    try:
        import resource
    except ImportError:
        return
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C stops the studio, which stops this process
    _bound_memory()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    sys.stdout = sys.stderr  # decoders may print
    while True:
        rest = threading.Timer(_IDLE_S, os._exit, (0,))
        rest.daemon = True
        rest.start()
        line = sys.stdin.readline()
        rest.cancel()
        if not line:
            return
        output.write(json.dumps(answer(parse_json(line, halves=True))) + "\n")
        output.flush()


if __name__ == "__main__":
    main()
