"""Measures of previews: the compared images, what counts as similar, and locations of errors."""

import numpy as np
import pytest
from PIL import Image

from impasto.data.records import Box, Cut, Size
from impasto.errors import StorageError
from impasto.evaluation import preview_distance
from impasto.evaluation.image_features import CaptionedImage, Prepare
from impasto.evaluation.networks import NetworkFacts, NetworkOutput
from impasto.evaluation.preview_distance import PreviewDistance, chosen_real
from impasto.evaluation.resampling import FEW
from impasto.progress import SilentProgress


class MeanColour:
    """A small real network: an image's mean colour, and a constant."""

    facts = NetworkFacts("colour", "mean colours", "0123456789abcdef")

    def prepare(self, image):
        return np.asarray(image, np.float32).mean((0, 1)) / 255

    def look(self, prepared):
        return NetworkOutput(
            np.concatenate([np.stack(prepared), np.ones((len(prepared), 1))], axis=1)
        )

    def of_texts(self, texts):
        return None


@pytest.fixture
def pictures(tmp_path):
    """Write images of different plain colours."""
    rng = np.random.default_rng(4)

    def make(number, prefix):
        files = []
        for n in range(number):
            colour = tuple(int(v) for v in rng.integers(20, 235, 3))
            files.append(tmp_path / f"{prefix}{n:04d}.png")
            Image.new("RGB", (8, 8), colour).save(files[-1])
        return files

    return make


def distance(files, prompts, captions):
    real = [CaptionedImage(file, text) for file, text in zip(files, captions, strict=True)]
    return PreviewDistance(MeanColour(), real, "held out", prompts)


@pytest.mark.parametrize("count", [4, FEW])
def test_errors_are_told_from_enough_prompts_on(pictures, count):
    prompts = [f"thing {n}" for n in range(count)]
    asked = distance(pictures(30, "r"), prompts, [f"thing {n}" for n in range(30)])
    found = asked.measure(pictures(count, "p"), SilentProgress())
    assert found["preview_features"] == "colour 0123456789ab"
    assert found["preview_real"] == "30 held out"
    for name in ("preview_kernel_distance", "preview_similarity"):
        assert name in found
        assert (f"{name}_se" in found) == (count >= FEW)
    assert found.get("preview_similarity_se", 1) > 0


def test_the_similarity_is_to_the_image_of_the_caption(pictures):
    """Equal files give 1, exchanged captions less, and no caption no value."""
    files = pictures(2, "r")
    same = distance(files, ["a", "b"], ["a", "b"]).measure(files, SilentProgress())
    assert same["preview_similarity"] == pytest.approx(1)
    crossed = distance(files, ["a", "b"], ["b", "a"]).measure(files, SilentProgress())
    assert crossed["preview_similarity"] < 0.999
    none = distance(files, ["x", ""], ["a", ""]).measure(files, SilentProgress())
    assert "preview_similarity" not in none
    assert "preview_kernel_distance" in none


def test_a_preview_and_the_image_of_its_caption_are_drawn_together(pictures):
    """Previews that equal the images of their captions are resampled together with them."""
    files, words = pictures(FEW, "r"), [f"thing {n}" for n in range(FEW)]
    together = distance(files, words, words).measure(files, SilentProgress())
    apart = distance(files, words, [f"other {n}" for n in range(FEW)])
    errors = [
        found["preview_kernel_distance_se"]
        for found in (together, apart.measure(files, SilentProgress()))
    ]
    assert errors[0] < 0.3 * errors[1]


def test_previews_of_the_same_words_are_no_pair(pictures):
    """A single prompt gives no distance, however often it is drawn."""
    real, drawn = pictures(5, "r"), pictures(3, "p")
    found = distance(real, ["a"] * 3, ["a"] * 5).measure(drawn, SilentProgress())
    assert "preview_kernel_distance" not in found
    assert "preview_similarity" in found


def test_a_preview_that_is_gone_is_named(pictures, tmp_path):
    asked = distance(pictures(3, "r"), ["a", "b"], ["a", "b", "c"])
    with pytest.raises(StorageError, match=r"the preview .*gone\.png cannot be read"):
        asked.measure([*pictures(1, "p"), tmp_path / "gone.png"], SilentProgress())


def test_of_many_images_those_of_the_captions_are_among_the_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(preview_distance, "MOST_REAL", 10)
    many = [CaptionedImage(tmp_path / f"{n}.png", f"thing {n}") for n in range(101)]
    chosen = chosen_real(many, ["thing 7", "thing 98", "nothing"])
    assert len(chosen) == 10
    assert {many[7], many[98]} <= set(chosen)
    assert chosen_real(many[:10], []) == many[:10]
    places = [many.index(picture) for picture in chosen]
    assert places == sorted(places)
    assert max(places) > 60  # spread over all images, not the first ones
    most = chosen_real(many, [f"thing {n}" for n in range(20, 29)])
    assert len(most) == 10
    assert chosen_real(many, [f"thing {n}" for n in range(5)])[-1] is many[81]  # 5 + 96 * 4 // 5
    assert len(chosen_real(many, [f"thing {n}" for n in range(40)])) == 10


class Sharpness(MeanColour):
    """A network that measures how much neighbouring pixels differ."""

    def prepare(self, image):
        return np.asarray(image, np.float32)[..., 0].std(keepdims=True).ravel()


def test_a_crop_of_a_large_image_is_looked_at_in_all_its_pixels(tmp_path):
    columns = np.arange(2400) // 2 % 2 * 255
    stripes = np.broadcast_to(columns[None, :, None], (1800, 2400, 3)).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "large.jpg", quality=95)
    cut = Cut(Size(2400, 1800), Box(512, 512, Size(512, 512)))
    (seen,) = Prepare((Sharpness(),))([CaptionedImage(tmp_path / "large.jpg", "", cut)])
    assert seen.inputs[0] > 120  # of 127.5
