"""The assignment of noise to the images of a batch (`noise.immiscible`)."""

from itertools import permutations

import numpy as np
import pytest
import torch

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.config.load import build_run_config
from impasto.data.loading.sampler import EpochSampler
from impasto.data.planning.groups import Group
from impasto.data.records import Size
from impasto.diffusion.assignment import assigned, least_assignment
from impasto.errors import ConfigError
from impasto.training.fingerprints.fingerprint import _passes


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


CUTS = [(4, 1), (2, 2), (1, 4)]
"""Numbers of accumulated batches and of processes that give the same four batches a step."""


@pytest.mark.parametrize("order", ["shuffled", "proportional"])
def test_a_run_goes_on_in_another_cut_where_it_has_the_same_batches(order):
    """The choices within a batch are then equal: its images, and their places in the step."""
    values = {
        "output_dir": "run",
        "model": {"path": "m"},
        "dataset": {"image_dir": ".", "batch_order": order},
        "noise": {"immiscible": True},
    }
    wide, tall = Group(0, Size(96, 64)), Group(0, Size(64, 96))
    batches, told = [], set()
    for accumulation, processes in CUTS:
        sampler = EpochSampler(
            [wide] * 17 + [tall] * 9,
            batch_sizes={wide: 3, tall: 2},
            seed=5,
            accumulation=accumulation,
            num_processes=processes,
            order=order,
        )
        steps = [
            sampler.optimizer_step(step, rank) for step in range(6) for rank in range(processes)
        ]
        found = [(s.step, b.samples, b.positions) for s in steps for b in s.micro_batches
                 if not b.is_padding]  # fmt: skip
        batches.append(sorted(found))
        cut = {"max_steps": 1, "batch_size": 3, "gradient_accumulation_steps": accumulation}
        changed = {**values, "training": cut}
        told.add(_passes(build_run_config(changed, source="test"), processes))
    is_same = all(found == batches[0] for found in batches)
    assert is_same == (order == "shuffled") == (len(told) == 1)
