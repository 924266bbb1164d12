"""An unusual file never stops a folder: it is used, skipped by name, or reported."""

import contextlib
import errno
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from impasto.config.load import build_dataset_config
from impasto.data.folders import formats
from impasto.data.folders.listing import Sidecars
from impasto.data.pixels import images
from impasto.data.scanning.scan import decode_all, scan_folder
from impasto.datasets.build import scan_all
from impasto.errors import DatasetError
from impasto.invocation import install_extra

posix = pytest.mark.skipif(os.name != "posix", reason="FIFOs and links are POSIX's")


def picture(path, size=(16, 8), words=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 30)).save(path, **options)
    if words is not None:
        path.with_suffix(".txt").write_text(words, encoding="utf-8")
    return path


def reasons(scan):
    return {item.path.name: item.reason for item in scan.skipped}


def remarks(scan):
    return {item.path.name: item.reason for item in scan.unused}


def words(scan):
    return {record.path.name: record.caption_text for record in scan.records}


@pytest.fixture
def folder(tmp_path):
    picture(tmp_path / "set" / "good.png", words="a cat")
    return tmp_path / "set"


@contextlib.contextmanager
def taking_any_name():
    """Create files with names that are not UTF-8, if the file system allows them."""
    try:
        yield
    except OSError as error:
        assert error.errno in {errno.EILSEQ, errno.EINVAL, errno.ENOENT}  # noqa: PT017
        pytest.skip("this file system allows UTF-8 names only")


@pytest.mark.parametrize("name", [b"\x92\xb1.png", b"\x92\xb1"])
def test_a_name_that_is_not_utf8_is_skipped(folder, tmp_path, name):
    odd = os.fsencode(folder) + b"/" + name
    with taking_any_name():
        if name.endswith(b".png"):
            with open(odd, "wb") as file:  # noqa: PTH123 - a name in bytes
                file.write((folder / "good.png").read_bytes())
        else:
            os.mkdir(odd)  # noqa: PTH102 - a name in bytes
    index = tmp_path / "scan.json"
    for _ in range(2):
        scan = scan_folder(folder, index=index)
        assert list(words(scan)) == ["good.png"]
        (item,) = scan.skipped
        assert "not UTF-8" in item.reason
        assert str(item.path).endswith(name.decode("utf-8", "backslashreplace"))


@posix
def test_a_working_directory_that_is_not_utf8_is_named(tmp_path, monkeypatch):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/w\x92")
    with taking_any_name():
        os.mkdir(odd)  # noqa: PTH102 - not text
    monkeypatch.chdir(odd)
    picture(Path("set") / "good.png")
    with pytest.raises(DatasetError, match=r"w\\x92/set is not UTF-8"):
        scan_all(build_dataset_config({"image_dir": "set"}, source="test"))


@posix
@pytest.mark.parametrize("kind", ["fifo", "device", "link to nothing", "folder", "words"])
def test_what_is_no_regular_file_is_not_opened(folder, kind):
    odd = folder / "odd.png"
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    elif kind == "link to nothing":
        odd.symlink_to("nowhere.png")
    elif kind == "folder":
        picture(odd / "inner.txt.png", words="inside")
    else:
        picture(odd)
        os.mkfifo(odd.with_suffix(".txt"))
    scan = scan_folder(folder)
    if kind == "folder":
        assert set(words(scan)) == {"good.png", "inner.txt.png"}
    else:
        assert set(words(scan)) == {"good.png"}
        assert set(reasons(scan)) == {"odd.png"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".tif", ".jpg", ".png", ".webp", ".avif"])
