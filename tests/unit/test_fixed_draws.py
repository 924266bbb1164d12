"""Validation's draws: enough for a stated error, spread over the noise levels, and fair.

If this failed, a few noise levels would decide about a small set, or copies would count as
evidence.
"""

import itertools
import math
import statistics
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impasto.datasets.fixed_draws import LEVEL_SPREAD, NoiseDraws, plan_draws
from impasto.runs.evidence import standard_error
from impasto.runs.validations import MOST_VALUES
from impasto.training.monitoring.fixed_draws import FixedDraws
from impasto.training.monitoring.validation import independent_values


@given(
    images=st.integers(1, 500),
    least=st.integers(1, 20),
    error=st.floats(0.01, 0.5),
)
def test_the_fewest_draws_that_are_enough(images, least, error):
    draws = plan_draws(images, least, error)
    assert draws.per_image >= least
    assert draws.standard_error(images) <= error
    if draws.per_image > least:
        fewer = NoiseDraws(draws.per_image - 1, are_spread=True)
        assert fewer.standard_error(images) > error


def test_few_images_get_more_draws_and_old_runs_what_they_had():
    assert [plan_draws(n, 4, 0.05).per_image for n in (1, 4, 16, 64)] == [12, 7, 4, 4]
    assert plan_draws(1, 4, 0) == NoiseDraws(4, are_spread=False)
    assert plan_draws(1, 4, 1e-9).per_image == 1000


def made(draws, images=8, beside=8):
    plan = types.SimpleNamespace(images=[None] * images)
    return FixedDraws(plan, None, 1.0, draws, lambda _: 1, min(images, beside))


def mean_loss(found, images, curve):
    draws = range(found.draws.per_image)
    levels = torch.cat([found.timesteps(j, range(images), 1000) for j in draws])
    return float(curve[levels].mean())


@pytest.mark.parametrize("steepness", [0, 2.5, 5.5, 8])
@pytest.mark.parametrize("images", [1, 2, 3, 6, 7, 10, 16, 25, 64])
def test_equal_images_have_no_gap_however_many_are_held_out(images, steepness):
    """The loss is far higher at some noise levels, on 8 training images and some others."""
    curve = torch.exp(-steepness * torch.arange(1000) / 1000)
    draws = plan_draws(images, 4, 0.05)
    held_out = mean_loss(made(draws, images), images, curve)
    training = mean_loss(made(draws, 8, beside=images), 8, curve)
    assert held_out == pytest.approx(training, rel=0.01)
    if images % 8 == 0 or 8 % images == 0:
        assert held_out == pytest.approx(training, rel=1e-6)
    assert held_out == pytest.approx(float(curve.mean()), rel=0.025)


def test_the_same_timesteps_for_all_leave_as_much_however_many_images_there_are():
    few, many = (NoiseDraws(4, are_spread=False).standard_error(n) for n in (1, 10_000))
    assert many == pytest.approx(LEVEL_SPREAD / 4 / 2, rel=1e-3)
    assert many == pytest.approx(few, rel=0.05)
    spread = NoiseDraws(4, are_spread=True).standard_error
    assert spread(100) == pytest.approx(spread(1) / 10)


@pytest.mark.parametrize(("images", "draws"), [(1, 12), (4, 7), (10, 5), (64, 4)])
def test_timesteps_cover_the_schedule_evenly(images, draws):
    found = made(NoiseDraws(draws, are_spread=True), images)
    levels = torch.cat([found.timesteps(j, range(images), 1000) for j in range(draws)])
    for image in range(images):  # stratified: one in each part of the schedule
        own = [int(found.timesteps(j, [image], 1000)) for j in range(draws)]
        assert [int(t * draws / 1000) for t in own] == list(range(draws))
    ordered = [0, *sorted(levels.tolist()), 1000]
    widest = max(b - a for a, b in itertools.pairwise(ordered))
    assert widest <= 1.5 * 1000 / (min(images, 8) * draws) + 2
    even = (torch.arange(1000).float() / 1000) ** 2
    assert even[levels].mean() == pytest.approx(float(even.mean()), abs=0.6 / (images * draws))


def test_the_levels_of_old_runs_are_the_same_for_all_images():
    found = made(NoiseDraws(4, are_spread=False))
    assert [found.timesteps(j, [3, 7], 1000).tolist() for j in range(4)] == [
        [125, 125], [375, 375], [625, 625], [875, 875]
    ]  # fmt: skip


@pytest.mark.parametrize("images", [1, 2, 4, 10])
def test_the_error_that_is_stated_is_an_upper_bound(images):
    """In simulation, for a noisy loss that falls from 1.3 to 0 with the timestep, like the
    demo's."""
    draws = plan_draws(images, 4, 0.05)
    found = made(draws, images)
    curve = 1.3 * (1 - torch.arange(1000) / 1000) ** 1.6
    truth = float(curve.mean())
    generator = torch.Generator().manual_seed(images)
    errors = []
    for _ in range(400):
        levels = torch.cat(
            [found.timesteps(j, range(images), 1000) for j in range(draws.per_image)]
        )
        noise = 1 + 0.1 * torch.randn(len(levels), generator=generator)
        errors.append(float((curve[levels] * noise).mean()) / truth - 1)
    assert math.sqrt(statistics.fmean(e * e for e in errors)) <= 0.05


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.1, 2)), min_size=2, max_size=40))
def test_independent_values_have_the_mean_of_all_images(pairs):
    units, losses = zip(*pairs, strict=True)
    values = independent_values(losses, units)
    assert statistics.fmean(values) == pytest.approx(statistics.fmean(losses))
    assert len(values) == len(set(units))


def test_images_without_copies_are_their_own_values():
    assert independent_values([0.1, 0.4, 0.2], [5, 3, 9]) == pytest.approx([0.1, 0.4, 0.2])


def test_copies_are_no_further_evidence():
    losses = [0.1, 0.4, 0.2, 0.3]
    copied = independent_values(losses * 5, [0, 1, 2, 3] * 5)
    assert standard_error(copied) == pytest.approx(standard_error(losses))
    assert standard_error(losses * 5) < 0.5 * standard_error(losses)


def test_many_images_are_combined_and_lose_hardly_any_certainty():
    generator = torch.Generator().manual_seed(0)
    losses = (1 + 0.3 * torch.randn(5000, generator=generator)).tolist()
    values = independent_values(losses, range(5000))
    assert len(values) == MOST_VALUES
    assert statistics.fmean(values) == pytest.approx(statistics.fmean(losses))
    assert standard_error(values) == pytest.approx(standard_error(losses), rel=0.15)
