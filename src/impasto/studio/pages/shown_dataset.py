"""A dataset as the pages of the studio show it: its name, its addresses and its tasks."""

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
        studio: What it is shown by.
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
        """The address of its gallery."""
        return f"/data/{self.name}"

    @property
    def derived(self) -> Path:
        """The folder for what is derived from it."""
        return derived_of(self.path, self.studio.home)

    @property
    def title(self) -> str:
        """The name of the dataset as people see it."""
        return printable(self.path.name or str(self.path))

    def newest_task(self, verb: str) -> TaskDirectory | None:
        """The task that did something to it last: `list` or `report`."""
        tasks = self.studio.tasks.newest("dataset", verb)
        return next((t for t in tasks if t.description().get("back") == self.address), None)


def thumbnail_address(dataset: Dataset, derived: Path, path: Path) -> str:
    """Where the thumbnail of an image is; another address once the image has changed.

    Browsers keep what is at such an address. It has no version of an image that is not there.

    Args:
        dataset: The dataset.
        derived: Its folder for what is derived from it.
        path: The image.
    """
    address = f"{dataset.address}/thumbnails/{address_of([dataset.path], path)}"
    try:
        return f"{address}?v={version_of(hash_file(derived, dataset.path, path))}"
    except (OSError, ValueError):
        return address
