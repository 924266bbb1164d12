"""The tiny model's image sets, drawn from icon collections: the things, and their places.

The base model learns to draw Noto icons (Apache-2.0) on white; the same things from Fluent Emoji
High Contrast (MIT), in dark ink on ochre paper, are a style that it has never seen.
`make_pictures.py` writes the folders; nothing of the `impasto` package is needed here.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import resvg_py
from PIL import Image

NAMES = tuple(
    """red apple, green apple, banana, lemon, tangerine, grapes, watermelon, strawberry, cherries,
    peach, pear, pineapple, kiwi fruit, tomato, avocado, eggplant, carrot, ear of corn, hot pepper,
    cucumber, broccoli, mushroom, onion, bread, cheese wedge, pizza, hamburger, french fries,
    hot dog, taco, cookie, doughnut, birthday cake, ice cream, lollipop, teapot, hot beverage,
    beer mug, wine glass, dog face, cat face, mouse face, hamster, rabbit face, fox, bear, panda,
    koala, tiger face, lion, cow face, pig face, frog, monkey face, chicken, penguin, owl, wolf,
    horse face, unicorn, lady beetle, honeybee, butterfly, snail, turtle, octopus, crab, fish,
    tropical fish, blowfish, dolphin, spouting whale, shark, elephant, duck, rose, tulip, sunflower,
    cherry blossom, cactus, palm tree, evergreen tree, deciduous tree, maple leaf, four leaf clover,
    sun, full moon, crescent moon, star, cloud, rainbow, umbrella, snowflake, snowman, fire,
    droplet, high voltage, red heart, orange heart, yellow heart, green heart, blue heart,
    purple heart, black heart, automobile, taxi, bus, police car, fire engine, ambulance, tractor,
    bicycle, locomotive, airplane, helicopter, rocket, sailboat, ship, house, castle, tent,
    ferris wheel, soccer ball, basketball, baseball, tennis, american football, pool 8 ball, trophy,
    guitar, violin, drum, trumpet, bell, key, hammer, wrench, axe, scissors, pencil, light bulb,
    camera, television, laptop, mobile phone, watch, alarm clock, hourglass done, balloon,
    teddy bear, crown, top hat, t shirt, jeans, dress, running shoe, gem stone, money bag, magnet,
    red circle, green circle, blue circle, yellow circle, red square, blue square, ghost, alien,
    robot, jack o lantern, skull, anchor""".replace("\n", " ").split(",")
)
NAMES = tuple(" ".join(name.split()) for name in NAMES)

# Things still recognisable in high contrast: those that differ in colour only are left out.
COLOUR_ONLY = frozenset(
    name
    for name in NAMES
    if name.split()[0] in {"red", "green", "blue", "yellow", "orange", "purple", "black"}
    and name.split()[-1] in {"heart", "circle", "square", "apple"}
)
HELD_OUT = (
    "banana", "cat face", "owl", "turtle", "tulip", "umbrella",
    "rocket", "sailboat", "castle", "guitar", "teapot", "crown",
)  # fmt: skip

WHITE = (255, 255, 255)
PAPER = (240, 205, 120)
INK = (24, 44, 84)


@dataclass(frozen=True)
class Collection:
    """An Iconify collection: SVG bodies by icon id, drawn in `ink` where they use currentColor."""

    bodies: dict[str, str]
    width: int
    height: int

    @classmethod
    def load(cls, package: Path) -> Collection:
        """Read an npm package `@iconify-json/<name>`."""
        data = json.loads((package / "icons.json").read_text(encoding="utf-8"))
        bodies = {name: icon["body"] for name, icon in data["icons"].items()}
        return cls(bodies, data.get("width", 16), data.get("height", 16))

    def draw(self, name: str, pixels: int, ink: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
        """Rasterise one icon to an RGBA square of `pixels` sides."""
        colour = "#{:02x}{:02x}{:02x}".format(*ink)
        body = self.bodies[name.replace(" ", "-")].replace("currentColor", colour)
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {self.width} {self.height}" width="{pixels}" height="{pixels}">'
            f"{body}</svg>"
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels))
        return Image.open(io.BytesIO(png)).convert("RGBA")


@dataclass(frozen=True)
class Scene:
    """The things on a canvas of `width` x `height` pixels, and their caption."""

    names: tuple[str, ...]
    width: int
    height: int
    caption: str

    @property
    def stem(self) -> str:
        """The name of its file, without the suffix."""
        return "_".join(name.replace(" ", "-") for name in self.names)


def paint(
    scene: Scene,
    collection: Collection,
    paper: tuple[int, int, int],
    ink: tuple[int, int, int],
    rng: random.Random,
) -> Image.Image:
    """Draw a scene: its things side by side or stacked, each slightly off centre."""
    canvas = Image.new("RGB", (scene.width, scene.height), paper)
    wide = scene.width >= scene.height
    cells = len(scene.names)
    cell = (scene.width // cells, scene.height) if wide else (scene.width, scene.height // cells)
    for index, name in enumerate(scene.names):
        side = round(min(cell) * rng.uniform(0.90, 0.97))
        slack = max(1, round(min(cell) * 0.03))
        left = (cell[0] - side) // 2 + rng.randint(-slack, slack) + (cell[0] * index if wide else 0)
        top = (cell[1] - side) // 2 + rng.randint(-slack, slack) + (0 if wide else cell[1] * index)
        icon = collection.draw(name, side, ink)
        canvas.paste(icon, (left, top), icon)
    return canvas


def article(name: str) -> str:
    """Return a thing's name with its article for a caption: `an owl`, `a fox`; plurals get none."""
    if name in {"grapes", "cherries", "french fries", "scissors", "jeans"}:
        return name
    return f"an {name}" if name[0] in "aeiou" and name != "unicorn" else f"a {name}"


