"""`impasto dataset show`: the properties of one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from impasto.cli.dataset_options import require_own_file
from impasto.cli.local_paths import WRITTEN


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--view",
    type=WRITTEN,
    help="Also write an upright copy, at most 2048 pixels a side, to this .jpg, .png or .webp.",
)
def show(image: Path, view: Path | None, *, as_json: bool) -> None:
    """Show size, format, crop, caption and tags of IMAGE."""
    from impasto.cli.console import Console
    from impasto.cli.harmless import json_text
    from impasto.data.inspecting.inspection import inspect_image, write_view
    from impasto.data.pixels.images import UnreadableImageError, failure_of
    from impasto.errors import DatasetError

    require_own_file(image)
    try:
        facts = inspect_image(image)
        if view is not None:
            write_view(image, view)
    except (UnreadableImageError, OSError) as error:
        raise DatasetError(f"{image}: {failure_of(error).reason}.") from error
    if as_json:
        click.echo(json_text({**facts.as_json(), **_beside(image)}))
        return
    beside = _beside(image)
    turned = ", turned by EXIF" if facts.rotated else ""
    Console().table(
        {
            "Size": f"{facts.width}x{facts.height}{turned}",
            "File": f"{facts.format}, {facts.mode}, {facts.size_bytes:,} bytes",
            "Used": _used(beside),
            "Caption": beside["caption"] or "none",
            "Tags": beside["tags"] or "none",
        }
    )


def _beside(image: Path) -> dict[str, Any]:
    """Return the crop, caption and tags in the files beside an image, as plain values."""
    from impasto.data.folders.beside import SidecarLookup
    from impasto.data.folders.listing import CAPTION, TAGS
    from impasto.data.pixels.cuts import cut_beside
    from impasto.data.pixels.images import UnreadableImageError
    from impasto.parsing import decode_caption

    found: dict[str, Any] = {"crop": None, "crop_fault": ""}
    try:
        cut = cut_beside(image)
        found["crop"] = [cut.box.left, cut.box.top, *cut.box.size.wh] if cut else None
    except UnreadableImageError as error:
        found["crop_fault"] = str(error)
    lookup = SidecarLookup()
    for name, ending in (("caption", CAPTION), ("tags", TAGS)):
        file = lookup.file(image, ending)
        text = file.read_bytes()[: 1 << 20] if file.is_file() else b""
        found[name] = decode_caption(text, errors="replace").strip()
    return found


def _used(beside: dict[str, Any]) -> str:
    if beside["crop_fault"]:
        return f"nothing: {beside['crop_fault']}"
    if beside["crop"] is None:
        return "the whole image"
    x, y, width, height = beside["crop"]
    return f"{width}x{height} from {x},{y}"
