"""Images for the tiny tagger and captioner, with captions and tags: two styles of the same things.

Noto icons on white or pale paper, and the high-contrast ones in dark ink, mostly on ochre, as in
the demo. They are drawn for these recipes: none of the demo's own files is among them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pictures import INK, NAMES, PAPER, WHITE, Collection, article
from PIL import Image

SIDE = 128
RATINGS = ("general", "sensitive", "questionable", "explicit")
CHARACTERS = ("ghost", "alien", "robot", "snowman", "jack o lantern", "teddy bear")
KINDS = {
    "fruit": "red apple, green apple, banana, lemon, tangerine, grapes, watermelon, strawberry, "
    "cherries, peach, pear, pineapple, kiwi fruit",
    "food": "tomato, avocado, eggplant, carrot, ear of corn, hot pepper, cucumber, broccoli, "
    "mushroom, onion, bread, cheese wedge, pizza, hamburger, french fries, hot dog, taco, cookie, "
    "doughnut, birthday cake, ice cream, lollipop",
    "drink": "teapot, hot beverage, beer mug, wine glass",
    "animal": "dog face, cat face, mouse face, hamster, rabbit face, fox, bear, panda, koala, "
    "tiger face, lion, cow face, pig face, frog, monkey face, chicken, penguin, owl, wolf, "
    "horse face, unicorn, lady beetle, honeybee, butterfly, snail, turtle, octopus, crab, fish, "
    "tropical fish, blowfish, dolphin, spouting whale, shark, elephant, duck",
    "plant": "rose, tulip, sunflower, cherry blossom, cactus, palm tree, evergreen tree, "
    "deciduous tree, maple leaf, four leaf clover",
    "vehicle": "automobile, taxi, bus, police car, fire engine, ambulance, tractor, bicycle, "
    "locomotive, airplane, helicopter, rocket, sailboat, ship",
    "building": "house, castle, tent",
    "ball": "soccer ball, basketball, baseball, tennis, american football, pool 8 ball",
    "musical instrument": "guitar, violin, drum, trumpet, bell",
    "tool": "hammer, wrench, axe, scissors, pencil, key, magnet, anchor",
    "clothes": "crown, top hat, t shirt, jeans, dress, running shoe",
    "sky": "sun, full moon, crescent moon, star, cloud, rainbow",
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split(", ")}
ATTRIBUTES = (
    *KINDS, "white background", "brown background", "monochrome", "multicolored", "solo", "duo",
    "no humans",
)  # fmt: skip
GENERAL = tuple(name for name in NAMES if name not in CHARACTERS) + ATTRIBUTES


@dataclass(frozen=True)
class Example:
    """An image, SIDE x SIDE as a square crop of its paper, with its caption and tags."""

    pixels: np.ndarray
    caption: str
    tags: frozenset[str]


class Studio:
    """Draws scenes of one or two things.

    Args:
        icons: The folder `@iconify-json`.
        seed: The seed of the scenes.
    """

    def __init__(self, icons: Path, seed: int) -> None:
        self._noto = Collection.load(icons / "noto")
        self._print = Collection.load(icons / "fluent-emoji-high-contrast")
        self._rng = random.Random(seed)

    def example(self) -> Example:
        """Draw one example."""
        rng = self._rng
        is_print = rng.random() < 0.55
        paper, ink = self._colours(is_print=is_print)
        names = tuple(rng.sample(NAMES, 2 if rng.random() < 0.3 else 1))
        wide = rng.random() < 0.5
        canvas = self._canvas(names, paper, ink, is_print=is_print, wide=wide)
        caption = " and ".join(article(name) for name in names)
        return Example(np.asarray(canvas), caption, self._tags(names, paper, is_print=is_print))

    def _colours(self, *, is_print: bool) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        rng = self._rng
        if is_print and rng.random() < 0.7:
            return PAPER, INK
        if rng.random() < 0.6:
            return WHITE, (rng.randrange(60), rng.randrange(60), rng.randrange(100))
        pale = tuple(rng.randrange(190, 256) for _ in range(3))
        return (pale[0], pale[1], pale[2]), (20, 20, 40)

    def _canvas(
        self,
        names: tuple[str, ...],
        paper: tuple[int, int, int],
        ink: tuple[int, int, int],
        *,
        is_print: bool,
        wide: bool,
    ) -> Image.Image:
        """Place things side by side or stacked, then squash or pad to a square, as for models."""
        rng, cells = self._rng, len(names)
        shape = rng.choice([(128, 128), (160, 96), (96, 160), (144, 108), (108, 144)])
        if cells == 2:
            shape = (192, 96) if wide else (96, 192)
        canvas = Image.new("RGB", shape, paper)
        cell = (shape[0] // cells, shape[1]) if wide else (shape[0], shape[1] // cells)
        for index, name in enumerate(names):
            side = round(min(cell) * rng.uniform(0.8, 0.98))
            slack = max(1, round(min(cell) * 0.06))
            left = (cell[0] - side) // 2 + rng.randint(-slack, slack) + (cell[0] * index * wide)
            top = (
                (cell[1] - side) // 2 + rng.randint(-slack, slack) + (cell[1] * index * (not wide))
            )
            icon = self._icon(name, is_print=is_print, ink=ink).resize((side, side))
            canvas.paste(icon, (left, top), icon)
        if rng.random() < 0.5:
            return canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        whole = Image.new("RGB", (max(shape), max(shape)), WHITE)
        whole.paste(canvas, ((max(shape) - shape[0]) // 2, (max(shape) - shape[1]) // 2))
        return whole.resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    def _icon(self, name: str, *, is_print: bool, ink: tuple[int, int, int]) -> Image.Image:
        if not is_print:
            return _drawn(self._noto, name, (0, 0, 0))
        plain = _drawn(self._print, name, (0, 0, 0))
        coloured = Image.new("RGBA", plain.size, (*ink, 255))
        coloured.putalpha(plain.getchannel("A"))
        return coloured

    def _tags(
        self, names: tuple[str, ...], paper: tuple[int, int, int], *, is_print: bool
    ) -> frozenset[str]:
        tags = {*names, "no humans", "duo" if len(names) == 2 else "solo"}
        tags |= {KIND_OF[name] for name in names if name in KIND_OF}
        tags.add("monochrome" if is_print else "multicolored")
        if paper == WHITE:
            tags.add("white background")
        if paper == PAPER:
            tags.add("brown background")
        return frozenset({*tags, RATINGS[0]})


@cache
def _drawn_by_id(key: int, name: str, ink: tuple[int, int, int]) -> Image.Image:
    return _COLLECTIONS[key].draw(name, 128, ink)


_COLLECTIONS: dict[int, Collection] = {}


def _drawn(collection: Collection, name: str, ink: tuple[int, int, int]) -> Image.Image:
    """Return an icon's image, rasterised once and cached."""
    _COLLECTIONS[id(collection)] = collection
    return _drawn_by_id(id(collection), name, ink)
