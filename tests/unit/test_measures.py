"""What is measured of a model, on a few numbers that can be worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from impasto.annotate.tags import TagTable
from impasto.evaluation.looking import Looks, Picture
from impasto.evaluation.measures import (
    Material,
    compare_training,
    copies_of,
    measure,
    real_measures,
)
from impasto.evaluation.networks import NetworkFacts
from impasto.evaluation.obedience import PromptTags
from impasto.evaluation.results import notes_of
from impasto.progress import SilentProgress

NET = "net"
FEATURES = {  # directions in a plane, in degrees
    "real": [0, 90, 180],
    "training": [0, 20, 100, 180, 200],
    "samples": [10, 30, 90, 55],
}
TEXTS = [10, 100]


def directions(degrees):
    angles = np.deg2rad(np.array(degrees, dtype=float))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def looks(name, *, tags=None, hashes=None):
    count = len(FEATURES[name])
    squares = np.random.default_rng(len(name)).integers(0, 256, (count, 3072)).astype(np.uint8)
    return Looks(
        tuple(Picture(Path(f"{name}-{n}.png")) for n in range(count)),
        {NET: 3 * directions(FEATURES[name])},
        squares,
        np.array(hashes or [0xAAAA << 40 | n << 8 for n in range(count)], np.uint64),
        np.zeros(count, np.bool_),
        tags,
    )


class Reader:
    """A network whose features of texts are known."""

    facts = NetworkFacts(NET, "known numbers", "0")

    def of_texts(self, texts):
        return directions(TEXTS[: len(texts)]) * 5


@pytest.fixture
def material():
    table = TagTable(("cat", "dog", "red"), ("general",) * 3, (0, 1, 2))
    training = looks("training", hashes=[2**63 + 2**n - 1 for n in (0, 10, 20, 30, 40)])
    return Material(
        looks("real", tags=[frozenset({0}), frozenset({1, 2}), frozenset()]),
        training,
        False,
        ("a cat", "a red dog"),
        (0, 1),
        2,
        (Reader(),),
        PromptTags(table),
        60,
        0,
        compare_training(training, SilentProgress()),
    )


def test_each_measure_is_what_it_says(material):
    samples = looks(
        "samples", tags=[frozenset({0}), frozenset(), frozenset({1}), frozenset({1, 2})]
    )
    found = measure(samples, material, lambda _: None)
    cosines = {
        ("image_similarity", NET): [10, 30, 0, 35],  # degrees to the real image of the prompt
        ("text_similarity", NET): [0, 20, 10, 45],
        ("nearest_training", NET): [10, 10, 10, 35],
    }
    for key, degrees in cosines.items():
        expected = np.cos(np.deg2rad(degrees)).mean()
        assert found.estimates[key].value == pytest.approx(expected, abs=1e-6)
    # the last is 35 degrees from its nearest, which has a neighbour at 20; the others are nearer
    assert found.estimates["authentic", NET].value == 0.25
    assert found.estimates["prompt_tags", ""].value == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found.estimates["copies", ""].value == 0
    assert found.copying.nearest.index.tolist()[2:] == [2, 1]
    assert found.similarity == pytest.approx(np.cos(np.deg2rad([10, 30, 0, 35])).tolist(), abs=1e-6)


def test_real_images_tell_what_a_good_number_is(material):
    found = real_measures(material)
    real = found["the real images"]
    assert real["text_similarity", NET] == pytest.approx(np.cos(np.deg2rad([10, 10])).mean())
    assert real["prompt_tags", ""] == 1
    assert real["nearest_training", NET] == pytest.approx(np.cos(np.deg2rad([0, 10, 0])).mean())
    assert real["copies", ""] == 0
    others = np.cos(np.deg2rad([90, 90, 180])).mean()
    assert found["other real images"]["image_similarity", NET] == pytest.approx(others)


def test_a_hash_that_is_nearly_the_same_is_a_copy(material):
    """Six of 64 bits differ in a copy, seven do not; an image of one colour is none."""
    training = material.training
    near, far = [int(training.hashes[3]) ^ (2**bits - 1 << 45) for bits in (6, 7)]
    samples = looks("samples", hashes=[near, far, near, far])
    samples.flat[2] = True
    copying = copies_of(samples, training, material.among_training)
    assert copying.is_copy.tolist() == [True, False, False, False]


def test_a_copy_by_its_pixels_is_shown_beside_its_original(material):
    training = looks("training")
    many = Looks(
        training.pictures * 3,
        {NET: np.tile(training.features[NET], (3, 1))},
        np.random.default_rng(1).integers(0, 256, (15, 3072)).astype(np.uint8),
        np.arange(15, dtype=np.uint64) << np.uint64(50),
        np.zeros(15, np.bool_),
        None,
    )
    samples = looks("samples")
    samples.squares[0] = many.squares[3]  # though its features are those of the first or second
    copying = copies_of(samples, many, compare_training(many, SilentProgress()))
    assert copying.is_copy.tolist() == [True, False, False, False]
    assert copying.nearest.index[0] == 3
    assert copying.nearest.distance[0] == pytest.approx(1 - np.cos(np.deg2rad(170)), abs=1e-6)


def test_few_images_are_told(material):
    notes = " ".join(notes_of(material, []))
    assert "2 prompts are few" in notes
    assert "too few for 2 features" not in notes
    wide = {NET: np.zeros((3, 3))}
    material.real.features.update(wide)
    assert "3 real images are too few for 3 features" in " ".join(notes_of(material, []))
