"""A dataset as shown by the pages: its name, its addresses and its tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from impasto.parsing import printable
from impasto.runs.tasks import TaskDirectory
from impasto.studio.core import Studio
from impasto.studio.datasets import derived_of
from impasto.studio.folders import address_of
from impasto.studio.thumbnails import hash_file, version_of


@dataclass(frozen=True)
class Dataset:
    """A dataset that is shown.

    Attributes:
        studio: The studio that shows it.
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
        """The address of the dataset's gallery."""
        return f"/data/{self.name}"

    @property
    def derived(self) -> Path:
        """The folder for data derived from the dataset."""
        return derived_of(self.path, self.studio.home)

    @property
    def title(self) -> str:
        """The printable name of the dataset."""
        return printable(self.path.name or str(self.path))

    def newest_task(self, verb: str) -> TaskDirectory | None:
        """Return the newest task of a verb (`list` or `report`) on the dataset, or None."""
        tasks = self.studio.tasks.newest("dataset", verb)
        return next((t for t in tasks if t.description().get("back") == self.address), None)


def thumbnail_address(dataset: Dataset, derived: Path, path: Path) -> str:
    """Return the address of an image's thumbnail, which changes with the image.

    It contains a version of the image, so that browsers can cache the thumbnail; if the image does
    not exist, it has no version.

    Args:
        dataset: The dataset.
        derived: Its folder of derived data.
        path: The image.
    """
    address = f"{dataset.address}/thumbnails/{address_of([dataset.path], path)}"
    try:
        return f"{address}?v={version_of(hash_file(derived, dataset.path, path))}"
    except (OSError, ValueError):
        return address
