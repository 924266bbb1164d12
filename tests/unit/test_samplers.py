"""Each sampler uses the model's own noise schedule, even one that ends in pure noise."""

import inspect
import math
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from impasto.diffusion.schedule import NoiseSchedule
from impasto.errors import ConfigError
from impasto.models.networks.schedules import schedule_of
from impasto.models.reading.pipeline_files import ZERO_TERMINAL_SNR
from impasto.sampler_table import SAMPLERS
from impasto.sampling.sampler import build_scheduler
from impasto.sampling.whole_steps import set_timesteps

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
    """Return the schedule between two steps, in logarithms, as samplers with sigmas interpolate."""
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
    if rescaled:  # starts at the last step
        assert int(scheduler.timesteps[0]) == 999
        assert float(scheduler.alphas_cumprod[-1]) < 1e-6
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


def test_multistep_coefficients_are_those_of_diffusers():
    """Recorded from diffusers' LMSDiscreteScheduler with SciPy: 5 steps, the fourth, order 4."""
    scheduler = build_scheduler("lms", {**CONFIG, "steps_offset": 0})
    scheduler.set_timesteps(5)
    theirs = [-1.0307033697397454, 0.41344537197647446, -0.04933738978201707, 0.000611981822673235]
    ours = [scheduler.get_lms_coefficient(4, 3, which) for which in range(4)]
    assert ours == pytest.approx(theirs, rel=1e-6)
    # slopes of 1 cover the whole step, for any order
    for order in range(1, 5):
        shares = [scheduler.get_lms_coefficient(order, 3, which) for which in range(order)]
        assert sum(shares) == pytest.approx(float(scheduler.sigmas[4] - scheduler.sigmas[3]))


def test_a_spacing_that_needs_scipy_is_refused_without_it(monkeypatch):
    monkeypatch.setattr("impasto.sampling.sampler.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="use_beta_sigmas"):
        build_scheduler("euler", {**CONFIG, "use_beta_sigmas": True})


FEW_TIMESTEPS = 40
FEW = {**CONFIG, "num_train_timesteps": FEW_TIMESTEPS}
"""A short schedule for tests that do not depend on its length: some samplers take 0.2 s for
1000."""
PNDM_OF_2022 = {
    "num_train_timesteps": FEW_TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
}
"""The configuration of the first Stable Diffusion 1.x folders, without DDIM's further options."""
EULER = dict(
    EulerDiscreteScheduler(
        num_train_timesteps=FEW_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    ).config
)
"""The configuration of a folder saved from a scheduler made in code, as is usual for SDXL."""


@pytest.mark.parametrize("config", [PNDM_OF_2022, EULER, {**FEW, "clip_sample": True}])
@pytest.mark.parametrize("name", SAMPLERS)
def test_latents_are_never_clipped(name, config):
    """Latents are not pixels: those of Stable Diffusion reach far beyond 1."""
    assert build_scheduler(name, config).config.clip_sample is False


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_configuration_leaves_open_is_as_in_stable_diffusion(name):
    stated = {**PNDM_OF_2022, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    built, expected = build_scheduler(name, PNDM_OF_2022), build_scheduler(name, stated)
    for scheduler in (built, expected):
        scheduler.set_timesteps(20)
    assert built.timesteps.tolist() == expected.timesteps.tolist()
    if hasattr(built, "final_alpha_cumprod"):
        assert float(built.final_alpha_cumprod) == float(expected.final_alpha_cumprod) < 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_that_a_configuration_does_not_state_is_that_of_training(name):
    config = {k: v for k, v in FEW.items() if not k.startswith("beta_")}
    found = build_scheduler(name, config).alphas_cumprod
    torch.testing.assert_close(found, schedule_of(config).alphas_cumprod.to(found))


def test_what_a_configuration_states_of_ddim_is_kept():
    built = build_scheduler("ddim", {**CONFIG, "set_alpha_to_one": True, "steps_offset": 0})
    built.set_timesteps(20)
    assert (int(built.timesteps[-1]), float(built.final_alpha_cumprod)) == (0, 1.0)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", None])
@pytest.mark.parametrize("steps", [FEW_TIMESTEPS - 1, FEW_TIMESTEPS])
@pytest.mark.parametrize("name", SAMPLERS)
def test_as_many_steps_as_timesteps_can_be_taken(name, steps, spacing):
    config = {**FEW, **({"timestep_spacing": spacing} if spacing else {})}
    scheduler = build_scheduler(name, config, steps)
    scheduler.set_timesteps(steps)
    latents = torch.zeros(1, 4, 1, 1)
    for t in scheduler.timesteps:
        assert 0 <= float(t) < FEW_TIMESTEPS
        scaled = scheduler.scale_model_input(latents, t)
        latents = scheduler.step(torch.full_like(scaled, 0.1), t, latents).prev_sample
    assert bool(latents.isfinite().all())


WHOLE = [name for name in SAMPLERS if name != "dpmsingle"]  # which only spaces evenly
ROUNDED_UP = [61, 103, 121, 122, 201, 995, 998]
"""Some of the 62 step counts up to 1000 for which diffusers gives an extra timestep of -1."""


@cache
def trailing(name):
    return build_scheduler(name, {**CONFIG, "timestep_spacing": "trailing"})


@settings(max_examples=60)
@given(steps=st.integers(1, 1000) | st.sampled_from(ROUNDED_UP), name=st.sampled_from(WHOLE))
def test_trailing_timesteps_are_those_of_the_formula(steps, name):
    """T - i T/n - 1 for i < n, each rounded, computed in integers instead of floats."""
    scheduler = trailing(name)
    set_timesteps(scheduler, steps)
    drawn = [float(t) for t in scheduler.timesteps[:: 2 if name.startswith("dpm_2") else 1]]
    drawn = sorted(set(drawn), reverse=True)  # some repeat a timestep
    assert len(drawn) == steps
    after = (np.array(drawn) + 1).astype(np.int64) * steps
    exact = 1000 * steps - 1000 * np.arange(steps)
    assert min(drawn) >= 0
    assert (2 * np.abs(after - exact) <= steps).all()


def test_every_number_of_trailing_steps_is_taken_as_it_is():
    scheduler = build_scheduler("ddim", {**CONFIG, "timestep_spacing": "trailing"})
    for steps in range(1, 1001):
        set_timesteps(scheduler, steps)
        assert (len(scheduler.timesteps), int(scheduler.timesteps.min()) >= 0) == (steps, True)
