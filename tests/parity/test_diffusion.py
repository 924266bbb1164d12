"""The mathematics against diffusers' schedulers and against numbers recorded from sd-scripts."""

import pytest
import torch
from diffusers import DDPMScheduler

from impasto.diffusion.loss import per_sample, squared
from impasto.diffusion.prediction import EPSILON, PREDICTIONS, VELOCITY
from impasto.diffusion.randomness import PerSampleRandomness
from impasto.diffusion.schedule import NoiseSchedule
from impasto.diffusion.timesteps import Uniform, fixed_timesteps

SCHEDULE = NoiseSchedule.scaled_linear()
REFERENCE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
T = torch.tensor([0, 1, 250, 500, 998, 999])


def latents(seed):
    return torch.randn((len(T), 4, 6, 5), generator=torch.Generator().manual_seed(seed))


def test_noising_equals_diffusers():
    x_0, noise = latents(0), latents(1)
    ours = SCHEDULE.add_noise(x_0, noise, T)
    torch.testing.assert_close(ours, REFERENCE.add_noise(x_0, noise, T), atol=1e-6, rtol=1e-6)


def test_velocity_equals_diffusers():
    x_0, noise = latents(0), latents(1)
    ours = VELOCITY.target(x_0, noise, T, SCHEDULE)
    torch.testing.assert_close(ours, REFERENCE.get_velocity(x_0, noise, T), atol=1e-6, rtol=1e-6)


def test_schedule_equals_the_recorded_numbers(golden):
    recorded = golden("schedule.json")
    t = torch.tensor(recorded["timesteps"])
    expected = torch.tensor(recorded["alphas_cumprod"])
    torch.testing.assert_close(SCHEDULE.alphas_cumprod[t], expected, atol=0, rtol=2e-6)
    torch.testing.assert_close(SCHEDULE.snr(t), torch.tensor(recorded["snr"]), atol=0, rtol=1e-3)


def test_noising_and_velocity_equal_the_recorded_numbers(golden):
    cases = [c for c in golden("schedule.json")["add_noise_velocity"] if c["schedule"] == "normal"]
    assert cases
    for case in cases:
        x_0, noise = (torch.tensor(case[k]).view(1, 3, 1, 1) for k in ("x0", "noise"))
        t = torch.tensor([case["t"]])
        noisy = SCHEDULE.add_noise(x_0, noise, t).flatten()
        velocity = VELOCITY.target(x_0, noise, t, SCHEDULE).flatten()
        torch.testing.assert_close(noisy, torch.tensor(case["noisy"]), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(velocity, torch.tensor(case["velocity"]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=lambda p: p.name)
def test_a_perfect_output_recovers_the_picture(prediction):
    x_0, noise = latents(0), latents(1)
    x_t = SCHEDULE.add_noise(x_0, noise, T)
    output = prediction.target(x_0, noise, T, SCHEDULE)
    recovered = prediction.recover_x_0(output, x_t, T, SCHEDULE)
    torch.testing.assert_close(recovered, x_0, atol=2e-5, rtol=1e-4)


def test_the_two_predictions_agree_on_the_same_belief():
    """eps' = sqrt(abar) v' + sigma x_t relates both parameterisations of one network's output."""
    x_t, v = latents(0), latents(1)
    epsilon = SCHEDULE.signal(T) * v + SCHEDULE.sigma(T) * x_t
    from_v = VELOCITY.recover_x_0(v, x_t, T, SCHEDULE)
    from_epsilon = EPSILON.recover_x_0(epsilon, x_t, T, SCHEDULE)
    torch.testing.assert_close(from_epsilon, from_v, atol=1e-3, rtol=1e-3)


def test_squared_error_is_a_mean_per_sample():
    output, target = latents(0), latents(1)
    expected = torch.stack([(output[i] - target[i]).pow(2).mean() for i in range(len(T))])
    torch.testing.assert_close(per_sample(squared(output, target, T, SCHEDULE)), expected)


def test_uniform_timesteps_cover_their_range_evenly():
    randomness = PerSampleRandomness(0, 0, tuple(range(4000)), 4000)
    t = Uniform()(randomness, 1000)
    assert t.min() >= 0
    assert t.max() <= 999
    counts = torch.histc(t.float(), bins=10, min=0, max=1000)
    assert (counts - 400).abs().max() < 5 * 19  # five standard deviations of a binomial


def test_fixed_timesteps_are_midpoints():
    assert fixed_timesteps(4, 1000).tolist() == [125, 375, 625, 875]


def test_draws_depend_on_position_not_on_the_batch():
    together = PerSampleRandomness(5, 9, (0, 1, 2, 3), 4).normal((4, 2, 2), "noise")
    apart = torch.cat(
        [PerSampleRandomness(5, 9, (i,), 4).normal((4, 2, 2), "noise") for i in range(4)]
    )
    assert torch.equal(together, apart)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(
        together, PerSampleRandomness(5, 10, (0, 1, 2, 3), 4).normal((4, 2, 2), "noise")
    )
    assert not torch.equal(
        together, PerSampleRandomness(5, 9, (0, 1, 2, 3), 4).normal((4, 2, 2), "posterior")
    )
