"""Links in a model's folder are followed only as far as that folder.

A folder that somebody else packed may hold a link to any file of whoever unpacks it, and what a
model holds (its tokenizer, its configuration) is written into models made from it.
"""

from __future__ import annotations

import os
from pathlib import Path

from impasto import files, presence
from impasto.errors import ModelError

_CACHED = "snapshots"  # the Hugging Face cache keeps links there to files of the same repository


def require_links_inside(folder: Path) -> None:
    """Make sure that no link in a model's folder, at any depth, leads out of it.

    In the Hugging Face cache a snapshot consists of links to the blobs beside it; these are fine.

    Raises:
        ModelError: One does; with its name.
    """
    if not presence.is_dir(folder):
        return
    real = files.real_path(folder)
    whole = next((p.parent for p in real.parents if p.name == _CACHED), real)
    for place, folders, names in os.walk(real):
        for name in sorted([*folders, *names]):
            path = Path(place, name)
            if path.is_symlink() and not files.is_inside(path, whole):
                raise ModelError(
                    f"{folder / path.relative_to(real)} is a link that leads out of the model's "
                    f"folder, to {path.readlink()}; such links are not followed. If you trust "
                    f"it, put the file itself in its place."
                )
