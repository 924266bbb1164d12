"""The measures of an evaluation, each against another formula or a case that can be counted."""

import itertools

import numpy as np
import pytest

from impasto.annotate.tags import TagTable
from impasto.evaluation.distances import (
    frechet_distance,
    frechet_draws,
    frechet_estimate,
    kernel_estimate,
    polynomial_kernel,
)
from impasto.evaluation.measures import COPIES, FRECHET, KERNEL, NEAREST, TAGS, mean_similarity
from impasto.evaluation.neighbours import (
    authentic,
    nearest_by_features,
    nearest_by_pixels,
    normalised,
)
from impasto.evaluation.obedience import PromptTags, seen_fractions
from impasto.evaluation.resampling import (
    Estimate,
    draw_real,
    draw_weights,
    mean_estimate,
    student_quantile,
)
from impasto.evaluation.results import NOISE, estimate_text, verdict_of


def features(count, width, seed):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, width)) @ generator.normal(size=(width, width))


def frechet_by_roots(x, y):
    """Compute Heusel's formula with the eigenvalues of the product of both covariances."""
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(c @ d).real, 0)).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c) + np.trace(d) - 2 * roots


@pytest.mark.parametrize(("n", "m"), [(40, 50), (6, 50), (50, 5), (4, 3), (2, 2)])
def test_the_frechet_distance_is_heusels(n, m):
    """The formula also holds for fewer images than features, with rank-deficient covariances."""
    x, y = features(n, 12, 1), features(m, 12, 2) + 1
    assert frechet_distance(x, y) == pytest.approx(frechet_by_roots(x, y), rel=1e-6)


def test_the_frechet_distance_of_what_is_shifted_and_stretched_has_a_closed_form():
    x = features(30, 5, 3)
    shift = np.array([1.0, 2, 0, 0, -1])
    assert frechet_distance(x, x + shift) == pytest.approx(6)
    centred = x - x.mean(0)
    spread = np.trace(np.cov(x, rowvar=False))
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * spread)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_weights_are_repetitions_for_the_frechet_distance():
    x, y = features(9, 4, 4), features(8, 4, 5)
    w, v = np.array([2, 0, 1, 1, 3, 0, 0, 1, 1.0]), np.array([1, 1, 0, 2, 2, 0, 1, 1.0])
    plain = frechet_distance(np.repeat(x, w.astype(int), 0), np.repeat(y, v.astype(int), 0))
    assert frechet_distance(x, y, w, v) == pytest.approx(plain)


def test_draws_for_the_frechet_distance_get_fewer_as_they_cost_more():
    assert frechet_draws(96, 12, 448, 1000) == 200
    assert frechet_draws(96, 12, 448, 60) == 60
    assert frechet_draws(5000, 5000, 2048, 1000) == 20


def kernel_by_loops(x, groups, y, linked=()):
    """Compute Gretton's unbiased estimate, pair by pair, without pairs of a prompt and its
    image."""
    d = x.shape[1]

    def k(a, b):
        return (a @ b / d + 1) ** 3

    own = [
        k(x[i], x[j]) for i, j in itertools.permutations(range(len(x)), 2) if groups[i] != groups[j]
    ]
    real = [k(a, b) for a, b in itertools.permutations(y, 2)]
    links = dict(enumerate(linked))
    cross = [
        k(a, b) for i, a in enumerate(x) for j, b in enumerate(y) if links.get(groups[i], -1) != j
    ]
    return np.mean(own) + np.mean(real) - 2 * np.mean(cross)


@pytest.mark.parametrize("per_prompt", [1, 3])
def test_the_kernel_distance_is_a_loop_over_pairs(per_prompt):
    x, y = features(6 * per_prompt, 5, 6), features(7, 5, 7) + 0.5
    groups = np.repeat(np.arange(6), per_prompt)
    found = kernel_estimate(x, groups, y, draw_weights(6, 3, 0), draw_weights(7, 3, 1))
    assert found.value == pytest.approx(kernel_by_loops(x, groups, y))
    linked = [3, None, 0, 6, None, 1]
    draws = draw_weights(6, 3, 0)
    found = kernel_estimate(x, groups, y, draws, draw_weights(7, 3, 1), linked)
    assert found.value == pytest.approx(kernel_by_loops(x, groups, y, linked))
    assert found.drawn_from == 6


