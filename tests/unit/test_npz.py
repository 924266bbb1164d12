"""sd-scripts' latents: the crop that they record, and files with several sizes."""

from dataclasses import replace

import numpy as np
from PIL import Image

from impasto.data.caching.npz import crop_ltrb, read_npz, write_npz
from impasto.data.engines.stages import Failure
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import scan_folder


def test_the_crop_of_sdxl_equals_the_recorded_one(golden):
    rows = golden("crop_ltrb.json")
    assert len(rows) > 90
    for bucket_w, bucket_h, width, height, *expected in rows:
        assert list(crop_ltrb(Size(bucket_w, bucket_h), Size(width, height))) == expected


def test_several_sizes_share_a_file(tmp_path):
    Image.new("RGB", (128, 128)).save(tmp_path / "a.png")
    records = scan_folder(tmp_path).records
    rng = np.random.default_rng(0)
    written = {}
    for side in (64, 128):
        image = plan_images(
            records, Size(side, side), rules=BucketRules(enable_bucket=False)
        ).images[0]
        values = [rng.normal(size=(4, side // 8, side // 8)).astype(np.float32) for _ in range(2)]
        file = write_npz(image, *values)
        written[side] = image, values
    assert [path.name for path in tmp_path.glob("*.npz")] == ["a_0128x0128_sd.npz"]
    for image, (latents, flipped) in written.values():
        found = read_npz(file, image)
        np.testing.assert_array_equal(found.latents, latents)
        np.testing.assert_array_equal(found.flipped, flipped)


def test_a_turned_picture_has_no_latents_of_sd_scripts(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    image = plan_images(
        scan_folder(tmp_path).records, Size(64, 64), rules=BucketRules(enable_bucket=False)
    ).images[0]
    file = write_npz(image, np.zeros((4, 8, 8)), None)
    assert not isinstance(read_npz(file, image), Failure)
    turned = replace(image, record=replace(image.record, rotated=True))
    assert "rotated by EXIF" in read_npz(file, turned).reason
