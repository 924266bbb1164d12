"""Learning progress on the page of a run: best checkpoint, over-fitting, images of high loss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from impasto.runs import RunDirectory
from impasto.runs.image_losses import ImageLoss
from impasto.runs.learning import NOTHING_HELD_OUT, kept_best, read_learning, why_no_best
from impasto.runs.learning_text import best_text, evidence_text, gap_text
from impasto.studio.core import Studio
from impasto.studio.folders import address_of
from impasto.studio.losses import worst_images
from impasto.studio.pages.shown_dataset import Dataset, thumbnail_address

_IMAGES = 24


def learning_view(run: RunDirectory) -> dict[str, Any]:
    """Return a description of the validation loss over time, and the best checkpoint by it."""
    learning = read_learning(run)
    if learning is None:
        return {"sentence": "", "nothing_yet": NOTHING_HELD_OUT}
    best = kept_best(run, learning)
    return {
        "sentence": learning.sentence(),
        "is_bad": learning.mood == "bad",
        "more": [
            sentence
            for sentence in (
                f"Lowest: {best_text(learning)}.",
                gap_text(learning),
                evidence_text(learning),
            )
            if sentence
        ],
        "checkpoint": None if best is None else {"path": str(best[0]), "step": best[1]},
        "no_checkpoint": why_no_best(learning),
    }


def image_loss_view(run: RunDirectory, studio: Studio) -> dict[str, Any]:
    """Return the images with the highest loss, with the addresses of their pages."""
    worst = worst_images(run)
    found, folder = worst or (), str(run.status().get("folder", ""))
    rows = [_row(one, folder, studio) for one in found[:_IMAGES]]
    return {"is_asked": worst is not None, "images": rows, "number": len(found)}


def _row(one: ImageLoss, folder: str, studio: Studio) -> dict[str, Any]:
    path = Path(os.path.normpath(Path(folder) / one.image))
    return {
        "name": path.name,
        "place": str(path.parent),
        "ratio": f"{one.ratio:.2f}",
        "times": one.times,
        **_addresses(path, studio),
    }


def _addresses(path: Path, studio: Studio) -> dict[str, str]:
    """Return the addresses of an image's page and thumbnail; empty outside the studio's folders."""
    dataset = Dataset(studio, path.parent)
    try:
        address = f"{dataset.address}/images/{address_of([path.parent], path)}"
    except ValueError:
        return {"address": "", "thumbnail": ""}
    return {"address": address, "thumbnail": thumbnail_address(dataset, dataset.derived, path)}
