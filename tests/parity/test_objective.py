"""Weights, losses, noise and timesteps: against sd-scripts' recorded numbers and closed forms."""

import math

import pytest
import torch

from impasto.config.objective import HuberLoss
from impasto.diffusion.loss import Huber, SmoothL1, Threshold, absolute, per_sample, squared
from impasto.diffusion.noise import PLAIN_NOISE, NoiseRecipe
from impasto.diffusion.prediction import EPSILON, VELOCITY
from impasto.diffusion.randomness import PerSampleRandomness
from impasto.diffusion.schedule import NoiseSchedule
from impasto.diffusion.timesteps import LogitNormal, Stratified, TimestepRange, Uniform
from impasto.diffusion.weighting import (
    debiased,
    min_snr,
    noise_loss_like_v,
    product,
    v_loss_as_noise_loss,
)
from impasto.training.builders.objective import build_error, build_loss_weight

SCHEDULE = NoiseSchedule.scaled_linear()
PREDICTIONS = {"eps": EPSILON, "v": VELOCITY}


@pytest.fixture(scope="module")
def recorded(golden):
    return golden("snr_weights.json")


def close(found, expected, rtol=2e-3):
    """Compare with recorded float32 results, which differ by that much at low noise."""
    torch.testing.assert_close(found.float(), torch.tensor(expected), atol=1e-7, rtol=rtol)


def weights(weight, recorded, prediction):
    return weight(torch.tensor(recorded["timesteps"]), SCHEDULE, prediction)


@pytest.mark.parametrize("gamma", [1, 5, 20])
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_min_snr_equals_the_recorded_numbers(recorded, gamma, kind):
    found = weights(min_snr(float(gamma)), recorded, PREDICTIONS[kind])
    close(found, recorded["min_snr"][f"gamma{gamma}_{kind}"])


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_debiased_equals_the_recorded_numbers(recorded, kind):
    close(weights(debiased, recorded, PREDICTIONS[kind]), recorded["debiased"][kind])


def test_the_other_weights_equal_the_recorded_numbers(recorded):
    close(
        weights(v_loss_as_noise_loss, recorded, VELOCITY), recorded["scale_v_pred_like_noise_pred"]
    )
    close(weights(noise_loss_like_v(0.1), recorded, EPSILON), recorded["v_pred_like_loss_0.1"])


def test_weights_are_multiplied(recorded):
    both = weights(product([min_snr(5.0), debiased]), recorded, EPSILON)
    each = [weights(weight, recorded, EPSILON) for weight in (min_snr(5.0), debiased)]
    torch.testing.assert_close(both, each[0] * each[1])


def test_the_rescaled_schedule_equals_the_recorded_one_and_diffusers(recorded):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    ours = SCHEDULE.to_zero_terminal_snr()
    t = torch.tensor(recorded["timesteps"])
    close(ours.alphas_cumprod[t], recorded["zero_terminal_snr"]["alphas_cumprod"], rtol=1e-4)
    assert ours.alphas_cumprod[-1] == 0
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    torch.testing.assert_close(ours.alphas_cumprod, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=lambda p: p.name)
def test_weights_of_the_rescaled_schedule_are_finite_to_the_end(prediction):
    t = torch.tensor([0, 500, 998, 999])
    found = min_snr(5.0)(t, SCHEDULE.to_zero_terminal_snr(), prediction)
    assert torch.isfinite(found).all()
    assert float(found[-1]) == pytest.approx(1.0 if prediction is EPSILON else 0.0, abs=1e-6)


def test_huber_and_smooth_l1_equal_the_recorded_numbers(recorded):
    t = torch.tensor(recorded["timesteps"])
    target = torch.zeros(len(t), 1, 1, 1)
    assert len(recorded["huber"]) == 18
    for name, numbers in recorded["huber"].items():
        kind, schedule, c, scale = name.split("/")
        threshold = Threshold(schedule, float(c[1:]), float(scale.removeprefix("scale")))
        close(threshold(t, SCHEDULE).flatten(), numbers["threshold"], rtol=1e-4)
        measure = {"huber": Huber, "smooth_l1": SmoothL1}[kind](threshold)
        found = measure(target + 0.3, target, t, SCHEDULE).flatten()
        close(found, numbers["loss_for_diff_0.3"], rtol=1e-4)


def test_large_and_small_errors_of_huber_have_their_limits():
    t, zero = torch.tensor([500]), torch.zeros(1, 1, 1, 1)
    threshold = Threshold("constant", 0.1)
    small, large = zero + 1e-3, zero + 1e3
    for measure, at_small, at_large in (
        (Huber(threshold), 1e-6, 2 * 0.1 * 1e3),
        (SmoothL1(threshold), 1e-6 / 0.1, 2 * 1e3),
        (squared, 1e-6, 1e6),
        (absolute, 1e-3, 1e3),
    ):
        assert float(measure(small, zero, t, SCHEDULE)) == pytest.approx(at_small, rel=1e-2)
        assert float(measure(large, zero, t, SCHEDULE)) == pytest.approx(at_large, rel=1e-3)


