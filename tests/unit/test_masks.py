"""Masks are found with any suffix, are part of a run's identity, and reported if unused.

If one of these failed, the loss would silently include masked areas.
"""

import pytest
from PIL import Image

from impasto.data.caching.latent_cache import CachedPlan, LatentKeys
from impasto.data.folders.masks import mask_file
from impasto.data.loading.augmentation import Augmentation
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import join_scans, scan_folder
from impasto.data.subsets import MaskRules, Subset
from impasto.progress import SilentProgress
from impasto.training.fingerprints.data_fingerprint import data_fingerprint


def drawn(path, color=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (64, 64), color).save(path, format="PNG")
    return path


def scan_of(root, masks, **options):
    subset = Subset(root=root, masks=MaskRules(folder=masks), **options)
    return scan_folder(root, subset=subset)


@pytest.mark.parametrize(
    "name", ["a.png", "a.PNG", "a.Jpg", "a.tif", "a.TIFF", "a.gif", "sub/../a.bmp", "a.webp"]
)
def test_a_mask_of_any_ending_is_found(tmp_path, name):
    drawn(tmp_path / "set" / "a.png")
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    mask = drawn((tmp_path / "masks" / name).resolve())
    record = scan_of(tmp_path / "set", tmp_path / "masks").records[0]
    assert mask_file(record) == mask


def test_the_mask_of_the_whole_path_comes_first(tmp_path):
    drawn(tmp_path / "set" / "sub" / "a.png")
    masks = tmp_path / "masks"
    bare = drawn(masks / "a.png")
    record = scan_of(tmp_path / "set", masks).records[0]
    assert mask_file(record) == bare
    own = drawn(masks / "sub" / "a.TIF")
    assert mask_file(record) == own
    usual = drawn(masks / "sub" / "a.png")
    assert mask_file(record) == usual


def test_an_image_outside_of_its_folder_is_not_its_own_mask(tmp_path):
    drawn(tmp_path / "set" / "a.png")
    (tmp_path / "masks").mkdir()
    subset = Subset(root=tmp_path / "elsewhere", masks=MaskRules(folder=tmp_path / "masks"))
    record = scan_folder(tmp_path / "set", subset=subset).records[0]
    assert mask_file(record) is None


def test_masks_that_are_not_used_are_named(tmp_path):
    masks = tmp_path / "masks"
    for name in ("a", "b"):
        drawn(tmp_path / "set" / f"{name}.png")
    (tmp_path / "set" / "c.png").write_bytes(b"damaged")
    for name in ("a.png", "a.bmp", "B_mask.png", "c.png", "sub/d.png"):
        drawn(masks / name)
    (masks / "b.psd").write_bytes(b"8BPS")
    (masks / "notes.txt").write_text("x", encoding="utf-8")
    scan = join_scans([scan_of(tmp_path / "set", masks)])
    named = [item.path.relative_to(masks).as_posix() for item in scan.unused]
    assert named == ["B_mask.png", "a.bmp", "b.psd", "sub/d.png"]
    assert any("a mask that is not used" in line for line in scan.describe_unused())


def test_a_mask_of_another_subset_is_used(tmp_path):
    masks = tmp_path / "masks"
    for name in ("a", "b"):
        drawn(tmp_path / name / f"{name}.png")
        drawn(masks / f"{name}.PNG")
    scan = join_scans([scan_of(tmp_path / name, masks) for name in ("a", "b")])
    assert scan.unused == ()


def test_the_masks_of_augmented_images_are_in_the_fingerprint(tmp_path):
    """Latents of augmented images are not cached, so no cache key records which mask was used."""
    drawn(tmp_path / "set" / "a.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    asked = []

    def fingerprint():
        records = scan_of(
            tmp_path / "set", masks, augmentation=Augmentation(True, False, None)
        ).records
        images = plan_images(records, Size(64, 64), rules=BucketRules(enable_bucket=False)).images
        plan = CachedPlan(tuple(images), tuple(LatentKeys() for _ in images), (), 0)

        def digests(stamps):
            from impasto.data.pixels.content_hashes import ContentHashes

            asked.append(sorted(path.name for path in stamps))
            return ContentHashes(tmp_path / "hashes.json").of(stamps, SilentProgress())

        return data_fingerprint(plan, digests)

    without = fingerprint()
    drawn(masks / "a.tif", 10)
    first = fingerprint()
    drawn(masks / "a.tif", 200)
    second = fingerprint()
    assert len({without, first, second}) == 3
    assert fingerprint() == second
    assert asked[-1] == ["a.png", "a.tif"]
