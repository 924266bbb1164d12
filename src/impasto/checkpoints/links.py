"""Refuses models whose folder has links that lead out of it.

A folder that someone else packed may have a link to any file on the machine where it is unpacked,
and a model's files (its tokenizer, its configuration) are written into models made from it.
"""

from __future__ import annotations

import os
from pathlib import Path

from impasto import files, presence
from impasto.errors import ModelError

_REVISIONS, _REPOSITORY, _BLOBS = "snapshots", "models--", "blobs"
"""Hugging Face cache: `models--owner--name/snapshots/<revision>` links to `blobs` beside it."""


def require_links_inside(folder: Path) -> None:
    """Check that no link in a model's folder, at any depth, leads out of it.

    In the Hugging Face cache a snapshot consists of links to the blobs of its repository; these are
    allowed.

    Raises:
        ModelError: A link leads out; the message names it.
    """
    if not presence.is_dir(folder):
        return
    real = files.real_path(folder)
    allowed = [real, *_blobs_of(real)]
    for above, folders, names in os.walk(real):
        for name in sorted([*folders, *names]):
            path = Path(above, name)
            if not presence.is_link(path):
                continue
            target = files.real_path(path)
            if not any(target.is_relative_to(inside) for inside in allowed):
                raise ModelError(
                    f"{folder / path.relative_to(real)} is a link that leads out of the model's "
                    f"folder, to {path.readlink()}; such links are not followed. If you trust "
                    f"it, put the file itself in its place."
                )


def _blobs_of(real: Path) -> list[Path]:
    """Return the folder of blobs for a snapshot in the Hugging Face cache; empty for others.

    Its path is not resolved: if `blobs` were a link itself, it could lead anywhere.
    """
    for folder in (real, *real.parents):
        revisions = folder.parent
        if revisions.name == _REVISIONS and revisions.parent.name.startswith(_REPOSITORY):
            return [revisions.parent / _BLOBS]
    return []
