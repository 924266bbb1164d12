"""An own crop equals an image that another program has cut, in all later steps."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from impasto.data.pixels.cuts import crop_file, write_cut
from impasto.data.pixels.rendering import render
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Box, Size
from impasto.data.scanning.scan import scan_folder
from impasto.data.subsets import MaskRules, Subset

RULES = BucketRules(min_side=32, max_side=256, step=32)


def noise(size, seed, channels=4):
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], channels)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)[..., : channels or 1])


@st.composite
def cuts(draw):
    width, height = draw(st.integers(16, 300)), draw(st.integers(16, 300))
    wide, high = draw(st.integers(8, width)), draw(st.integers(8, height))
    x, y = draw(st.integers(0, width - wide)), draw(st.integers(0, height - high))
    return (width, height), (x, y, wide, high)


def only_plan(folder, masks=None, **options):
    rules = MaskRules(alpha=True, folder=masks)
    subset = Subset(root=folder, masks=rules, **options)
    (record,) = scan_folder(folder, subset=subset).records
    return plan_images([record], Size(96, 96), rules=RULES).images[0]


@settings(max_examples=60, deadline=None)
@given(cuts(), st.sampled_from(["lanczos", "area", "nearest"]), st.integers(1, 8))
def test_pixels_weights_and_geometry_are_those_of_an_image_cut_by_pillow(case, filter_, turned):
    """At each EXIF orientation the rectangle refers to the upright image."""
    (width, height), (x, y, wide, high) = case
    upright, mask = noise((width, height), 1), noise((width, height), 2, 3).convert("L")
    back = {1: None, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[turned]
    stored = upright if back is None else ImageOps.exif_transpose(tagged(upright, back))
    exif = Image.Exif()
    exif[0x0112] = turned
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folder in ("own", "own-masks", "cut", "cut-masks"):
            (root / folder).mkdir()
        stored.save(root / "own" / "a.png", exif=exif, compress_level=0)
        write_cut(root / "own" / "a.png", Size(width, height), Box(x, y, Size(wide, high)))
        mask.save(root / "own-masks" / "a.png", compress_level=0)
        part = (x, y, x + wide, y + high)
        upright.crop(part).save(root / "cut" / "a.png", compress_level=0)
        mask.crop(part).save(root / "cut-masks" / "a.png", compress_level=0)
        own = only_plan(root / "own", root / "own-masks", interpolation=filter_)
        expected = only_plan(root / "cut", root / "cut-masks", interpolation=filter_)
        assert own.record.whole == Size(width, height)
        for mirrored in (False, True):
            assert own.geometry(mirrored=mirrored) == expected.geometry(mirrored=mirrored)
        assert (own.bucket, own.resized, own.crop) == (
            expected.bucket, expected.resized, expected.crop,
        )  # fmt: skip
        ours, theirs = render(own), render(expected)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        np.testing.assert_array_equal(ours.mask, theirs.mask)


def tagged(image, orientation):
    """Return the image with an orientation that Pillow will undo."""
    copy = image.copy()
    copy.getexif()[0x0112] = orientation
    return copy


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["image_width", "image_height", "x", "y", "width", "height"]), inner),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_whatever_the_file_holds_the_image_is_cut_or_skipped_with_a_reason(content):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        noise((40, 30), 0).save(root / "a.png")
        noise((40, 30), 0).save(root / "b.png")
        crop_file(root / "a.png").write_bytes(content)
        scan = scan_folder(root)
        if len(scan.records) == 2:
            assert scan.records[0].cut.whole == Size(40, 30)
            return
        (skipped,) = scan.skipped
        assert skipped.path == root / "a.png"
        assert "its crop a.png.crop.json" in skipped.reason


@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_mask_of_another_size_is_cut_at_the_same_place(tmp_path, factor):
    (tmp_path / "set").mkdir()
    (tmp_path / "masks").mkdir()
    noise((200, 100), 0).convert("RGB").save(tmp_path / "set" / "a.png")
    write_cut(tmp_path / "set" / "a.png", Size(200, 100), Box(100, 0, Size(96, 96)))
    mask = Image.new("L", (int(200 * factor), int(100 * factor)))
    mask.paste(255, (int(148 * factor), 0, mask.width, mask.height))
    mask.save(tmp_path / "masks" / "a.png")
    weights = render(only_plan(tmp_path / "set", tmp_path / "masks")).mask
    assert weights[:, :5].max() == 0
    assert weights[:, 7:].min() == 255
