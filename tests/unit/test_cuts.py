"""Own crops: their effect on scans, cache keys, sd-scripts' files, and training."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import impasto
from PIL import Image

from impasto.data.caching.latent_cache import CachedPlan, LatentKeys, latent_key, mask_key
from impasto.data.caching.npz import npz_candidates, read_npz
from impasto.data.engines.stages import Failure
from impasto.data.loading.augmentation import render_augmented
from impasto.data.pixels.cuts import crop_file, cut_beside, read_cut, remove_cut, write_cut
from impasto.data.pixels.images import UnreadableImageError
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Box, Size
from impasto.data.scanning.scan import join_scans, scan_folder
from impasto.data.subsets import Augmentation, Subset
from impasto.errors import DatasetError
from impasto.training.fingerprints.data_fingerprint import data_fingerprint


@pytest.fixture
def picture(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.effect_noise((300, 200), 90).convert("RGB").save(folder / "cat.jpg")
    (folder / "cat.txt").write_text("a cat", encoding="utf-8")
    return folder / "cat.jpg"


def plan_of(folder, subset=None, **rules):
    records = scan_folder(folder, subset=subset or Subset(root=folder)).records
    return plan_images(records, Size(64, 64), BucketRules(min_side=32, step=32, **rules)).images[0]


def test_the_file_can_be_read_by_people_and_is_no_image_or_words(picture):
    file = write_cut(picture, Size(300, 200), Box(10, 20, Size(120, 80)))
    assert file.name == "cat.jpg.crop.json"
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "image_width": 300, "image_height": 200, "x": 10, "y": 20, "width": 120, "height": 80,
    }  # fmt: skip
    scan = join_scans([scan_folder(picture.parent)])
    assert scan.unused == ()
    assert scan.tally.rows()["With a manual crop"] == 1
    assert scan.records[0].size == Size(120, 80)
    assert scan.records[0].caption_text == "a cat"
    assert remove_cut(picture)
    assert not remove_cut(picture)
    assert "With a manual crop" not in scan_folder(picture.parent).tally.rows()


def test_a_second_scan_sees_a_changed_rectangle_even_within_a_tick_of_the_clock(picture, tmp_path):
    """A changed rectangle of the same file size and modification time is noticed."""
    index = tmp_path / "index.json"
    file = write_cut(picture, Size(300, 200), Box(10, 20, Size(120, 80)))
    stamp = file.stat()
    assert scan_folder(picture.parent, index=index).records[0].cut.box.left == 10
    write_cut(picture, Size(300, 200), Box(30, 20, Size(120, 80)))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert file.stat().st_size == stamp.st_size
    assert scan_folder(picture.parent, index=index).records[0].cut.box.left == 30


def test_each_rectangle_has_keys_of_its_own(picture):
    """Rectangles of one size have the same resize and crop: only the position differs."""
    keys = set()
    whole = plan_of(picture.parent)
    places = [(0, 0), (1, 0), (0, 1), (10, 1), (1, 10)]
    boxes = [Box(0, 0, Size(300, 200)), *(Box(*place, Size(96, 96)) for place in places)]
    for box in boxes:
        write_cut(picture, Size(300, 200), box)
        planned = plan_of(picture.parent)
        for flip in (False, True):
            keys.add(latent_key("content", planned, "vae", flip=flip))
        keys.add(mask_key("content", planned, "mask"))
    assert len(keys) == 3 * len(boxes)
    remove_cut(picture)
    assert latent_key("content", plan_of(picture.parent), "vae") == latent_key(
        "content", whole, "vae"
    )


def test_a_state_of_images_that_change_each_time_knows_the_rectangle(picture):
    def fingerprint():
        image = plan_of(
            picture.parent, Subset(root=picture.parent, augmentation=Augmentation(True))
        )
        plan = CachedPlan((image,), (LatentKeys(),), (), 0)
        return data_fingerprint(plan, lambda stamps: dict.fromkeys(stamps, "same"))

    found = {fingerprint()}
    for left in (0, 5):
        write_cut(picture, Size(300, 200), Box(left, 0, Size(96, 96)))
        found.add(fingerprint())
    assert len(found) == 3


def test_latents_of_sd_scripts_are_not_taken_for_a_part(picture):
    np.savez(picture.with_suffix(".npz"), arr_0=np.zeros((4, 8, 8), dtype=np.float32))
    before = list(npz_candidates(plan_of(picture.parent)))
    write_cut(picture, Size(300, 200), Box(0, 0, Size(96, 96)))
    planned = plan_of(picture.parent)
    assert list(npz_candidates(planned)) == before
    refused = read_npz(picture.with_suffix(".npz"), planned)
    assert isinstance(refused, Failure)
    assert "crop of its own" in refused.reason


def test_random_crops_and_faces_stay_within_the_rectangle(picture):
    """Of a black image with a white rectangle, no black pixel is ever shown."""
    folder = picture.parent
    face = folder / "b_150_100_30_30.png"
    image = Image.new("RGB", (300, 200))
    image.paste((255, 255, 255), (100, 50, 228, 146))
    image.save(face)
    picture.unlink()
    write_cut(face, Size(300, 200), Box(100, 50, Size(128, 96)))
    rules = Augmentation(random_crop=True, face_crop_range=(1.0, 3.0))
    planned = plan_of(folder, Subset(root=folder, augmentation=rules))
    crops = set()
    for epoch in range(20):
        shown = render_augmented(planned, rules, 1, epoch)
        assert shown.pixels.min() == 255
        crops.add(shown.image.crop)
    assert len(crops) > 3


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box(0, 0, Size(301, 10)), "outside"),
        (Box(-1, 0, Size(20, 20)), "outside"),
        (Box(290, 190, Size(11, 10)), "outside"),
        (Box(0, 0, Size(7, 100)), "less than 8 pixels"),
    ],
)
def test_a_rectangle_that_is_none_of_the_image_is_refused(picture, box, words):
    with pytest.raises(DatasetError, match=words):
        write_cut(picture, Size(300, 200), box)
    assert not crop_file(picture).exists()


def test_an_image_that_was_changed_is_skipped_by_name(picture):
    write_cut(picture, Size(300, 200), Box(0, 0, Size(96, 96)))
    Image.new("RGB", (301, 200)).save(picture.with_name("dog.png"))
    Image.new("RGB", (301, 200)).save(picture)
    scan = scan_folder(picture.parent)
    assert [record.path.name for record in scan.records] == ["dog.png"]
    assert "was chosen for an image of 300x200, and this one is 301x200" in scan.skipped[0].reason
    with pytest.raises(UnreadableImageError, match="chosen for"):
        cut_beside(picture)


def test_a_crop_that_leads_nowhere_or_out_is_never_passed_over(picture, tmp_path):
    if os.name == "nt":
        pytest.skip("creating links needs a privilege on Windows")
    crop_file(picture).symlink_to(tmp_path / "missing.json")
    Image.new("RGB", (64, 64)).save(picture.with_name("dog.png"))
    scan = scan_folder(picture.parent)
    assert "its crop cat.jpg.crop.json is not a file" in scan.skipped[0].reason
    with pytest.raises(DatasetError, match="leads out"):
        write_cut(picture, Size(300, 200), Box(0, 0, Size(96, 96)))
    assert not (tmp_path / "missing.json").exists()


def test_a_crop_without_its_image_is_mentioned(picture):
    for name in ("gone.jpg.crop.json", "cat.crop.json", "Meta.png.crop.json"):
        (picture.parent / name).write_text("{}", encoding="utf-8")
    found = {item.path.name: item.reason for item in scan_folder(picture.parent).unused}
    assert set(found) == {"gone.jpg.crop.json", "cat.crop.json", "Meta.png.crop.json"}
    assert all("a crop without its image" in reason for reason in found.values())


def test_images_of_metadata_have_their_crops_too(picture):
    from impasto.data.folders.metadata import read_metadata
    from impasto.data.scanning.scan import scan_metadata

    meta = picture.parent / "meta.json"
    entry = {"caption": "a cat", "train_resolution": [64, 32]}
    meta.write_text(json.dumps({"cat.jpg": entry}), encoding="utf-8")
    write_cut(picture, Size(300, 200), Box(0, 0, Size(96, 96)))
    (record,) = scan_metadata(read_metadata(meta), picture.parent).records
    assert record.size == Size(96, 96)
    rules = BucketRules(min_side=32, step=32, as_requested=True)
    assert plan_images([record], Size(64, 64), rules).images[0].bucket == Size(64, 64)
    whole = replace(record, cut=None, size=record.whole)
    assert plan_images([whole], Size(64, 64), rules).images[0].bucket == Size(64, 32)


def test_a_pipe_or_a_huge_file_is_no_crop(picture):
    crop_file(picture).write_text(" " * 70_000 + "{}", encoding="utf-8")
    with pytest.raises(UnreadableImageError, match="is not JSON"):
        read_cut(crop_file(picture), Size(300, 200))


def test_the_verb_sets_shows_and_removes(picture):
    told = impasto("dataset", "crop", picture, 10, 20, 120, 160)
    assert told.returncode == 0, told.stderr
    assert "120x160 from 10,20" in told.stdout
    assert cut_beside(picture).box == Box(10, 20, Size(120, 160))
    wrong = impasto("dataset", "crop", picture, 10, 20, 1200, 160)
    assert wrong.returncode != 0
    assert "outside of the image of 300x200" in wrong.stderr
    assert cut_beside(picture).box == Box(10, 20, Size(120, 160))
    told = impasto("dataset", "crop", picture, "--remove")
    assert told.returncode == 0
    assert cut_beside(picture) is None


def test_scan_plan_and_report_mention_crops(picture, tmp_path):
    write_cut(picture, Size(300, 200), Box(0, 0, Size(96, 96)))
    assert (
        json.loads(impasto("dataset", "scan", picture.parent, "--json").stdout)["with_crops"] == 1
    )
    assert "With a manual crop  1" in impasto("dataset", "plan", picture.parent).stdout
    page = tmp_path / "page.html"
    told = impasto("dataset", "report", picture.parent, "--out", page)
    assert "With a manual crop  1" in told.stdout
    assert "with a crop file" in page.read_text(encoding="utf-8")
