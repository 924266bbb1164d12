"""Learned loss weights (`loss.uncertainty`)."""

import pytest
import torch

from impasto.config.objective import PlainLoss
from impasto.diffusion.prediction import EPSILON, VELOCITY
from impasto.diffusion.schedule import NoiseSchedule
from impasto.diffusion.uncertainty import RATE, Uncertainty
from impasto.diffusion.weighting import v_loss_as_noise_loss

SCHEDULE = NoiseSchedule(torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0))
T = torch.arange(1000)


def weight(learned, prediction=EPSILON):
    return learned(T, SCHEDULE, prediction)


def test_it_begins_as_the_loss_in_v():
    assert torch.equal(weight(Uncertainty(SCHEDULE, VELOCITY), VELOCITY), torch.ones(1000))
    of_noise = weight(Uncertainty(SCHEDULE, EPSILON)) * v_loss_as_noise_loss(T, SCHEDULE, EPSILON)
    torch.testing.assert_close(of_noise[100:], torch.ones(900), rtol=1e-4, atol=0)


def test_all_noise_levels_come_to_weigh_the_same():
    """exp(u) becomes each level's mean loss, for any weights and any variance of samples."""
    learned, generator = Uncertainty(SCHEDULE, VELOCITY), torch.Generator().manual_seed(0)
    usual = 0.2 + 0.3 * torch.cos(T / 400).square()
    for _ in range(1500):
        t = torch.randint(0, 1000, (16,), generator=generator)
        counts = torch.where(torch.rand(16, generator=generator) < 0.5, 1.0, 0.1)
        own = usual[t] * torch.empty(16).exponential_(generator=generator)
        learned.add(t, own * counts * learned(t, SCHEDULE, VELOCITY), counts, 1 / 16)
        learned.step()
    evened = usual * weight(learned, VELOCITY)
    assert evened.mean().item() == pytest.approx(1, abs=0.05)
    assert evened.std() / evened.mean() < 0.1
    assert usual.std() / usual.mean() > 0.3


def test_the_gradient_is_that_of_what_is_minimised():
    learned, t = Uncertainty(SCHEDULE, EPSILON), torch.tensor([3, 700])
    losses, counts = torch.tensor([0.4, 0.1]), torch.tensor([1.0, 0.5])
    parameters = torch.zeros(128, requires_grad=True)
    u = learned._start[t] + learned._features[t] @ parameters
    torch.mean(counts * (losses * torch.exp(-u) + u)).backward()
    learned.add(t, losses * counts * learned(t, SCHEDULE, EPSILON), counts, 0.5)
    torch.testing.assert_close(learned.gradient(), parameters.grad)


def test_steps_are_those_of_adam_and_what_is_not_finite_moves_nothing():
    learned, plain = Uncertainty(SCHEDULE, VELOCITY), torch.nn.Parameter(torch.zeros(128))
    adam = torch.optim.Adam([plain], lr=RATE, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(1)
    for number in range(12):
        gradient = torch.randn(128, generator=generator)
        if number == 5:
            before = {name: tensor.clone() for name, tensor in learned.tensors().items()}
            learned.gradient().copy_(gradient).fill_(float("nan"))
            learned.step()
            for name, tensor in learned.tensors().items():
                assert torch.equal(tensor, before[name])
        learned.gradient().copy_(gradient)
        plain.grad = gradient.clone()
        learned.step()
        adam.step()
    torch.testing.assert_close(learned.tensors()["weights"], plain.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_those_of_float32_under_autocast(dtype):
    learned = Uncertainty(SCHEDULE, EPSILON)
    learned.tensors()["weights"].normal_(generator=torch.Generator().manual_seed(1))
    plain = weight(learned)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(weight(learned), plain, rtol=1e-6, atol=0)


def test_fixed_weights_beside_it_are_refused():
    with pytest.raises(ValueError, match="min_snr_gamma has no effect with uncertainty"):
        PlainLoss(uncertainty=True, min_snr_gamma=5.0)
