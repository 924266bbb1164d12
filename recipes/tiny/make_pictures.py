"""Write the image sets: `base/` for training the base model, `demo/` and `heldout/` to ship.

npm install --prefix WORK @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-high-contrast@1.2.6
python recipes/tiny/make_pictures.py WORK/node_modules/@iconify-json WORK/pictures
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from pictures import (
    INK,
    PAPER,
    WHITE,
    Collection,
    Scene,
    base_scenes,
    demo_scenes,
    heldout_scenes,
    paint,
)


def write_set(
    folder: Path,
    scenes: list[Scene],
    collection: Collection,
    *,
    paper: tuple[int, int, int],
    ink: tuple[int, int, int],
    suffix: str,
) -> None:
    """Draw each scene into `folder`, with its caption in a `.txt` file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    for index, scene in enumerate(scenes):
        path = folder / f"{index:04d}-{scene.stem}{suffix}"
        options = {"quality": 90, "method": 6} if suffix == ".webp" else {"optimize": True}
        paint(scene, collection, paper, ink, rng).save(path, **options)
        path.with_suffix(".txt").write_text(scene.caption + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "icons", type=Path, help="folder with noto/ and fluent-emoji-high-contrast/"
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=1200)
    parser.add_argument("--demo-pictures", type=int, default=100)
    options = parser.parse_args()
    noto = Collection.load(options.icons / "noto")
    print_style = Collection.load(options.icons / "fluent-emoji-high-contrast")
    base = base_scenes(random.Random(1), options.pairs)
    write_set(options.out / "base", base, noto, paper=WHITE, ink=(0, 0, 0), suffix=".png")
    demo = demo_scenes(random.Random(2), options.demo_pictures)
    for folder, scenes in (("demo", demo), ("heldout", heldout_scenes())):
        write_set(options.out / folder, scenes, print_style, paper=PAPER, ink=INK, suffix=".webp")


if __name__ == "__main__":
    main()