def test_every_orientation_of_every_format_is_used(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = picture(tmp_path / f"a{ending}", (64, 32), exif=exif)
    (record,) = decode_all(scan_folder(tmp_path)).records
    assert record.size.wh == ((32, 64) if orientation > 4 else (64, 32))
    assert images.read_rgb(path).size == record.size.wh


def test_damage_of_every_format_is_a_reason(folder):
    for ending in (".avif", ".webp", ".jpg", ".png", ".tif", ".gif"):
        path = picture(folder / f"cut{ending}", (64, 64))
        path.write_bytes(path.read_bytes()[:-40])
        zeroed = picture(folder / f"zeroed{ending}", (64, 64))
        zeroed.write_bytes(b"\0" * 300)
    scan = decode_all(scan_folder(folder))
    assert "good.png" in words(scan)
    assert {f"zeroed{e}" for e in (".avif", ".png")} <= reasons(scan).keys()
    assert "only zeros" in reasons(scan)["zeroed.png"]
    assert "cut.png" in reasons(scan)


def test_a_decoder_that_raises_anything_is_a_reason(folder, monkeypatch):
    """Pillow's AVIF plugin raises RuntimeError for damaged files."""

    def fail(*_):
        raise RuntimeError("Failed to decode frame 0: Invalid argument")

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(images.UnreadableImageError, match="Failed to decode"):
        Image.init()
        path = folder / "g.gif"
        Image.new("P", (8, 8)).save(path)
        images.read_rgb(path)


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.linspace(0, 1, 256, dtype=np.float32), 255),
        (np.linspace(0, 255, 256, dtype=np.float32), 255),
        (np.linspace(0, 65535, 256, dtype=np.float32), 255),
        (np.arange(256, dtype=np.int32), 255),
        (np.arange(256, dtype=np.int32) * 257, 255),
        (np.linspace(0, 2**32 - 1, 256).astype(np.uint32).view(np.int32), 255),
    ],
    ids=["float to 1", "float to 255", "float to 65535", "8 in 32 bits", "16 in 32", "32 bits"],
)
def test_floating_point_and_32_bits_keep_their_tones(tmp_path, values, white):
    """Floating-point and 32-bit images were once read as all white or all black."""
    Image.fromarray(np.tile(values, (8, 1))).save(tmp_path / "a.tif")
    grey = np.asarray(images.read_rgb(tmp_path / "a.tif"))[0, :, 0].astype(int)
    assert grey[0] == 0
    assert grey[-1] == white
    assert abs(grey - np.arange(256)).max() <= 1


@pytest.mark.parametrize("values", [[np.nan, 1.0], [0.0, 5.0], [-1.0, 1.0], [0.0, 1e9]])
def test_floating_point_without_a_white_is_skipped(folder, values):
    Image.fromarray(np.array([values] * 4, dtype=np.float32)).save(folder / "hdr.tif")
    assert "floating-point" in reasons(decode_all(scan_folder(folder)))["hdr.tif"]


def test_names_of_jpeg_and_png_are_read(folder):
    for name in ("a.jfif", "b.jpe", "c.JIF", "d.jfi"):
        picture(folder / name, format="JPEG", words=name)
    picture(folder / "e.apng", format="PNG")
    picture(folder / "f.dib", format="BMP")
    assert len(decode_all(scan_folder(folder)).records) == 7


