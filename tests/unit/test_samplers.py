"""Each sampler draws by the model's own noise schedule, also where that ends in noise alone."""

import inspect
import math

import pytest
import torch

from impasto.diffusion.schedule import NoiseSchedule
from impasto.errors import ConfigError
from impasto.models.reading.pipeline_files import ZERO_TERMINAL_SNR
from impasto.sampler_table import SAMPLERS
from impasto.sampling.sampler import build_scheduler

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "v_prediction",
}


def at(alphas, t):
    """The schedule at a step between two; in logarithms, as samplers with sigmas interpolate."""
    low = int(t)
    high, share = min(low + 1, len(alphas) - 1), float(t) - low
    low, high = (alphas[i].clamp(min=2.0**-24).log() for i in (low, high))
    return ((1 - share) * low + share * high).exp()


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_model_is_sampled_exactly(name, rescaled):
    """The model knows the image; a sampler with another schedule than the model's misses it."""
    schedule = NoiseSchedule.scaled_linear(0.00085, 0.012, 1000)
    schedule = schedule.to_zero_terminal_snr() if rescaled else schedule
    alphas = schedule.alphas_cumprod.double()
    scheduler = build_scheduler(name, {**CONFIG, **(ZERO_TERMINAL_SNR if rescaled else {})})
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 4, 8, 8, generator=generator)
    latents = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    takes = inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if "generator" in takes else {}
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, t).double()
        alpha = at(alphas, t)
        noise = (noisy - alpha.sqrt() * image) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * image
        latents = scheduler.step(velocity.float(), t, latents, **options).prev_sample
    error = float((latents - image).abs().mean())
    # those that stop at the first step of the schedule leave its noise in
    stops_there = name in {"ddim", "pndm", "dpmsolver"}
    assert error < (1.1 * math.sqrt(1 - float(alphas[0])) if stops_there else 1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_rescaled_schedule_begins_at_its_last_step(name):
    scheduler = build_scheduler(name, {**CONFIG, **ZERO_TERMINAL_SNR})
    scheduler.set_timesteps(20)
    assert int(scheduler.timesteps[0]) == 999
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6


def test_multistep_coefficients_are_those_of_diffusers():
    """Recorded from diffusers' LMSDiscreteScheduler with SciPy: 5 steps, the fourth, order 4."""
    scheduler = build_scheduler("lms", {**CONFIG, "steps_offset": 0})
    scheduler.set_timesteps(5)
    theirs = [-1.0307033697397454, 0.41344537197647446, -0.04933738978201707, 0.000611981822673235]
    ours = [scheduler.get_lms_coefficient(4, 3, which) for which in range(4)]
    assert ours == pytest.approx(theirs, rel=1e-6)
    # slopes that are all 1 lead across the whole step, whatever the order
    for order in range(1, 5):
        shares = [scheduler.get_lms_coefficient(order, 3, which) for which in range(order)]
        assert sum(shares) == pytest.approx(float(scheduler.sigmas[4] - scheduler.sigmas[3]))


def test_a_spacing_that_needs_scipy_is_refused_without_it(monkeypatch):
    monkeypatch.setattr("impasto.sampling.sampler.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="use_beta_sigmas"):
        build_scheduler("euler", {**CONFIG, "use_beta_sigmas": True})


@pytest.mark.parametrize("name", SAMPLERS)
def test_as_many_steps_as_timesteps_can_be_taken(name):
    scheduler = build_scheduler(name, CONFIG, 1000)
    scheduler.set_timesteps(1000)
    latents = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    for t in (*scheduler.timesteps[:2], *scheduler.timesteps[-2:]):
        assert 0 <= float(t) <= 999
    first = scheduler.timesteps[0]
    latents = scheduler.scale_model_input(latents, first)
    stepped = scheduler.step(torch.zeros_like(latents), first, latents).prev_sample
    assert bool(stepped.isfinite().all())
