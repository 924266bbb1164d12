"""Which images of a list have which tags, put together once, so that no filter reads captions."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence

from impasto.data.inspecting.image_list import ListedImage, caption_tags


class TagIndex:
    """The tags of a list of images; 50,000 images with twenty tags each take about 8 MB.

    Args:
        images: The list; it is not kept.
    """

    def __init__(self, images: Iterable[ListedImage]) -> None:
        self._rows: defaultdict[str, array[int]] = defaultdict(lambda: array("I"))
        for number, image in enumerate(images):
            for tag in caption_tags(image.caption):
                self._rows[tag].append(number)
        self._spellings: defaultdict[str, list[str]] = defaultdict(list)
        for tag in self._rows:
            self._spellings[tag.casefold()].append(tag)

    def most_frequent(self, most: int) -> list[str]:
        """The tags that most images have, as they are spelt."""
        return sorted(self._rows, key=lambda tag: -len(self._rows[tag]))[:most]

    def rows(self, tags: Iterable[str]) -> Sequence[int]:
        """The rows in the list of the images that have all of some tags, in any letter case.

        Args:
            tags: At least one.
        """
        found = [self._of(tag.casefold()) for tag in tags]
        return sorted(set.intersection(*found))

    def _of(self, tag: str) -> set[int]:
        return {n for spelling in self._spellings.get(tag, ()) for n in self._rows[spelling]}