def test_heif_is_read_by_the_optional_package(folder, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    picture_of_it = pillow_heif.from_pillow(Image.new("RGB", (64, 32), (200, 10, 10)))
    for name in ("phone.heic", "camera.HIF"):
        picture_of_it.save(folder / "x.heic")
        (folder / "x.heic").rename(folder / name)
    assert len(decode_all(scan_folder(folder)).records) == 3
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.register_heif.cache_clear()
    try:
        found = reasons(scan_folder(folder))
    finally:
        monkeypatch.undo()
        formats.register_heif.cache_clear()
    assert set(found) == {"phone.heic", "camera.HIF"}
    assert install_extra("heif") in found["phone.heic"]


@pytest.mark.parametrize(
    "name", ["a.jxl", "b.PSD", "c.tga", "d.svg", "e.cr2", "f.jp2", "g.ico", "h.exr", "i.mp4"]
)
def test_images_that_are_not_read_are_skipped(folder, name):
    (folder / name).write_bytes(b"\xff\n" + b"\0" * 30)
    assert "is not read" in reasons(scan_folder(folder))[name]
    (folder / "good.png").unlink()
    with pytest.raises(DatasetError, match="is not read"):
        scan_folder(folder)


REMARKS = {
    "lost.txt": "without an image of its name",
    "lost.caption": "without an image of its name",
    "good.png.txt": "its image's extension is in its name",
    "good.tags": "set caption_extension to .tags",
    "good.json": "JSON beside an image",
    "metadata.jsonl": "give it as metadata_file",
    "meta_cap.json": "give it as metadata_file",
    "photo.png_large": "what follows its extension",
    "photo.jpg!d": "what follows its extension",
}


@pytest.mark.parametrize("name", REMARKS)
def test_what_looks_like_words_or_images_is_mentioned(folder, name):
    (folder / name).write_text("x", encoding="utf-8")
    scan = scan_folder(folder)
    assert REMARKS[name] in remarks(scan)[name]
    assert scan.tally.also_found == 1
    assert name in scan.describe_unused()[0]


def test_an_image_without_ending_is_mentioned_and_text_is_not(folder):
    (folder / "photo").write_bytes((folder / "good.png").read_bytes())
    (folder / "LICENSE").write_text("free", encoding="utf-8")
    (folder / "good.npz").write_bytes(b"x")
    assert set(remarks(scan_folder(folder))) == {"photo"}


@posix
def test_linked_folders_and_kohyas_repeats_are_mentioned(folder, tmp_path):
    picture(tmp_path / "elsewhere" / "x.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    picture(folder / "10_cat" / "y.png")
    picture(folder / "1_dog" / "z.png")
    scan = scan_folder(folder)
    assert set(words(scan)) == {"good.png", "y.png", "z.png"}
    found = remarks(scan)
    assert set(found) == {"link", "10_cat"}
    assert "num_repeats" in found["10_cat"]
    assert "not followed" in found["link"]
    picture(folder.parent / "20_bird" / "z.png")
    assert set(remarks(scan_folder(folder.parent / "20_bird"))) == {"20_bird"}


def test_sub_folders_that_are_not_entered_are_mentioned(folder):
    picture(folder / "sub" / "y.png")
    (folder / "empty").mkdir()
    found = remarks(scan_folder(folder, recursive=False))
    assert set(found) == {"sub"}
    assert "recursive" in found["sub"]


def test_words_are_found_in_another_letter_case_and_unicode_form(folder):
    picture(folder / "upper.PNG")
    (folder / "upper.TXT").write_text("upper", encoding="utf-8")
    apart = unicodedata.normalize("NFD", "café")
    picture(folder / f"{apart}.png")
    (folder / f"{unicodedata.normalize('NFC', 'café')}.Caption").write_text("x", encoding="utf-8")
    found = words(scan_folder(folder))
    assert found["upper.PNG"] == "upper"
    assert found[f"{apart}.png"] == "x"
    assert remarks(scan_folder(folder)) == {}


def test_the_exact_name_of_words_comes_first(folder):
    (folder / "good.TXT").write_text("other", encoding="utf-8")
    if len(list(folder.iterdir())) < 3:
        pytest.skip("this file system ignores letter case")
    scan = scan_folder(folder)
    assert words(scan)["good.png"] == "a cat"
    assert "another letter case" in remarks(scan)["good.TXT"]


def test_an_ending_of_captions_may_have_any_case_and_several_dots(folder):
    (folder / "good.TAGS").write_text("tags", encoding="utf-8")
    (folder / "good.wd14.txt").write_text("dots", encoding="utf-8")
    assert words(scan_folder(folder, sidecars=Sidecars(".tags", "")))["good.png"] == "tags"
    assert words(scan_folder(folder, sidecars=Sidecars(".TAGS", "")))["good.png"] == "tags"
    scan = scan_folder(folder, sidecars=Sidecars(".wd14.txt", ""))
    assert words(scan)["good.png"] == "dots"
    assert "caption_extension is .wd14.txt" in remarks(scan)["good.txt"]


def test_a_face_crop_has_the_words_of_its_whole_picture(folder):
    """A face crop gets its image's caption, as in kohya-ss/sd-scripts' `read_caption`."""
    picture(folder / "good_0010_0020_0030_0040.png")
    picture(folder / "good_1_2_3_4.png", words="its own")
    picture(folder / "good_a_b_c_d.png")
    assert words(scan_folder(folder)) == {
        "good.png": "a cat",
        "good_0010_0020_0030_0040.png": "a cat",
        "good_1_2_3_4.png": "its own",
        "good_a_b_c_d.png": "",
    }


def test_utf16_is_read_and_latin1_is_named(folder):
    picture(folder / "wide.png")
    (folder / "wide.txt").write_bytes("a house".encode("utf-16"))
    picture(folder / "latin.png")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    scan = scan_folder(folder)
    assert words(scan)["wide.png"] == "a house"
    assert reasons(scan) == {
        "latin.png": "its caption latin.txt is not UTF-8 text (byte 3); save it as UTF-8"
    }


def test_captions_keep_what_is_no_line_end(folder):
    (folder / "good.txt").write_text("a\u2028b\u0085c", encoding="utf-8")
    (folder / "good.caption").write_text("one\ntwo", encoding="utf-8")
    (record,) = scan_folder(folder).records
    assert record.caption_text == "one, a\u2028b\u0085c\ntwo, a\u2028b\u0085c"


def test_decoding_is_remembered_until_a_file_changes(folder, tmp_path, monkeypatch):
    memory = tmp_path / "decoded.json"
    path = picture(folder / "cut.jpg", (200, 200))
    path.write_bytes(path.read_bytes()[:700])
    assert "cut.jpg" in reasons(decode_all(scan_folder(folder), memory=memory))
    opened = []
    real = images.read_rgb
    monkeypatch.setattr(images, "read_rgb", lambda path: opened.append(path.name) or real(path))
    assert "cut.jpg" in reasons(decode_all(scan_folder(folder), memory=memory))
    assert opened == []
    picture(path, (300, 200))
    assert reasons(decode_all(scan_folder(folder), memory=memory)) == {}
    assert opened == ["cut.jpg"]