def base_scenes(rng: random.Random, pairs: int) -> list[Scene]:
    """Return the base set: each thing on 12 square canvases, a wide and a tall one, in pairs."""
    scenes = []
    for name in NAMES:
        templates = 3 * ("{}", "{a}", "an image of {a}", "{}, white background")
        scenes += [Scene((name,), 128, 128, t.format(name, a=article(name))) for t in templates]
        scenes.append(Scene((name,), 160, 96, article(name)))
        scenes.append(Scene((name,), 96, 160, name))
    for index in range(pairs):
        first, second = rng.sample(NAMES, 2)
        size = (192, 96) if index % 2 == 0 else (96, 192)
        scenes.append(Scene((first, second), *size, f"{article(first)} and {article(second)}"))
    return scenes


def demo_scenes(rng: random.Random, count: int) -> list[Scene]:
    """Return the demo set: `count` scenes of things not held out, on canvases of seven shapes."""
    usable = [name for name in NAMES if name not in HELD_OUT and name not in COLOUR_ONLY]
    rng.shuffle(usable)
    singles = [(256, 256), (256, 256), (320, 192), (192, 320), (256, 256), (288, 216), (216, 288)]
    doubles = [(384, 192), (192, 384)]
    scenes: list[Scene] = []
    for index in range(count):
        if index % 4 == 3:
            names = (usable[index % len(usable)], usable[(index * 7 + 3) % len(usable)])
            size = doubles[(index // 4) % 2]
            caption = f"{article(names[0])} and {article(names[1])}"
        else:
            names = (usable[index % len(usable)],)
            size = singles[index % len(singles)]
            caption = article(names[0])
        scenes.append(Scene(names, *size, caption))
    return scenes


def heldout_scenes() -> list[Scene]:
    """Return one scene per held-out thing: the images that validation compares with."""
    shapes = [(256, 256), (320, 192), (192, 320)]
    return [
        Scene((name,), *shapes[index % 3], article(name)) for index, name in enumerate(HELD_OUT)
    ]
