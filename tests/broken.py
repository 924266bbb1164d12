"""Sixty damaged and unusual files, as found in real folders, and how each should be read."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

USABLE = ""


def noise(width=64, height=64, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (height, width, channels), dtype=np.uint8).squeeze()


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def make_broken_images(folder: Path) -> dict[str, str]:
    """Fill `folder`; return file name -> a part of the reason for skipping it, or USABLE."""
    folder.mkdir(parents=True)
    maker = _Maker(folder)
    for part in (_damaged, _odd_kinds, _odd_forms, _odd_names, _odd_places):
        part(maker)
    return maker.expected


class _Maker:
    def __init__(self, folder: Path) -> None:
        self.folder, self.expected = folder, {}

    def put(self, name: str, content: bytes, expected: str = USABLE) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.expected[name] = expected

    def draw(self, name: str, image: Image.Image, form: str, **options) -> None:
        self.put(name, encoded(image, form, **options))


def _damaged(maker):
    whole = {
        "jpg": encoded(Image.fromarray(noise()), "JPEG"),
        "png": encoded(Image.fromarray(noise()), "PNG"),
        "webp": encoded(Image.fromarray(noise()), "WEBP", lossless=True),
        "bmp": encoded(Image.fromarray(noise()), "BMP"),
        "gif": encoded(Image.fromarray(noise()).convert("P"), "GIF"),
        "tif": encoded(Image.fromarray(noise()), "TIFF"),
    }
    for ending, content in whole.items():
        maker.put(f"zero.{ending}", b"", "the file is empty")
        maker.put(f"half.{ending}", content[: len(content) // 2], " ")
    maker.put("head.jpg", whole["jpg"][:30], " ")
    maker.put("head.png", whole["png"][:12], " ")
    maker.put("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page")
    maker.put("page2.png", b"  \n<html><body>no</body></html>", "an HTML page")
    maker.put("words.png", b"this is not a picture\n" * 9, "not an image")
    maker.put("zeros.webp", bytes(4096), "not an image")
    flipped = bytearray(whole["png"])
    flipped[len(flipped) // 2] ^= 0xFF
    maker.put("bit.png", bytes(flipped), " ")
    cut = whole["png"][:8] + b"\x00\x00\x00\x0dXXXX" + whole["png"][16:]
    maker.put("chunk.png", cut, " ")


def _odd_kinds(maker):
    rgb = Image.fromarray(noise())
    maker.draw("cmyk.jpg", rgb.convert("CMYK"), "JPEG")
    maker.draw("grey.jpg", rgb.convert("L"), "JPEG")
    maker.draw("one-bit.png", rgb.convert("1"), "PNG")
    maker.draw("palette.png", rgb.convert("P"), "PNG")
    maker.draw("palette-alpha.png", rgb.convert("P"), "PNG", transparency=3)
    maker.draw("alpha.png", Image.fromarray(noise(channels=4)), "PNG")
    maker.draw("grey-alpha.png", Image.fromarray(noise(channels=2), "LA"), "PNG")
    wide = Image.fromarray(np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16))
    maker.draw("sixteen.png", wide, "PNG")
    maker.draw("sixteen.tif", wide, "TIFF")
    ramp = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    maker.draw("float.tif", Image.fromarray(ramp), "TIFF")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    maker.draw("profile.png", rgb, "PNG", icc_profile=profile)
    maker.draw("bad-profile.png", rgb, "PNG", icc_profile=b"not a profile")
    frames = [Image.fromarray(noise(seed=n)).convert("P") for n in range(3)]
    maker.draw("moving.gif", frames[0], "GIF", save_all=True, append_images=frames[1:])
    maker.draw("moving.webp", rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)])
    maker.draw("moving.png", rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)])


def _odd_forms(maker):
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = Image.fromarray(noise(96, 64, seed=orientation))
        maker.draw(f"exif{orientation}.jpg", picture, "JPEG", exif=exif)
    maker.draw("dot.png", Image.new("RGB", (1, 1)), "PNG")
    maker.draw("line.png", Image.new("RGB", (20000, 1)), "PNG")
    maker.draw("column.png", Image.new("RGB", (1, 20000)), "PNG")
    bomb = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # 3.6 gigapixels according to the header
    import zlib

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    maker.put("bomb.png", bytes(bomb), "megapixels")
    maker.put("wrong.png", encoded(Image.fromarray(noise(seed=9)), "JPEG"))
    maker.put("wrong.jpg", encoded(Image.fromarray(noise(seed=8)), "PNG"))


def _odd_names(maker):
    names = [
        "größe 猫 🐈.png",
        "brackets (1) [2] {3}.png",
        "many.dots.in.it.png",
        "UPPER.PNG",
        "percent %20 & #.png",
        "-dash.png",
        "a" * 200 + ".png",
        "deep/er/and/deeper/x.png",
    ]
    for number, name in enumerate(names):
        maker.draw(name, Image.fromarray(noise(seed=20 + number)), "PNG")
    maker.draw("twin.png", Image.fromarray(noise(seed=40)), "PNG")
    maker.draw("twin.jpg", Image.fromarray(noise(seed=41)), "JPEG")
    maker.draw("latin.png", Image.fromarray(noise(seed=42)), "PNG")
    (maker.folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    maker.expected["latin.png"] = "not UTF-8"


def _odd_places(maker):
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        (maker.folder / "loop.png").symlink_to(maker.folder / "loop.png")
        maker.expected["loop.png"] = "cannot be read"
        (maker.folder / "gone.png").symlink_to(maker.folder / "nowhere.png")
        maker.expected["gone.png"] = "cannot be read"
        (maker.folder / "deep" / "round").symlink_to(maker.folder, target_is_directory=True)
    if os.geteuid() != 0:  # root can read every file
        maker.draw("locked.png", Image.fromarray(noise(seed=50)), "PNG")
        (maker.folder / "locked.png").chmod(0)
        maker.expected["locked.png"] = "cannot be read"
