"""Training with own crops equals training on images that were cut, and never uses old latents.

If it failed, the loss would be computed from areas that were not selected.
"""

import json
import shutil

from PIL import Image

from impasto.data.pixels.cuts import write_cut
from impasto.data.records import Box, Size
from impasto.runs import RunDirectory
from impasto.training.trainer import train


def losses(config):
    train(config)
    lines = RunDirectory(config.output_dir).metrics_file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def cut_by_pillow(pictures, folder, box):
    shutil.copytree(pictures, folder)
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            part = image.crop(box(image.size))
        part.save(path)


def test_losses_are_those_of_images_that_were_cut(train_config, pictures, tmp_path):
    """Losses are those of whole images, then of two rectangles, all with one latent cache."""

    def first(size):
        return (3, 2, size[0] - 4, size[1] - 9)

    def second(size):
        return (4, 2, size[0] - 3, size[1] - 9)  # the same size, one pixel to the right

    def run(name, folder):
        dataset = {"image_dir": str(folder), "flip_aug": True}
        output, training = str(tmp_path / name), {"max_steps": 4}
        return losses(train_config(output_dir=output, dataset=dataset, training=training))

    found = {"whole": run("whole", pictures)}
    for name, box in (("first", first), ("second", second)):
        for path in pictures.glob("*.png"):
            with Image.open(path) as image:
                size = image.size
            left, top, right, bottom = box(size)
            write_cut(path, Size(*size), Box(left, top, Size(right - left, bottom - top)))
        found[name] = run(name, pictures)
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        cut_by_pillow(pictures, tmp_path / "cut", box)
        for file in (tmp_path / "cut").glob("*.crop.json"):
            file.unlink()
        assert found[name] == run(f"{name}-cut", tmp_path / "cut")
    assert len({tuple(values) for values in found.values()}) == 3
