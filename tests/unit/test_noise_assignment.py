"""Which noise goes to which image of a batch (`noise.immiscible`)."""

from itertools import permutations

import numpy as np
import pytest
import torch

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.config.load import build_run_config
from impasto.diffusion.assignment import assigned, least_assignment
from impasto.errors import ConfigError


@pytest.mark.parametrize("kind", ["normal", "ties", "negative"])
def test_no_other_order_costs_less(kind):
    rng = np.random.default_rng(0)
    for trial in range(40):
        n = 1 + trial % 6
        costs = rng.normal(size=(n, n)) if kind == "normal" else rng.integers(-1, 3, (n, n)) * 1.0
        costs = costs - 5 if kind == "negative" else costs
        found = least_assignment(costs)
        assert sorted(found) == list(range(n))
        least = min(sum(costs[i, p[i]] for i in range(n)) for p in permutations(range(n)))
        assert sum(costs[i, found[i]] for i in range(n)) == pytest.approx(least)


def test_noises_go_to_the_images_they_are_near():
    noise = torch.randn(8, 4, 6, 5, generator=torch.Generator().manual_seed(3))
    order = [5, 2, 7, 0, 1, 3, 6, 4]
    images = 0.5 * noise[order]
    assert torch.equal(assigned(images, noise), noise[order])
    assert torch.equal(assigned(images[:1], noise[:1]), noise[:1])


def test_batches_of_one_have_nothing_to_choose():
    values = {
        "output_dir": "run",
        "model": {"path": "m"},
        "dataset": {"image_dir": "."},
        "training": {"max_steps": 1, "batch_size": 1},
        "noise": {"immiscible": True},
    }
    with pytest.raises(ConfigError, match=r"noise\.immiscible has no effect"):
        require_compatible(build_run_config(values, source="test"), Facts())
    values["training"]["batch_size"] = 2
    require_compatible(build_run_config(values, source="test"), Facts())
