"""Every kind of image file is read as the upright sRGB pixels that a viewer shows."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from impasto.data.pixels import images, opening
from impasto.data.records import Size

RED, GREEN, WHITE = (255, 0, 0), (0, 128, 0), (255, 255, 255)


def corner_picture() -> Image.Image:
    """Return a white image with a red top left corner, wider than high."""
    image = Image.new("RGB", (64, 32), WHITE)
    image.paste(RED, (0, 0, 16, 8))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    upright = corner_picture()
    inverse = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "p.png"
    stored.save(path, exif=exif)
    assert images.read_header(path)[0] == Size(64, 32)
    assert np.array_equal(np.asarray(images.read_rgb(path)), np.asarray(upright))


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 255, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.save(tmp_path / "p.png")
    pixels = np.asarray(images.read_rgb(tmp_path / "p.png"))
    assert tuple(pixels[0, 0]) == RED
    assert tuple(pixels[1, 1]) == WHITE


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=1)
    pixels = np.asarray(images.read_rgb(tmp_path / "p.png"))
    assert tuple(pixels[0, 0]) == RED
    assert tuple(pixels[0, 1]) == WHITE


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "p.png")
    pixels = np.asarray(images.read_rgb(tmp_path / "p.png"))
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "p.jpg", quality=100)
    red, green, blue = images.read_rgb(tmp_path / "p.jpg").getpixel((4, 4))
    assert red > 200
    assert green < 60
    assert blue < 60


def test_an_srgb_profile_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain, marked = io.BytesIO(), io.BytesIO()
    image = Image.new("RGB", (4, 4), (90, 120, 200))
    image.save(plain, format="PNG")
    image.save(marked, format="PNG", icc_profile=profile)
    (tmp_path / "a.png").write_bytes(plain.getvalue())
    (tmp_path / "b.png").write_bytes(marked.getvalue())
    first, second = (
        np.asarray(images.read_rgb(tmp_path / name)).astype(int) for name in ("a.png", "b.png")
    )
    assert abs(first - second).max() <= 1


def test_a_wide_gamut_profile_changes_pixels(tmp_path):
    display_p3 = _matrix_profile()
    Image.new("RGB", (4, 4), (200, 60, 60)).save(tmp_path / "p.png", icc_profile=display_p3)
    red, green, _ = images.read_rgb(tmp_path / "p.png").getpixel((0, 0))
    assert (red, green) != (200, 60)
    assert red > 200


def _matrix_profile() -> bytes:
    """Return sRGB's profile with the red colorant moved outwards: a wider gamut."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for index in range(count):
        entry = 132 + 12 * index
        if bytes(data[entry : entry + 4]) == b"rXYZ":
            offset = int.from_bytes(data[entry + 4 : entry + 8], "big") + 8
            data[offset : offset + 4] = int(0.52 * 65536).to_bytes(4, "big")
    return bytes(data)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    frames[0].save(tmp_path / "p.gif", save_all=True, append_images=frames[1:])
    assert images.read_rgb(tmp_path / "p.gif").getpixel((0, 0)) == RED


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp", ".bmp", ".gif", ".tiff", ".avif"])
def test_all_formats_are_read(tmp_path, extension):
    path = tmp_path / f"p{extension}"
    corner_picture().save(path)
    assert images.read_header(path)[0] == Size(64, 32)
    red, green, blue = images.read_rgb(path).getpixel((4, 2))
    assert red > 200
    assert green < 80
    assert blue < 80


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"no picture at all", "known format"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, content, reason):
    path = tmp_path / "p.jpg"
    path.write_bytes(content)
    with pytest.raises(images.UnreadableImageError, match=reason):
        images.read_header(path)


def test_a_truncated_picture_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "p.png")
    content = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(images.UnreadableImageError, match="truncated"):
        images.read_rgb(tmp_path / "p.png")


def test_a_decompression_bomb_is_refused(tmp_path):
    header = io.BytesIO()
    Image.new("1", (1, 1)).save(header, format="BMP")
    data = bytearray(header.getvalue())
    data[18:22] = (20000).to_bytes(4, "little")
    data[22:26] = (20000).to_bytes(4, "little")
    (tmp_path / "p.bmp").write_bytes(data)
    with pytest.raises(images.UnreadableImageError, match="megapixels"):
        images.read_header(tmp_path / "p.bmp")


def test_a_mask_on_a_transparent_ground_has_black_around_it(tmp_path):
    drawn = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    for x, grey, opacity in ((0, 255, 255), (1, 255, 128), (2, 100, 255)):
        drawn.putpixel((x, 0), (grey, grey, grey, opacity))
    drawn.save(tmp_path / "p.png")
    assert np.asarray(images.read_mask(tmp_path / "p.png")).tolist() == [[255, 128, 100, 0]]
    Image.new("L", (2, 1), 90).save(tmp_path / "q.png")
    assert np.asarray(images.read_mask(tmp_path / "q.png")).tolist() == [[90, 90]]


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_malformed_exif_costs_no_image(tmp_path, ending):
    path = tmp_path / f"p.{ending}"
    corner_picture().save(path, exif=b"Exif\0\0no TIFF at all")
    assert images.read_header(path) == (Size(64, 32), False)
    assert images.read_rgb(path).size == (64, 32)


def test_a_png_is_turned_as_its_xmp_says(tmp_path):
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    texts = PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", xmp)
    path = tmp_path / "p.png"
    corner_picture().save(path, pnginfo=texts)
    assert images.read_header(path) == (Size(32, 64), True)
    assert images.read_rgb(path).size == (32, 64)


def test_a_png_may_hold_megabytes_of_text(tmp_path):
    texts = PngInfo()
    texts.add_text("workflow", "node " * 600_000, zip=True)
    corner_picture().save(tmp_path / "p.png", pnginfo=texts)
    assert images.read_rgb(tmp_path / "p.png").size == (64, 32)


def test_a_heic_of_another_ending_is_read_as_one(tmp_path, monkeypatch):
    """The decoder is chosen by the file's first bytes, whatever was read before."""
    (tmp_path / "p.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    asked = []

    def registers():
        asked.append(1)
        return len(asked) > 1

    monkeypatch.setattr(opening, "register_heif", registers)
    with pytest.raises(images.UnreadableImageError, match="pillow-heif") as raised:
        images.read_rgb(tmp_path / "p.jpg")
    assert raised.value.is_transient
    with pytest.raises(images.UnreadableImageError, match="known format"):  # the image is damaged
        images.read_rgb(tmp_path / "p.jpg")
    assert len(asked) == 2
