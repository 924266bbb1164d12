"""Perceptual hashes: those of the ImageHash library, which caches of earlier versions contain."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from impasto.data.inspecting.likeness import NEAR_DUPLICATE_BITS, perceptual_hash
from impasto.demo.recipe import PICTURES

RECORDED = json.loads(
    (Path(__file__).parents[1] / "golden" / "data" / "perceptual_hashes.json").read_text()
)["hashes"]
SHAPES = {
    "flat": lambda x, y, _: x * 0 + y * 0 + 128,
    "ramp": lambda x, y, side: (x * 255) // side + 0 * y,
    "rings": lambda x, y, side: ((x - side // 3) ** 2 + (y - side // 2) ** 2) // 7 % 256,
    "checks": lambda x, y, _: ((x // 7 + y // 5) % 2) * 200 + 20,
    "mixed": lambda x, y, _: (x * x * 3 + y * 7 + x * y) % 256,
    "symmetric": lambda x, y, side: (np.abs(x * 2 - side + 1) * 255) // side + 0 * y,
}


def drawn(kind: str, side: int) -> Image.Image:
    y, x = np.mgrid[0:side, 0:side].astype(np.int64)
    red = SHAPES[kind](x, y, side).astype(np.uint8)
    planes = [red, np.roll(red, side // 4, 0), np.roll(red, side // 5, 1)]
    return Image.fromarray(np.stack(planes, axis=-1))


@pytest.mark.parametrize("name", [name for name in RECORDED if not name.endswith(".webp")])
def test_hashes_of_drawn_images_equal_imagehash(name):
    kind, _, side = name.partition("-")
    assert f"{perceptual_hash(drawn(kind, int(side))):016x}" == RECORDED[name]


def test_hashes_of_the_demos_images_equal_imagehash():
    found = {}
    for file in sorted(PICTURES.glob("*.webp")):
        with Image.open(file) as image:
            found[file.name] = f"{perceptual_hash(image.convert('RGB')):016x}"
    assert found == {name: h for name, h in RECORDED.items() if name.endswith(".webp")}
    assert len(found) == 100


def test_a_smaller_copy_is_near_and_another_image_is_not():
    whole = drawn("rings", 257)
    small = whole.resize((120, 120), Image.Resampling.LANCZOS)
    far = drawn("mixed", 257)
    assert (perceptual_hash(whole) ^ perceptual_hash(small)).bit_count() <= NEAR_DUPLICATE_BITS
    assert (perceptual_hash(whole) ^ perceptual_hash(far)).bit_count() > NEAR_DUPLICATE_BITS
