"""Measures of a model, on a few numbers that can be computed by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from impasto.annotate.tags import TagTable
from impasto.evaluation.copying import copies_of
from impasto.evaluation.image_features import CaptionedImage, ImageFeatures, features_of
from impasto.evaluation.measures import FRECHET, Material, compare_training, measure, real_measures
from impasto.evaluation.neighbours import mirrored
from impasto.evaluation.network_facts import NetworkFacts
from impasto.evaluation.obedience import PromptTags
from impasto.evaluation.resampling import Estimate
from impasto.evaluation.results import caution_text, notes_of, verdict_of
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
    return ImageFeatures(
        tuple(CaptionedImage(Path(f"{name}-{n}.png")) for n in range(count)),
        {NET: 3 * directions(FEATURES[name])},
        squares,
        np.array(hashes or [0xAAAA << 40 | n << 8 for n in range(count)], np.uint64),
        np.full(count, 0xCCCC_3333_CCCC_3333, np.uint64),
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
        ("image_similarity", NET): [10, 30, 0, 35],  # degrees from the real image of the prompt
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
    """A copy differs in six of 64 bits, not in seven; an image of one colour is no copy."""
    training = material.training
    near, far = [int(training.hashes[3]) ^ (2**bits - 1 << 45) for bits in (6, 7)]
    samples = looks("samples", hashes=[near, far, near, far])
    samples.flat[2] = True
    copying = copies_of(samples, training, material.among_training)
    assert copying.is_copy.tolist() == [True, False, False, False]


def test_a_copy_by_its_pixels_is_shown_beside_its_original(material):
    training = looks("training")
    many = ImageFeatures(
        training.images * 3,
        {NET: np.tile(training.features[NET], (3, 1))},
        np.random.default_rng(1).integers(0, 256, (15, 3072)).astype(np.uint8),
        np.arange(15, dtype=np.uint64) << np.uint64(50),
        np.zeros(15, np.uint64),
        np.zeros(15, np.bool_),
        None,
    )
    samples = looks("samples")
    samples.squares[0] = many.squares[3]  # though its features are those of the first or second
    copying = copies_of(samples, many, compare_training(many, SilentProgress()))
    assert copying.is_copy.tolist() == [True, False, False, False]
    assert copying.nearest.index[0] == 3
    assert copying.nearest.distance[0] == pytest.approx(1 - np.cos(np.deg2rad(170)), abs=1e-6)


def test_a_mirrored_copy_is_a_copy_by_its_pixels_and_by_its_hash(material):
    """Training mirrors images with `flip_aug`, so a model may repeat them mirrored."""
    training = looks("training", hashes=[2**63 + 2**n - 1 for n in (0, 10, 20, 30, 40)])
    samples = looks("samples")
    samples.mirrored_hashes[1] = training.hashes[3]
    copying = copies_of(samples, training, material.among_training)
    assert copying.is_copy.tolist() == [False, True, False, False]
    assert copying.nearest.index[1] == 3
    many = replace(
        training,
        images=training.images * 3,
        features={NET: np.tile(training.features[NET], (3, 1))},
        squares=np.random.default_rng(1).integers(0, 256, (15, 3072)).astype(np.uint8),
        hashes=np.tile(training.hashes, 3),
    )
    turned = many.squares[7].reshape(32, 32, 3)[:, ::-1].reshape(1, -1)
    assert (mirrored(turned)[0] == many.squares[7]).all()
    plain = looks("samples")
    plain.squares[2] = turned[0]
    copying = copies_of(plain, many, {})
    assert copying.is_copy.tolist() == [False, False, True, False]
    assert copying.nearest.index[2] == 7


def test_images_are_looked_at_in_the_mirror_too(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)
    image.save(tmp_path / "plain.png")
    ImageOps.mirror(image).save(tmp_path / "turned.png")
    pictures = [CaptionedImage(tmp_path / "plain.png"), CaptionedImage(tmp_path / "turned.png")]
    found = features_of(pictures, (), "images", SilentProgress())
    assert found.hashes.tolist() == found.mirrored_hashes.tolist()[::-1]
    assert found.hashes[0] != found.hashes[1]
    assert (mirrored(found.squares)[0] == found.squares[1]).all()


def test_brackets_that_give_weight_are_no_part_of_words(material):
    """`((cat))` is the tag cat if brackets are emphasis; in a caption they are letters."""
    prompts = ("a ((cat)) with [dog]", r"red, fox \(animal\)")
    plain = replace(material, prompts=prompts)
    weighted = replace(plain, emphasis="mean")
    assert plain.wanted_tags[0] == frozenset()
    assert weighted.wanted_tags == [frozenset({0, 1}), frozenset({2})]
    assert weighted.plain_prompts == ["a cat with dog", "red, fox (animal)"]
    assert plain.plain_prompts == list(prompts)


def test_a_run_that_was_trained_on_real_images_is_named(material):
    shared = replace(material, is_shared=True, shared_by=("b",))
    assert "among those that b was trained on" in " ".join(notes_of(shared, []))
    unnamed = replace(material, is_shared=True)
    assert "among those that were trained on" in " ".join(notes_of(unnamed, []))


def test_the_frechet_distance_is_not_judged_where_prompts_are_captions_of_its_images(material):
    """A model that follows captions would win by that alone (86 of 150 times, 40 images)."""
    samples = looks("samples", tags=[frozenset()] * 4)
    for linked, is_dependent in (((0, 1), True), ((None, None), False)):
        found = measure(samples, replace(material, linked=linked), lambda _: None).estimates
        assert found["frechet_distance", NET].is_dependent == is_dependent
        assert not found["kernel_distance", NET].is_dependent
    sure = Estimate(-1.0, np.linspace(-1.1, -0.9, 50), "normal", 30)
    assert verdict_of(FRECHET, sure) == "better"
    dependent = replace(sure, is_dependent=True)
    assert verdict_of(FRECHET, dependent) is None
    assert verdict_of(FRECHET, dependent.less(Estimate(0.0, np.zeros(50)))) is None


def test_how_many_differences_were_judged_is_told():
    def values(*verdicts):
        rows = [{"against_first": {"verdict": verdict}} for verdict in verdicts]
        return {"models": [{"measures": [{}]}, {"measures": rows}]}

    assert "3 differences were judged" in caution_text(values("better", None, *["worse"] * 2))
    assert "0.15 on average" in caution_text(values("better", None, *["worse"] * 2))
    assert "No difference is beyond noise. 2 " in caution_text(values(*["within noise"] * 2))
    assert "a verdict requires 10 prompts" in caution_text(values(None, None))
    assert caution_text({"models": [{"measures": []}]}) == ""


def test_few_images_are_told(material):
    notes = " ".join(notes_of(material, []))
    assert "2 prompts are few" in notes
    assert "3 real images are few: below 10 no verdict" in notes
    assert "too few for 2 features" not in notes
    wide = {NET: np.zeros((3, 3))}
    material.real.features.update(wide)
    assert "3 real images are too few for 3 features" in " ".join(notes_of(material, []))