def test_a_draw_of_the_kernel_distance_counts_no_prompt_against_itself():
    """A draw with a repeated prompt equals a loop over its images, without pairs of that prompt."""
    x, y = features(8, 5, 8), features(5, 5, 9)
    groups = np.repeat(np.arange(4), 2)
    w, v = np.array([[2, 0, 1, 1.0]]), np.array([[1, 2, 0, 1, 1.0]])
    taken = [i for i in range(8) for _ in range(int(w[0, groups[i]]))]
    of_y = [i for i in range(5) for _ in range(int(v[0, i]))]

    def mean(a, b, pairs):
        return np.mean([polynomial_kernel(a[i : i + 1], b[j : j + 1])[0, 0] for i, j in pairs])

    own = mean(x, x, [(i, j) for i in taken for j in taken if groups[i] != groups[j]])
    real = mean(y, y, [(i, j) for i in of_y for j in of_y if i != j])
    cross = mean(x, y, [(i, j) for i in taken for j in of_y])
    found = kernel_estimate(x, groups, y, w, v)
    assert found.replicates[0] == pytest.approx(own + real - 2 * cross)
    linked = (1, 0, None, 4)
    others = [(i, j) for i in taken for j in of_y if linked[groups[i]] != j]
    found = kernel_estimate(x, groups, y, w, v, linked)
    assert found.replicates[0] == pytest.approx(own + real - 2 * mean(x, y, others))