def test_a_mask_takes_its_share_of_the_mean():
    error = torch.ones(2, 4, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    assert per_sample(error, mask).tolist() == [0.375, 1.0]


def randomness(step=3, size=64, positions=None):
    return PerSampleRandomness(
        7, step, tuple(positions if positions is not None else range(size)), size
    )


LATENTS = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def test_plain_noise_is_the_draw_itself():
    noise = PLAIN_NOISE.noise(LATENTS, randomness())
    assert torch.equal(noise, randomness().normal((4, 16, 16), "noise"))
    assert PLAIN_NOISE.on_input(noise, randomness()) is noise


def test_an_offset_is_the_same_over_a_channel_and_as_strong_as_asked():
    shift = NoiseRecipe(offset=0.1).noise(LATENTS, randomness()) - PLAIN_NOISE.noise(
        LATENTS, randomness()
    )
    assert float(shift.std(dim=(2, 3)).max()) < 1e-6
    assert float(shift[..., 0, 0].std()) == pytest.approx(0.1, rel=0.15)


def test_the_adaptive_offset_equals_the_recorded_rule(recorded):
    case = recorded["adaptive_noise_scale"]
    latents = torch.full((64, 4, 8, 8), case["latents_value"])
    recipe = NoiseRecipe(offset=case["offset"], adaptive_scale=case["adaptive"])
    plain = PLAIN_NOISE.noise(latents, randomness())
    unit = NoiseRecipe(offset=1.0).noise(latents, randomness()) - plain
    found = recipe.noise(latents, randomness()) - plain
    expected = case["effective_offset"] * unit
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_random_strength_is_one_number_for_the_update():
    recipe = NoiseRecipe(offset=0.1, offset_is_random=True)
    ratios = []
    for step in range(50):
        plain = PLAIN_NOISE.noise(LATENTS, randomness(step))
        whole = NoiseRecipe(offset=0.1).noise(LATENTS, randomness(step)) - plain
        shift = recipe.noise(LATENTS, randomness(step)) - plain
        ratio = shift / whole
        assert float(ratio.max() - ratio.min()) < 0.05
        ratios.append(float(ratio.median()))
    assert 0 <= min(ratios) < 0.2
    assert 0.8 < max(ratios) <= 1
    assert sum(ratios) / 50 == pytest.approx(0.5, abs=0.15)


def test_multires_noise_is_standard_and_coarser():
    recipe = NoiseRecipe(multires_iterations=6, multires_discount=0.5)
    noise = recipe.noise(LATENTS, randomness())
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(64), atol=1e-4, rtol=0)
    pooled = torch.nn.functional.avg_pool2d(noise, 8).std()
    plain = torch.nn.functional.avg_pool2d(PLAIN_NOISE.noise(LATENTS, randomness()), 8).std()
    assert float(pooled) > 1.5 * float(plain)


def test_perturbation_reaches_the_input_and_not_the_target():
    recipe = NoiseRecipe(perturbation=0.1)
    noise = recipe.noise(LATENTS, randomness())
    assert torch.equal(noise, PLAIN_NOISE.noise(LATENTS, randomness()))
    assert float((recipe.on_input(noise, randomness()) - noise).std()) == pytest.approx(
        0.1, rel=0.02
    )


RECIPE = NoiseRecipe(
    offset=0.1, offset_is_random=True, adaptive_scale=0.1, multires_iterations=4, perturbation=0.1
)


@pytest.mark.parametrize(
    "recipe",
    [
        NoiseRecipe(),
        NoiseRecipe(offset=0.1, offset_is_random=True, adaptive_scale=0.1),
        NoiseRecipe(multires_iterations=6, perturbation=0.1, perturbation_is_random=True),
    ],
)
def test_all_that_the_step_adds_can_be_drawn_ahead(recipe, monkeypatch):
    """After drawing ahead, no sample draws again, and the noise is the same."""
    expected = recipe.noise(LATENTS, randomness())
    on_input = recipe.on_input(expected, randomness())
    ahead = randomness()
    recipe.generate_ahead((4, 16, 16), ahead)

    def refuse(*_):
        raise AssertionError("drawn late")

    monkeypatch.setattr(PerSampleRandomness, "_generators", refuse)
    to_device = ahead.to_device(torch.clone)
    noise = recipe.noise(LATENTS, to_device)
    assert torch.equal(noise, expected)
    assert torch.equal(recipe.on_input(noise, to_device), on_input)
    assert to_device == ahead  # the same draws, on any device


def test_a_sample_has_the_same_noise_however_the_update_is_cut():
    whole = RECIPE.on_input(RECIPE.noise(LATENTS, randomness()), randomness())
    part = randomness(positions=[5, 6, 40])
    alone = RECIPE.on_input(RECIPE.noise(LATENTS[[5, 6, 40]], part), part)
    torch.testing.assert_close(alone, whole[[5, 6, 40]], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [Uniform, Stratified, LogitNormal])
def test_timesteps_stay_in_their_range_and_reach_its_ends(kind):
    sampler = kind(within=TimestepRange(200, 300))
    t = sampler(randomness(size=4000), 1000)
    assert 200 <= int(t.min()) <= 215
    assert 284 <= int(t.max()) <= 299


def test_stratified_timesteps_take_one_of_each_part():
    t = Stratified()(randomness(size=50), 1000)
    assert sorted((t // 20).tolist()) == list(range(50))


def test_logit_normal_timesteps_have_their_median_and_quartiles():
    t = LogitNormal(mean=0.5, std=0.8)(randomness(size=20000), 1000).double()
    for share, z in ((0.25, -0.6745), (0.5, 0.0), (0.75, 0.6745)):
        expected = 1000 / (1 + math.exp(-(0.5 + 0.8 * z)))
        assert float(t.quantile(share)) == pytest.approx(expected, abs=8)


def test_settings_make_what_they_say():
    config = HuberLoss(kind="huber", huber_schedule="constant", huber_c=0.05, min_snr_gamma=5)
    assert build_error(config) == Huber(Threshold("constant", 0.05, 1.0))
    t = torch.tensor([10, 900])
    found = build_loss_weight(config, SCHEDULE)(t, SCHEDULE, EPSILON)
    torch.testing.assert_close(found, min_snr(5.0)(t, SCHEDULE, EPSILON))
