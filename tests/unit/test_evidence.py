"""The certainty of claims about validation losses, so that chance is neither praised nor blamed.

Closed forms are compared with tables and with simulations; whole runs are simulated with cheap fake
losses, in which nothing happens or a model over-fits, and the fraction of wrong claims is counted.
"""

import math
import random
import statistics

import pytest
from runs_made import made_run as made_run_directory

from impasto.runs.evidence import (
    CONFIDENCE,
    chance_of_each,
    difference,
    standard_error,
    t_tail,
    without_skewness,
)
from impasto.runs.learning import learning_in, learning_of, read_learning
from impasto.runs.learning_text import best_text, gap_text
from impasto.runs.validations import Validation, validations_of


@pytest.mark.parametrize(
    ("degrees", "t"),  # with 2.5 % above it: any table of Student's t
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042)],
)
def test_the_tail_of_t_is_that_of_the_tables(degrees, t):
    assert t_tail(t, degrees) == pytest.approx(0.025, abs=2e-5)
    assert t_tail(0, degrees) == pytest.approx(0.5)


def test_the_tail_of_many_degrees_is_the_normal_one():
    assert t_tail(2.5, 5000) == pytest.approx(1 - statistics.NormalDist().cdf(2.5), rel=0.01)


def test_the_standard_error_is_how_much_means_vary():
    """In simulation, the spread of many means of 12 draws equals the error estimated from each."""
    rng = random.Random(3)
    samples = [[rng.gauss(1, 0.3) for _ in range(12)] for _ in range(4000)]
    spread = statistics.stdev(statistics.fmean(sample) for sample in samples)
    told = math.sqrt(statistics.fmean(standard_error(sample) ** 2 for sample in samples))
    assert told == pytest.approx(spread, rel=0.03)
    assert standard_error([1.0]) is None


def test_a_paired_difference_forgets_what_is_hard_about_images():
    hard = [0.1, 0.5, 0.9, 0.2]
    found = difference([x - 0.01 for x in hard], hard)
    assert found.mean == pytest.approx(-0.01)
    assert found.standard_error < 1e-9
    assert found.is_below(0.01)
    assert not found.is_above(0.5)
    assert difference(hard, hard[:3]) is None
    assert difference([0.1], [0.2]) is None
    assert not difference(hard, hard).is_below(0.5)


def made_run(rng, course, images, spread=0.05, kind="gaussian"):
    """Return the validations of a run whose true loss is `course`, over images that differ.

    Each image has its own loss, which changes by chance at each step: by a Gaussian number; by a
    number of Student's t with three degrees, with heavy tails; or by a lognormal one, so that few
    images change far more than the others. The last kind is drawn for each step, or once, as if a
    run measured the same images at the same noise, plus a small Gaussian number at each step.
    """
    bases = [math.exp(rng.gauss(-1.5, 0.4)) for _ in range(images)]

    def walk(base):
        chances = chances_of(rng, kind, len(course))
        return [base * true * (1 + spread * c) for true, c in zip(course, chances, strict=True)]

    walks = [walk(base) for base in bases]
    return [
        Validation(100 * n, statistics.fmean(values), tuple(values), standard_error(values))
        for n, values in enumerate(zip(*walks, strict=True))
    ]


def chances_of(rng, kind, steps):
    """Draw an image's changes at the base model's validation and at each later step, 0 on
    average."""
    if kind == "gaussian":
        return [rng.gauss(0, 1) for _ in range(steps)]
    if kind == "heavy":
        return [0.0, *(heavy(rng) for _ in range(steps - 1))]
    if kind == "anew":
        return [0.0, *(skewed(rng) for _ in range(steps - 1))]
    once = skewed(rng)
    return [0.1 * rng.gauss(0, 1) + (once if n else 0) for n in range(steps)]


def skewed(rng):
    return math.exp(rng.gauss(0, 1)) - math.exp(0.5)


def heavy(rng):
    return rng.gauss(0, 1) / math.sqrt(rng.gammavariate(1.5, 2) / 3)


@pytest.mark.parametrize(
    ("kind", "images"),
    [
        *[("gaussian", n) for n in (4, 10, 30)],
        *[("anew", n) for n in (4, 8, 16, 30, 100)],
        *[("once", n) for n in (4, 8, 30)],
        *[("heavy", n) for n in (8, 30)],
    ],
)
@pytest.mark.parametrize("steps", [2, 10])
def test_of_runs_that_learn_nothing_hardly_any_is_judged(images, steps, kind):
    """Claims are wrong for at most the promised fraction of runs, with steps to choose from.

    Student's t alone would be wrong for up to half of the runs whose images change unevenly.
    """
    rng, runs = random.Random(images), 600 if images < 100 else 300
    found = [
        learning_of(made_run(rng, [1.0] * (steps + 1), images, kind=kind)) for _ in range(runs)
    ]
    allowed = 1 - CONFIDENCE
    limit = allowed + 2 * math.sqrt(allowed * (1 - allowed) / runs)
    assert sum(map(is_judged, found)) / runs <= limit
    if (kind, images) == ("anew", 8):
        assert sum(map(would_be_judged, found)) / runs > 3 * limit / (1 + (steps == 2))


