"""`dataset plan --json` has the size conditioning of every image that SDXL training uses."""

import json

import torch
from click.testing import CliRunner
from PIL import Image

from impasto.cli.dataset import dataset
from impasto.config.load import load_dataset_config
from impasto.data.caching.latent_cache import CachedPlan, LatentKeys
from impasto.data.loading.dataset import TrainingData
from impasto.data.loading.sampler import MicroBatch, OptimizerStep, Sample
from impasto.datasets.build import plan_dataset, scan_all
from impasto.models.families import SDXL
from impasto.progress import SilentProgress

SIZES = {
    "wide.png": (302, 140),
    "tall.png": (100, 260),
    "small.png": (40, 40),
    "odd.png": (201, 97),
}
GEOMETRY = ("--resolution", "128", "--min-side", "64", "--max-side", "256", "--step", "32")


def made(folder):
    folder.mkdir()
    for name, size in SIZES.items():
        Image.new("RGB", size, (9, 90, 200)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text("a ball", encoding="utf-8")
    (folder / "odd.txt").write_text("a ball on the left", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


def planned(*words):
    done = CliRunner().invoke(dataset, ["plan", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_every_image_is_there_with_original_crop_and_target(tmp_path):
    folder = made(tmp_path / "pictures")
    found = planned(folder, *GEOMETRY)
    by_name = {
        image["path"].rpartition("/")[2].rpartition("\\")[2]: image for image in found["images"]
    }
    assert by_name.keys() == SIZES.keys()
    assert [item["path"] for item in found["skipped"]] == [str(folder / "broken.png")]
    assert sum(found["buckets"].values()) == len(SIZES)
    for name, image in by_name.items():
        left, top, right, bottom = image["crop"]
        width, height = image["target"]
        assert tuple(image["original"]) == SIZES[name]
        assert (right - left, bottom - top) == (width, height)
        assert image["size_conditioning"] == [*SIZES[name][::-1], top, left, height, width]
        assert image["crop_varies"] is False
        assert "size_conditioning_mirrored" not in image
    assert by_name["wide.png"]["crop"][0] > 0  # the image is cropped, so the left offset is given


def test_it_is_what_training_tells_also_of_mirrored_images(tmp_path):
    """The numbers are those of `TrainingData` for the same settings, showing by showing."""
    folder = made(tmp_path / "pictures")
    settings = tmp_path / "data.toml"
    settings.write_text(
        "[general]\nresolution = 128\nenable_bucket = true\nmin_bucket_reso = 64\n"
        "max_bucket_reso = 256\nbucket_reso_steps = 32\nflip_aug = true\n"
        "caption_extension = '.txt'\n"
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{folder.as_posix()}'\n"
        'flip_safe = ["left"]\n',
        encoding="utf-8",
    )
    config = load_dataset_config(settings, {})
    plan = plan_dataset(config, scan_all(config, SilentProgress()).records)
    told = {image["path"]: image for image in planned(settings)["images"]}

    class NoCache:
        def read(self, names):
            shape = (len(names), 4, *(side // 8 for side in bucket.hw))
            return torch.zeros(shape), torch.zeros(shape)

    keys = tuple(LatentKeys("k", "f") for _ in plan.images)
    data = TrainingData(CachedPlan(plan.images, keys, (), 0), NoCache(), 1.0, 3, 8)
    seen = set()
    for number, image in enumerate(plan.images):
        bucket, own = image.bucket, told[str(image.record.path)]
        for step in range(8):
            batch = MicroBatch((Sample(number, 0),), (0,))
            loaded = data.load(OptimizerStep(step, step, (batch,), 1), batch)
            numbers = list(SDXL.sizes.numbers(loaded.geometry[0]))
            mirrored = own.get("size_conditioning_mirrored")
            assert numbers in (own["size_conditioning"], mirrored)
            if mirrored not in (None, own["size_conditioning"]):
                seen.add(numbers == mirrored)
        assert ("size_conditioning_mirrored" in own) == (image.record.path.name != "odd.png")
    assert seen == {True, False}


def test_a_run_that_is_told_targets_shows_targets(tmp_path):
    """For a run with target sizes the plan shows them, and each image's dataset and kind."""
    folder, others = made(tmp_path / "pictures"), made(tmp_path / "others")
    settings = tmp_path / "run.toml"
    subset = "[[dataset.datasets]]\n[[dataset.datasets.subsets]]\n"
    for word in ("original", "target"):
        settings.write_text(
            f"output_dir = 'run'\n[model]\npath = 'x'\nsize_conditioning = '{word}'\n"
            "[training]\nmax_steps = 1\n[dataset]\nresolution = 128\nmin_bucket_reso = 64\n"
            f"max_bucket_reso = 256\n{subset}image_dir = '{folder.as_posix()}'\n"
            f"{subset}image_dir = '{folder.as_posix()}'\n[[dataset.datasets.subsets]]\n"
            f"image_dir = '{others.as_posix()}'\nis_reg = true\n",
            encoding="utf-8",
        )
        images = planned(settings)["images"]
        for image in images:
            target = image["target"][::-1]
            is_target = image["size_conditioning"] == [*target, 0, 0, *target]
            assert is_target == (word == "target")
            assert image["regularisation"] == ("others" in image["path"])
        assert {(image["dataset"], image["regularisation"]) for image in images} == {
            (0, False), (1, False), (1, True),
        }  # fmt: skip


def test_crops_that_change_each_time_are_said_to(tmp_path):
    folder = made(tmp_path / "pictures")
    settings = tmp_path / "data.toml"
    settings.write_text(
        "[general]\nresolution = 128\nenable_bucket = true\nmin_bucket_reso = 64\n"
        "max_bucket_reso = 256\nrandom_crop = true\n"
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{folder.as_posix()}'\n",
        encoding="utf-8",
    )
    assert {image["crop_varies"] for image in planned(settings)["images"]} == {True}
