"""Pixels and weights of planned images, and their random changes at each showing."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from impasto.data.loading.augmentation import Face, face_in_name, render_augmented
from impasto.data.pixels.images import UnreadableImageError
from impasto.data.pixels.rendering import render
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import scan_folder
from impasto.data.subsets import Augmentation, MaskRules, Subset


def planned(folder, subset=None, side=64, **options):
    subset = subset or Subset(root=folder)
    records = scan_folder(folder, subset=subset).records
    return plan_images(
        records, Size(side, side), rules=BucketRules(enable_bucket=False, **options)
    ).images[0]


def gradient(width, height):
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    """Compared with decoding the whole image, as plain Pillow does."""
    Image.fromarray(gradient(1600, 1200)).save(tmp_path / "a.jpg", quality=95)
    image = planned(tmp_path)
    whole = Image.open(tmp_path / "a.jpg").resize(image.resized.wh, Image.Resampling.LANCZOS)
    expected = np.asarray(whole.crop(image.crop.ltrb), dtype=float)
    assert np.abs(render(image).pixels - expected).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_decoded_small_too(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(gradient(1200, 800)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    image = planned(tmp_path)
    assert image.record.rotated == (orientation > 1)
    from PIL import ImageOps

    whole = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))
    expected = whole.resize(image.resized.wh, Image.Resampling.LANCZOS).crop(image.crop.ltrb)
    assert np.abs(render(image).pixels - np.asarray(expected, dtype=float)).max() <= 4


@pytest.mark.parametrize("name", ["lanczos", "nearest", "bilinear", "bicubic", "area"])
def test_the_interpolation_is_the_one_asked_for(tmp_path, name):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    filters = {"area": "BOX"}
    wanted = Image.Resampling[filters.get(name, name.upper())]
    pixels = render(planned(tmp_path, Subset(root=tmp_path, interpolation=name))).pixels
    expected = Image.open(tmp_path / "a.png").resize((64, 64), wanted)
    np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_opacity_and_a_drawn_mask_are_weights_by_cell(tmp_path):
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:, :32, 3] = 255
    pixels[:8, 32:40, 3] = 128
    Image.fromarray(pixels).save(tmp_path / "a.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    drawn = np.full((128, 128), 255, dtype=np.uint8)
    drawn[64:] = 0
    Image.fromarray(drawn).save(masks / "a.jpg", quality=100)
    rules = {
        "opacity": MaskRules(alpha=True),
        "drawn": MaskRules(folder=masks),
        "both": MaskRules(alpha=True, folder=masks),
    }
    found = {}
    for name, rule in rules.items():
        mask = render(planned(tmp_path, Subset(root=tmp_path, masks=rule))).mask
        assert mask.shape == (8, 8)
        found[name] = mask / 255
    opacity = np.zeros((8, 8))
    opacity[:, :4] = 1
    opacity[0, 4] = 128 / 255
    half = np.zeros((8, 8))
    half[:4] = 1
    np.testing.assert_allclose(found["opacity"], opacity, atol=0.01)
    np.testing.assert_allclose(found["drawn"], half, atol=0.02)
    np.testing.assert_allclose(found["both"], opacity * half, atol=0.02)


def test_the_folder_of_masks_is_not_a_folder_of_pictures(tmp_path):
    for path in (tmp_path / "a.png", tmp_path / "masks" / "a.png"):
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (64, 64), 255).save(path)
    subset = Subset(root=tmp_path, masks=MaskRules(folder=tmp_path / "masks"))
    assert [r.name for r in scan_folder(tmp_path, subset=subset).records] == ["a.png"]


def test_a_mask_of_another_shape_is_named(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (64, 32)).save(tmp_path / "masks" / "a.png")
    subset = Subset(root=tmp_path, masks=MaskRules(folder=tmp_path / "masks"))
    with pytest.raises(UnreadableImageError, match=r"its mask .*a\.png is 64x32, but the image"):
        render(planned(tmp_path, subset))


def crops(image, rules, count=60):
    """Return many showings of an image."""
    return [render_augmented(image, rules, 1, epoch, "a").pixels for epoch in range(count)]


def test_random_crops_reach_all_places_and_repeat_by_seed(tmp_path):
    Image.fromarray(gradient(256, 64)).save(tmp_path / "a.png")
    image = planned(tmp_path)
    shown = crops(image, Augmentation(random_crop=True))
    lefts = [int(pixels[0, 0, 0]) for pixels in shown]
    assert min(lefts) < 15
    assert max(lefts) > 176  # 192 of 255 is the last position
    assert len(set(lefts)) > 20
    again = crops(image, Augmentation(random_crop=True))
    assert all(np.array_equal(a, b) for a, b in zip(shown, again, strict=True))


def test_colours_shift_in_a_third_of_the_showings_and_little(tmp_path):
    Image.fromarray(gradient(64, 64)).save(tmp_path / "a.png")
    image = planned(tmp_path)
    plain = render(image).pixels.astype(int)
    shown = crops(image, Augmentation(color=True), 200)
    changed = [pixels for pixels in shown if not np.array_equal(pixels, plain)]
    assert 0.2 < len(changed) / 200 < 0.45
    brightness = [abs(pixels.mean() - plain.mean()) for pixels in changed]
    assert 0 < max(brightness) < 12


@pytest.mark.parametrize(
    ("name", "face"),
    [
        ("cat_300_200_80_90.png", Face(300, 200, Size(80, 90))),
        ("a_b_10_20_30_40.jpg", Face(10, 20, Size(30, 40))),
        ("cat_300_200_80.png", None),
        ("cat.png", None),
        ("cat_1_2_0_0.png", None),
    ],
)
def test_faces_in_names(tmp_path, name, face):
    assert face_in_name(tmp_path / name) == face


def test_a_crop_around_a_face_holds_it_at_the_wanted_size(tmp_path):
    pixels = np.zeros((600, 800, 3), dtype=np.uint8)
    pixels[130:170, 580:620] = (255, 0, 0)  # a face of 40x40 at (600, 150)
    Image.fromarray(pixels).save(tmp_path / "a_600_150_40_40.png")
    image = planned(tmp_path)
    shares = []
    for shown in crops(image, Augmentation(face_crop_range=(2.0, 4.0)), 40):
        red = shown[..., 0] > 128
        assert red.any()
        rows, columns = np.where(red)
        shares.append(64 / (columns.max() - columns.min() + 1))
        assert abs(columns.mean() - 31.5) < 3
        assert abs(rows.mean() - 31.5) < 3
    assert 1.7 < min(shares) < 2.6
    assert 3.2 < max(shares) < 4.6


def test_a_face_is_never_enlarged_past_the_picture(tmp_path):
    pixels = gradient(128, 128)
    Image.fromarray(pixels).save(tmp_path / "a_64_64_4_4.png")
    image = planned(tmp_path)
    for shown in crops(image, Augmentation(face_crop_range=(1.0, 1.0)), 3):
        assert int(shown[0, -1, 0]) - int(shown[0, 0, 0]) == pytest.approx(127, abs=4)


def test_a_picture_that_is_not_what_it_was_is_named(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    image = planned(tmp_path)
    wrong = replace(image, record=replace(image.record, size=Size(70, 64)))
    with pytest.raises(UnreadableImageError, match="64x64, but its header says 70x64"):
        render(wrong)