def would_be_judged(learning):
    """Return whether Student's t alone finds a difference between a step and the base model."""
    base, chance = learning.first, learning.chance
    return any(
        learning.compared(one, base).is_clear_if_gaussian(chance) for one in learning.validations
    )


@pytest.mark.parametrize(
    ("images", "falls"),  # mean change of the images, in units of the spread of their differences
    [(8, 5), (12, 3), (30, 1.5), (100, 0.8)],
)
def test_what_is_truly_learnt_is_found_on_gaussian_images(images, falls):
    """The guide's table of power: a run of ten validations finds it nearly always."""
    rng, runs = random.Random(images), 200
    learnt = [-falls + rng.gauss(0, 1) for _ in range(images * runs)]
    chance = chance_of_each(30)
    told = sum(
        difference(learnt[n * images : (n + 1) * images], [0.0] * images).is_below(chance)
        for n in range(runs)
    )
    assert told / runs > 0.8


@pytest.mark.parametrize("skewness", [0, 1e-9, 0.5, 6])
def test_t_is_taken_back_to_the_quantile_that_skewness_moved(skewness):
    for z in (0.0, 0.5, 2.5, 40.0):
        moved = z + skewness * (2 * z * z + 1) / (6 * math.sqrt(10))
        assert without_skewness(moved, skewness, 10) == pytest.approx(z, abs=1e-9)
    assert without_skewness(math.inf, skewness, 10) == math.inf
    assert without_skewness(0.0, skewness, 10) == 0


def test_a_tail_on_the_side_of_the_mean_is_no_doubt():
    """Images that gain much more than others leave a gain certain; images that lose do not."""
    gains = [-1.0, -1.1, -1.2, -1.3, -1.4, -1.2, -1.1, -1.3, -1.2, -1.2, -1.0, -1.4] * 3
    far, near = [*gains, -3.0, -3.5], [*gains, -0.1, -0.1]
    nothing = [0.0] * len(far)
    assert difference(far, nothing).skewness < -2
    assert difference(far, nothing)._t < difference(near, nothing)._t
    assert difference(far, nothing)._tail() < difference(near, nothing)._tail()
    mirrored = difference(nothing, far)
    assert mirrored.is_above(1e-6)
    assert mirrored._tail() == pytest.approx(difference(far, nothing)._tail())


def test_what_is_clear_but_rests_on_few_images_is_told_so():
    before, after = (0.5, 0.6, 0.7, 0.8), (0.3, 0.34, 0.36, 0.4)
    learning = learning_of([Validation(0, 0.65, before), Validation(9, 0.35, after)])
    assert learning.verdict == "unclear"
    assert "4 held-out images are too few" in learning.sentence()
    assert "within the noise" not in learning.sentence()


def is_judged(learning):
    return learning.verdict != "unclear" or learning.is_best_better or not learning.as_good()


def test_a_run_that_is_looked_at_after_each_validation_is_hardly_ever_told_what_is_not_so():
    """Each look is a chance of error: judged by the values so far, runs would often be
    misjudged."""
    rng, runs, number = random.Random(7), 300, 20
    by_all, by_what_is_there = 0, 0
    for _ in range(runs):
        found = made_run(rng, [1.0] * (number + 1), 10, kind="anew")
        looks = [(found[:n], number + 1 - n) for n in range(2, number + 2)]
        by_all += any(is_judged(learning_of(seen, to_come=left)) for seen, left in looks)
        by_what_is_there += any(is_judged(learning_of(seen)) for seen, _ in looks)
    allowed = 1 - CONFIDENCE
    limit = allowed + 2 * math.sqrt(allowed * (1 - allowed) / runs)
    assert by_all / runs <= limit < by_what_is_there / runs


@pytest.mark.parametrize(
    ("phase", "total", "settings", "to_come"),
    [
        ("training", 95, {"validation": {"every_steps": 10}}, 9),  # 20, 30 ... 90, 95
        ("stopped", 90, {"validation": {"every_steps": 10}}, 8),
        ("training", 10, {"validation": {"every_steps": 10}}, 0),
        ("finished", 95, {}, 0),
        ("training", 95, {}, None),
        ("training", 95, {"validation": {"every_steps": "often"}}, None),
    ],
)
def test_what_is_still_to_be_measured_is_known_from_the_settings(
    tmp_path, phase, total, settings, to_come
):
    run = made_run_directory(tmp_path / "r", settings=settings, phase=phase, total_steps=total)
    for step, image in ((0, 0.5), (10, 0.4)):
        line = {"step": step, "validation_loss": image, "validation_images": [image] * 3}
        run.append_metrics({**line, "time": 1.0})
    learning = read_learning(run)
    assert learning.to_come == to_come
    assert learning.verdict == ("unclear" if to_come is None else "better")
    assert ("The end of the run shows" in learning.sentence()) == (to_come is None)


