"""Each sampler draws by the model's own noise schedule, also where that ends in noise alone."""

import inspect
import math

import pytest
import torch

from impasto.diffusion.schedule import NoiseSchedule
from impasto.models.pipeline_files import ZERO_TERMINAL_SNR
from impasto.sampling.prompts import SAMPLERS
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
