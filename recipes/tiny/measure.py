"""Measure prompt adherence and draw the sample sheet of a tiny base model.

For 64 prompts with one sample each, the nearest of the 171 training icons (mean squared error at
32x32 pixels, over small shifts) should be the one that the prompt names.

    python recipes/tiny/measure.py WORK/node_modules/@iconify-json WORK/base/export sheet.png
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from pictures import NAMES, Collection, Scene, article, paint
from PIL import Image, ImageDraw

from impasto.models.networks.loading import load_base_model
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler

SIDE = 32


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32) / 255


def icons(noto: Collection) -> dict[str, np.ndarray]:
    """Return thumbnails of each thing as the training set draws it, shifted by up to one pixel."""
    drawn = {}
    for name in NAMES:
        scene = Scene((name,), 128, 128, name)
        plain = thumbnail(paint(scene, noto, (255, 255, 255), (0, 0, 0), random.Random(0)))
        shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        drawn[name] = np.stack([np.roll(plain, shift, (0, 1)) for shift in shifts])
    return drawn


def nearest(image: Image.Image, drawn: dict[str, np.ndarray]) -> str:
    picture = thumbnail(image)
    return min(drawn, key=lambda name: np.square(drawn[name] - picture).mean((1, 2, 3)).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("icons", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--guidance", type=float, default=2.0)
    options = parser.parse_args()
    sampler = Sampler.of(load_base_model(options.model))
    drawn = icons(Collection.load(options.icons / "noto"))
    names = random.Random(64).sample(NAMES, 64)
    sheet = Image.new("RGB", (8 * 132, 8 * 146), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    right = 0
    for index, name in enumerate(names):
        prompt = Prompt(article(name), "", index, 128, 128, 20, options.guidance)
        image = sampler.draw(prompt)
        found = nearest(image, drawn)
        right += found == name
        place = (index % 8 * 132, index // 8 * 146)
        sheet.paste(image, (place[0], place[1] + 14))
        pen.text(place, name, fill=(20, 20, 20) if found == name else (200, 0, 0))
        if found != name:
            print(f"the prompt names {name}, but {found} is nearest")
    sheet.save(options.sheet)
    print(f"{right} of {len(names)} samples are nearest to the thing that their prompt names")


if __name__ == "__main__":
    main()