def test_naive_claims_would_be_wrong_often():
    """Without this correction, the lowest of ten by chance suggests learning in most runs."""
    rng, runs = random.Random(1), 300
    courses = [learning_of(made_run(rng, [1.0] * 11, 4)) for _ in range(runs)]
    fallen = sum(one.best.loss < 0.98 * one.first.loss for one in courses)
    assert fallen / runs > 0.5


@pytest.mark.parametrize("better", [0, 1])
def test_two_models_are_hardly_ever_ordered_wrongly(better):
    """On six images, with one model truly 3 % better, a claim is the right one."""
    rng, runs = random.Random(better), 500
    course = [1.0, 0.97] if better else [0.97, 1.0]
    verdicts = [learning_of(made_run(rng, course, 6)).verdict for _ in range(runs)]
    wrong = "worse" if better else "better"
    assert verdicts.count(wrong) / runs <= 1 - CONFIDENCE
    means = [made_run(rng, course, 6) for _ in range(runs)]
    flipped = sum((run[1].loss < run[0].loss) != bool(better) for run in means)
    assert flipped / runs > 0.08  # means alone would order many of them wrongly


@pytest.mark.parametrize(
    ("course", "verdict", "words"),
    [
        ([1, 0.8, 0.6, 0.5], "better", "That is its lowest: no sign of over-fitting"),
        ([1, 0.5, 0.6, 0.75], "over-fitting", "the model is over-fitting"),
        ([1, 0.8, 1.2, 1.5], "worse", "does worse on held-out images than the base model"),
        ([1, 1, 1, 1], "unclear", "is within the noise"),
    ],
)
def test_what_truly_happens_is_found(course, verdict, words):
    learning = learning_of(made_run(random.Random(5), course, 20))
    assert learning.verdict == verdict
    assert words in learning.sentence()
    assert learning.is_overfitting == (verdict in ("over-fitting", "worse"))
    assert learning.mood == {"better": "good", "unclear": ""}.get(verdict, "bad")


@pytest.mark.parametrize(
    ("training", "overfits"), [(0.3, True), (0.6, False), (None, True), (0.5, True)]
)
def test_what_training_images_do_worse_at_too_is_not_called_over_fitting(training, overfits):
    base, best, last = made_run(random.Random(5), [1, 0.5, 0.75], 20)
    best, last = best._replace(training=0.5), last._replace(training=training)
    learning = learning_of([base, best, last])
    assert learning.verdict == "over-fitting"
    assert ("the model is over-fitting" in learning.sentence()) == overfits
    told = "That of the training images rose as well, from 0.5000 to 0.6000"
    assert (told in learning.sentence()) != overfits
    assert ("the learning rate is too high" in learning.sentence()) != overfits


def test_the_best_step_is_within_the_noise_of_others():
    flat = learning_of(made_run(random.Random(2), [1, 0.5, 0.5, 0.5], 8))
    assert "within the noise of" in best_text(flat)
    assert 0 not in flat.as_good()
    alone = learning_of(made_run(random.Random(2), [1, 0.9, 0.5, 0.9], 20))
    assert alone.best.step == 200
    assert alone.as_good() == []
    assert "below all others by more than chance" in best_text(alone)


def test_one_image_and_changed_images_claim_nothing():
    one = learning_of([Validation(0, 0.5, (0.5,)), Validation(9, 0.1, (0.1,))])
    assert one.verdict == "unclear"
    assert "One held-out image cannot show" in one.sentence()
    other = learning_of([Validation(0, 0.5, (0.5, 0.5)), Validation(9, 0.1, (0.1,) * 3)])
    assert other.verdict == "unclear"


def test_a_last_loss_that_is_no_number_is_no_success():
    lines = [
        {"step": step, "validation_loss": loss, "validation_images": [loss, loss + 0.1]}
        for step, loss in ((0, 0.5), (10, 0.2), (20, math.nan))
    ]
    learning = learning_in(lines)
    assert learning.verdict == "worse"
    assert "ruined" in learning.sentence()


def test_the_gap_is_told_where_training_images_were_measured():
    lines = [
        {"step": 0, "validation_loss": 0.5, "training_sample_loss": 0.5},
        {"step": 9, "validation_loss": 0.4, "training_sample_loss": 0.1},
    ]
    assert "+0.0000 before, +0.3000 after" in gap_text(learning_in(lines))
    assert gap_text(learning_in([{**line, "training_sample_loss": None} for line in lines])) == ""


def test_a_step_that_was_measured_again_counts_once():
    lines = [{"step": 5, "validation_loss": 1.0}, {"step": 5, "validation_loss": 2.0}]
    assert validations_of([*lines, {"step": 0, "validation_loss": 3.0}]) == [
        Validation(0, 3.0), Validation(5, 2.0)
    ]  # fmt: skip
    damaged = {"step": 1, "validation_loss": 1.0, "validation_images": [1.0, "x"]}
    assert validations_of([damaged])[0].images == ()


def test_more_comparisons_are_each_judged_more_strictly():
    assert chance_of_each(10) == pytest.approx((1 - CONFIDENCE) / 10)
    assert chance_of_each(0) == pytest.approx(1 - CONFIDENCE)