def test_the_kernel_distance_is_unbiased_for_a_handful_of_images():
    """The mean over many draws of four images from one distribution is zero within its error."""
    found = [
        kernel_estimate(
            np.random.default_rng(n).normal(size=(4, 3)),
            np.arange(4),
            np.random.default_rng(n + 10_000).normal(size=(4, 3)),
            np.empty((0, 4)),
            np.empty((0, 4)),
        ).value
        for n in range(600)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(600)
    biased = [
        frechet_distance(
            np.random.default_rng(n).normal(size=(4, 3)),
            np.random.default_rng(n + 10_000).normal(size=(4, 3)),
        )
        for n in range(50)
    ]
    assert np.mean(biased) > 0.5  # therefore few images cause a warning


def followed(seed, count, follows):
    """Return two models of exactly the real distribution, of which the second follows captions.

    `follows` is the strength of this, from 0 to 1; real images follow their captions by 0.9.
    """
    generator = np.random.default_rng(seed)

    def images(share):
        noise = generator.normal(size=(count, 8))
        return share * captions + np.sqrt(1 - share**2) * noise

    captions = generator.normal(size=(count, 8))
    return images(0.9), [images(0.0), images(follows)]


def test_a_model_is_no_nearer_for_following_captions():
    """Prompts are the captions of the very images that samples are compared with.

    With pairs of a sample and the real image of its caption, the mean distance of a model that
    follows captions is below zero, by 50 standard errors here.
    """
    links, none = list(range(12)), np.empty((0, 12))
    values = {"with": [], "without": []}
    for seed in range(300):
        real, (_, model) = followed(seed, 12, 0.9)
        for name, linked in (("with", ()), ("without", links)):
            found = kernel_estimate(model, np.arange(12), real, none, none, linked)
            values[name].append(found.value)
    errors = {name: np.std(found) / np.sqrt(300) for name, found in values.items()}
    assert abs(np.mean(values["without"])) < 3 * errors["without"]
    assert np.mean(values["with"]) < -10 * errors["with"]


def test_a_model_that_follows_captions_has_no_better_verdicts_on_its_distribution():
    draws = draw_weights(20, 200, 0)
    links, groups = list(range(20)), np.arange(20)
    real_draws = draw_real(20, links, draws, 1)
    verdicts = []
    for seed in range(80):
        real, models = followed(seed, 20, 0.9)
        one, other = (kernel_estimate(x, groups, real, draws, real_draws, links) for x in models)
        verdicts.append(verdict_of(KERNEL, other.less(one)))
    assert verdicts.count(NOISE) >= 70  # 76 of 80 are wanted; with linked pairs none is


def test_a_caption_and_its_image_are_drawn_together():
    draws = draw_weights(4, 30, 0)
    found = draw_real(6, (2, None, 5, 0), draws, 1)
    assert (found[:, [2, 5, 0]] == draws[:, [0, 2, 3]]).all()
    assert (found[:, [1, 3, 4]].sum(1) == 3).all()
    assert (draw_real(3, (1, 2, 0), draws[:, :3], 1) == draws[:, [2, 0, 1]]).all()


def test_distances_of_one_image_are_none():
    x, y = features(4, 3, 1), features(1, 3, 2)
    draws, real = draw_weights(4, 50, 0), draw_weights(1, 50, 1)
    assert np.isnan(frechet_estimate(x, np.arange(4), y, draws, real, lambda _: None).value)
    assert np.isnan(kernel_estimate(x, np.arange(4), y, draws, real).value)
    one_prompt = np.zeros(4, np.int64)
    many = features(5, 3, 2)
    found = kernel_estimate(x, one_prompt, many, draw_weights(1, 5, 0), draw_weights(5, 5, 1))
    assert np.isnan(found.value)
    draws, real = draw_weights(1, 30, 0), draw_weights(5, 30, 1)
    alone = frechet_estimate(x, one_prompt, many, draws, real, lambda _: None)
    assert np.isfinite(alone.value)
    assert alone.interval() is None  # all draws of a single prompt are the same


def test_a_mean_is_of_images_and_drawn_by_prompts():
    values, groups = [1.0, 1, 0, None, 0, 0], np.array([0, 0, 1, 1, 2, 2])
    draws = np.array([[1, 1, 1.0], [3, 0, 0], [0, 3, 0]])
    found = mean_estimate(values, groups, draws)
    assert found.value == pytest.approx(2 / 5)
    assert found.replicates == pytest.approx([2 / 5, 1, 0])
    assert np.isnan(mean_estimate([None, None], np.array([0, 1]), draws[:, :2]).value)
    assert mean_estimate([0.5, 0.7], np.array([0, 0]), draws[:, :1]).interval() is None


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    """Of 600 samples of normal numbers, about 95 % of the intervals contain the true mean.

    Plain percentiles contain it for 91 % of samples of ten, and for 84 % of samples of five.
    """
    for count in (5, 10, 40):
        draws = draw_weights(count, 1000, 0)
        held = 0
        for seed in range(600):
            values = np.random.default_rng(seed).normal(size=count)
            low, high = mean_estimate(values.tolist(), np.arange(count), draws).interval()
            held += low <= 0 <= high
        assert 0.92 <= held / 600 <= 0.98, count


def test_the_quantile_is_students():
    """The values are those of the table in Abramowitz and Stegun, 26.10 (0.975 on one side)."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 19: 2.093,
             30: 2.042, 120: 1.980}  # fmt: skip
    assert {n: round(student_quantile(n), 3) for n in table} == table
    assert student_quantile(100_000) == pytest.approx(1.96, abs=1e-3)


def test_an_interval_of_few_costly_draws_is_wider():
    """20 draws estimate their own spread badly: 2.093 standard deviations instead of 1.96."""
    replicates = np.random.default_rng(0).normal(size=20)
    low, high = Estimate(1.0, replicates, "normal").interval()
    assert high - low == pytest.approx(2 * 2.093 * replicates.std(ddof=1), rel=1e-3)


def test_no_verdict_is_told_of_few_prompts():
    """For nine prompts there is no verdict, however sure; for ten there is one."""
    for count, verdict in ((9, None), (10, "better")):
        draws, groups = draw_weights(count, 100, 0), np.arange(count)
        low, high = ([value] * count for value in (0.1, 0.9))
        one, other = (mean_estimate(values, groups, draws) for values in (low, high))
        assert verdict_of(TAGS, other.less(one)) == verdict
        for estimate in (kernel_estimate, frechet_estimate):
            x, y = features(count, 3, 1), features(30, 3, 2)
            told = (lambda _: None,) if estimate is frechet_estimate else ()
            found = estimate(x, groups, y, draws, draw_weights(30, 100, 1), *told)
            assert found.drawn_from == count
            assert estimate(y, np.arange(30), x, draw_weights(30, 100, 1), draws, *told) \
                .drawn_from == count  # fmt: skip


def kernel_verdicts(shift, tries=60):
    """Return verdicts on a second model that is off by more than the first, which is off by 0.5.

    Both vary with the prompt alike.
    """
    draws, real_draws, groups = draw_weights(20, 200, 0), draw_weights(30, 200, 1), np.arange(20)
    found = []
    for seed in range(tries):
        generator = np.random.default_rng(seed)
        prompts, real = generator.normal(size=(20, 10)), generator.normal(size=(30, 10))
        one, other = (
            kernel_estimate(
                0.7 * prompts + 0.7 * generator.normal(size=(20, 10)) + off,
                groups, real, draws, real_draws,
            )
            for off in (0.5, 0.5 + shift)
        )  # fmt: skip
        found.append(verdict_of(KERNEL, other.less(one)))
    return found


def test_verdicts_are_rarely_wrong_about_nothing_and_see_what_is_there():
    assert kernel_verdicts(0.0).count(NOISE) >= 52  # 57 of 60 are wanted
    assert kernel_verdicts(0.5).count("worse") >= 55
    nearer = kernel_verdicts(-0.5)  # losing a distance of 0.5 is less than doubling it
    assert nearer.count("better") >= 35
    assert "worse" not in nearer


def test_a_difference_is_measured_in_pairs():
    """Two models that vary together with the prompt differ significantly, though intervals
    overlap."""
    prompts = np.random.default_rng(0).normal(size=30)
    draws, groups = draw_weights(30, 500, 0), np.arange(30)
    one = mean_estimate(prompts.tolist(), groups, draws)
    other = mean_estimate((prompts + 0.1).tolist(), groups, draws)
    assert one.interval()[1] > other.interval()[0]
    low, high = other.less(one).interval()
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert verdict_of(TAGS, other.less(one)) == "better"
    assert verdict_of(COPIES, other.less(one)) == "worse"
    assert verdict_of(NEAREST, other.less(one)) == "different"
    assert verdict_of(FRECHET, one.less(one)) == NOISE
    assert verdict_of(FRECHET, Estimate(float("nan"), np.empty(0))) is None


def test_neighbours_are_not_the_image_itself():
    unit = normalised(np.array([[1.0, 0], [1, 0.1], [0, 1]]))
    own = nearest_by_features(unit)
    assert own.index.tolist() == [1, 0, 1]
    other = nearest_by_features(normalised(np.array([[0.0, 2]])), unit)
    assert (other.index.tolist(), other.distance.tolist()) == ([2], [pytest.approx(0)])


def test_what_is_nearer_than_training_images_are_to_each_other_is_not_authentic():
    training = normalised(np.array([[1.0, 0], [0.9, 0.3], [0, 1]]))
    among = nearest_by_features(training)
    samples = normalised(np.array([[1.0, 0.01], [0.5, 0.5]]))
    assert authentic(nearest_by_features(samples, training), among).tolist() == [False, True]


def test_a_copy_stands_out_by_its_pixels():
    training = np.random.default_rng(0).integers(0, 256, (20, 48)).astype(np.uint8)
    noisy = np.clip(training[7].astype(int) + 5, 0, 255).astype(np.uint8)
    other = np.random.default_rng(1).integers(0, 256, 48).astype(np.uint8)
    nearest, copies = nearest_by_pixels(np.stack([noisy, other]), training)
    assert copies.tolist() == [True, False]
    assert nearest.index[0] == 7
    assert nearest.distance[0] == pytest.approx(np.abs(noisy / 255 - training[7] / 255).max(), 0.2)
    _, among_few = nearest_by_pixels(noisy[None], training[:10])
    assert not among_few.any()


def test_the_mean_of_all_pairs_needs_no_pairs():
    unit = normalised(features(7, 4, 1))
    pairs = [a @ b for a, b in itertools.permutations(unit, 2)]
    assert mean_similarity(unit) == pytest.approx(np.mean(pairs), rel=1e-5)


NAMES = (
    "1girl",
    "long_hair",
    "hair",
    "hot_pepper",
    "pepper",
    "safe",
    ":)",
    "fox_(animal)",
    "x",
    "hair_bow",
)
KINDS = ("general", "general", "general", "general", "general", "rating", "general", "general",
         "general", "general")  # fmt: skip
TABLE = TagTable(NAMES, KINDS, tuple(range(10)))


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("1girl, long hair, :)", {"1girl", "long_hair", ":)"}),
        ("a hot pepper and long_hair", {"hot_pepper", "long_hair"}),
        ("Pepper. Her hair", {"pepper", "hair"}),
        ("with a hair bow", {"hair_bow"}),
        (r"fox \(animal\), safe", {"fox_(animal)"}),
        ("x, nothing here", set()),
        ("", set()),
    ],
)
def test_tags_are_found_in_tags_and_in_sentences(prompt, named):
    assert {NAMES[number] for number in PromptTags(TABLE).of(prompt)} == named


def test_the_share_that_is_seen():
    wanted = [frozenset({1, 2}), frozenset(), frozenset({3})]
    seen = [frozenset({2, 5}), frozenset({1}), frozenset()]
    assert seen_fractions(wanted, seen) == [0.5, None, 0]


def test_numbers_are_written_without_powers():
    row = {"value": 12345.6, "low": -0.00123, "high": None}
    assert estimate_text(row) == "12,346"
    assert estimate_text({**row, "high": 0.5}, sign="+") == "+12,346 (-0.00123 to +0.5)"
    assert estimate_text({"value": None, "low": None, "high": None}) == "–"
