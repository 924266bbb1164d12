"""An index from tags to the images of a list, built once, so that filters read no captions."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence

from impasto.data.inspecting.image_list import ListedImage, caption_tags


class TagIndex:
    """The tags of a list of images; 50,000 images with twenty tags each take about 8 MB.

    Args:
        images: The list, which is not stored.
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
        """Return up to `most` tags by falling frequency, in their original spelling."""
        return sorted(self._rows, key=lambda tag: -len(self._rows[tag]))[:most]

    def rows(self, tags: Iterable[str]) -> Sequence[int]:
        """Return the list indices of images that have all given tags, ignoring letter case.

        Args:
            tags: The tags; at least one.
        """
        found = [self._of(tag.casefold()) for tag in tags]
        return sorted(set.intersection(*found))

    def _of(self, tag: str) -> set[int]:
        return {n for spelling in self._spellings.get(tag, ()) for n in self._rows[spelling]}
