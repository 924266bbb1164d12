"""Weights by masks: surroundings, and small subjects (`loss.outside_mask`, `mask_by_area`)."""

import pytest
import torch

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.config.load import build_run_config
from impasto.diffusion.loss import Masking, per_sample
from impasto.errors import ConfigError

ERROR = torch.ones(3, 4, 2, 2)
MASK = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]], [[[0.0] * 2] * 2]])


def test_as_sd_scripts_has_it_a_small_subject_counts_less():
    assert per_sample(ERROR, MASK).tolist() == [0.25, 1.0, 0.0]


def test_by_area_it_counts_as_much_as_a_large_one():
    assert per_sample(ERROR, MASK, Masking(by_area=True)).tolist() == [1.0, 1.0, 0.0]


def test_the_surroundings_count_a_little():
    found = per_sample(ERROR, MASK, Masking(outside=0.2))
    torch.testing.assert_close(found, torch.tensor([0.4, 1.0, 0.2]))
    grey = torch.full((1, 1, 2, 2), 0.1)
    assert per_sample(ERROR[:1], grey, Masking(outside=0.2)).item() == pytest.approx(0.2)
    assert per_sample(ERROR, MASK, Masking(outside=1.0)).tolist() == [1.0, 1.0, 1.0]


def test_both_are_those_of_onetrainer():
    """`loss * clamp(mask, w, 1)`, divided by the mean of that mask."""
    error = torch.rand(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(2))
    weights = mask.clamp(0.3, 1)
    expected = (error * weights / weights.mean(dim=(1, 2, 3), keepdim=True)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(per_sample(error, mask, Masking(0.3, by_area=True)), expected)


@pytest.mark.parametrize("loss", [{"outside_mask": 0.1}, {"mask_by_area": True}])
def test_without_masks_it_is_refused(loss):
    values = {
        "output_dir": "run",
        "model": {"path": "m"},
        "dataset": {"image_dir": "."},
        "training": {"max_steps": 1},
        "loss": loss,
    }
    with pytest.raises(ConfigError, match="no effect without masks"):
        require_compatible(build_run_config(values, source="test"), Facts())
    values["dataset"]["mask_dir"] = "masks"
    require_compatible(build_run_config(values, source="test"), Facts())
