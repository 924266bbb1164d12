"""Soft min-SNR and Diff-Tuning: the weight of each noise level."""

import pytest
import torch

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.config.load import build_run_config
from impasto.config.objective import PlainLoss
from impasto.diffusion.prediction import EPSILON, VELOCITY
from impasto.diffusion.schedule import NoiseSchedule
from impasto.diffusion.weighting import min_snr, retention, soft_min_snr
from impasto.errors import ConfigError
from impasto.models.networks.loading import load_base_model
from impasto.models.networks.schedules import with_zero_terminal_snr
from impasto.models.reading.opening import OpenOptions
from impasto.training.assembly.session_parts import build_recipe
from impasto.training.builders.objective import build_loss_weight
from impasto.training.builders.overrides import Overrides

SCHEDULE = NoiseSchedule(torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0))
T = torch.arange(1000)


def test_it_is_the_smooth_form_of_min_snr():
    """The paper has 1 / (sigma^2 + 1 / gamma) for the error in the image."""
    snr = SCHEDULE.snr(T)
    of_image = soft_min_snr(4.0)(T, SCHEDULE, EPSILON) * snr
    torch.testing.assert_close(of_image, 1 / (1 / snr + 1 / 4))
    velocity = soft_min_snr(4.0)(T, SCHEDULE, VELOCITY) * (snr + 1)
    torch.testing.assert_close(velocity, of_image)
    bent = min_snr(4.0)(T, SCHEDULE, EPSILON)
    soft = soft_min_snr(4.0)(T, SCHEDULE, EPSILON)
    assert (soft <= bent).all()
    assert (soft >= bent / 2 - 1e-6).all()
    assert soft[0] == pytest.approx(bent[0].item(), rel=0.01)
    assert soft[-1] == pytest.approx(bent[-1].item(), rel=0.01)


def test_the_setting_asks_for_it_and_not_for_both():
    built = build_loss_weight(PlainLoss(soft_min_snr_gamma=4.0), SCHEDULE)
    assert torch.equal(built(T, SCHEDULE, EPSILON), soft_min_snr(4.0)(T, SCHEDULE, EPSILON))
    with pytest.raises(ValueError, match="two forms of one weight"):
        PlainLoss(soft_min_snr_gamma=4.0, min_snr_gamma=5.0)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"min_snr_gamma": 5.0}, [0.0825, 0.01415, 0.00519, 0.00466]),
        ({"v_loss_as_noise_loss": True}, [0.0825, 0.01415, 0.00519, 0.00466]),
        ({"debiased": True}, [0.9175, 0.98585, 0.99481, 0.99534]),
    ],
)
def test_weights_by_the_original_schedule_are_those_of_sd_scripts(
    train_config, nano_model, weights, expected
):
    """sd-scripts computes the ratios of all timesteps before it rescales the schedule.

    The numbers are for `--v_parameterization`, from its formulas in float64 on its betas.
    """
    model = with_zero_terminal_snr(
        load_base_model(str(nano_model), OpenOptions(prediction_type="v_prediction"))
    )
    t = torch.tensor([700, 900, 990, 999])
    found = {}
    for of in ("original", "trained"):
        config = train_config(
            loss={**weights, "snr_schedule": of},
            noise={"zero_terminal_snr": True},
            model={"prediction_type": "v_prediction"},
        )
        recipe = build_recipe(config, model, torch.device("cpu"), Overrides())
        found[of] = recipe.loss_weight(t, recipe.schedule, recipe.prediction)
    torch.testing.assert_close(found["original"], torch.tensor(expected), atol=1e-5, rtol=2e-3)
    assert float(found["trained"][-1]) in (pytest.approx(0, abs=1e-9), 1), "no image remains"


def test_the_original_schedule_needs_one_that_is_rescaled_and_a_weight(train_config):
    for changes in ({"loss": {"min_snr_gamma": 5.0}}, {"noise": {"zero_terminal_snr": True}}):
        loss = {**changes.get("loss", {}), "snr_schedule": "original"}
        with pytest.raises(ConfigError, match="snr_schedule original has no effect without"):
            train_config(**{**changes, "loss": loss})


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_what_is_trained_counts_at_high_noise_and_what_keeps_at_low(tau):
    keeps = torch.zeros(1000, dtype=torch.bool)
    trained, kept = retention(T, 1000, tau, keeps), retention(T, 1000, tau, ~keeps)
    assert trained.mean().item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(kept, trained.flip(0))
    assert trained[999] / trained[0] == pytest.approx(1000**tau, rel=1e-4)
    half = retention(torch.tensor([0, 0]), 1000, tau, torch.tensor([True, False]))
    assert half[0] > half[1]


def test_diff_tuning_needs_images_that_keep():
    values = {
        "output_dir": "run",
        "model": {"path": "m"},
        "dataset": {"datasets": [{"subsets": [{"image_dir": "a"}]}]},
        "training": {"max_steps": 1},
        "loss": {"diff_tuning": 1.0},
    }
    with pytest.raises(ConfigError, match="needs regularisation images"):
        require_compatible(build_run_config(values, source="test"), Facts())
    values["dataset"]["datasets"][0]["subsets"].append({"image_dir": "b", "is_reg": True})
    require_compatible(build_run_config(values, source="test"), Facts())
