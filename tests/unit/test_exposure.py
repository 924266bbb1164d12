"""How often a run shows each image, and the usual rates and numbers of showings."""

from pathlib import Path

import pytest
import torch

from impasto.data.loading.sampler import EpochSampler, Group
from impasto.data.record_table import RecordTable
from impasto.data.records import FileStamp, ImageRecord, Size
from impasto.data.subsets import Subset
from impasto.diffusion.prediction import EPSILON
from impasto.models.families import SD1
from impasto.models.reading.identity import Identity
from impasto.training.planning.advice import advice_on
from impasto.training.planning.exposure import (
    USUAL_LOOKS,
    Exposure,
    exposure_of,
    highest_usual_lr,
    usual_looks,
)

FULL = 860_000_000
USUAL = Exposure(200, 1.0, 40.0, (10, 120))


def run_of(records, batch, accumulation=1):
    group = Group(0, Size(64, 64))
    return EpochSampler(
        [group] * len(records),
        batch_sizes={group: batch},
        seed=3,
        repeats=[record.repeats for record in records],
        accumulation=accumulation,
    )


def record(number, repeats=1, *, is_reg=False):
    return ImageRecord(
        path=Path(f"{number}.png"),
        size=Size(64, 64),
        stamp=FileStamp(1, number),
        subset=Subset(repeats=repeats, is_reg=is_reg),
    )


@pytest.mark.parametrize("accumulation", [1, 3])
def test_looks_are_what_the_sampler_shows(accumulation):
    """Counted over all steps: with the repeats of one subset, without regularisation images."""
    records = [*(record(n, 3) for n in range(4)), *(record(n) for n in range(4, 9))]
    records += [record(n, 2, is_reg=True) for n in range(9, 12)]
    sampler = run_of(records, 2, accumulation)
    steps = 5 * sampler.steps_per_epoch
    shown = [0] * len(records)
    images = 0
    for step in range(steps):
        dealt = sampler.optimizer_step(step)
        images += dealt.size
        for batch in dealt.micro_batches:
            for sample in batch.samples:
                shown[sample.image] += 1
    found = exposure_of(RecordTable.of(records), sampler, steps)
    assert found.images == 9
    assert found.looks == pytest.approx(sum(shown[:9]) / 9)
    assert found.per_step == pytest.approx(images / steps)


def test_a_rate_may_grow_with_the_images_of_a_step():
    """The bounds are known for full-size models: 5e-6 for one image, 1e-4 for 2,048."""
    assert highest_usual_lr(5e-5, 64) == pytest.approx(5e-5)
    assert highest_usual_lr(5e-5, 1) == pytest.approx(5.08e-6, rel=1e-3)
    assert 1e-4 < highest_usual_lr(5e-5, 2048) < 4e-4
    assert highest_usual_lr(5e-5, 0.5) == highest_usual_lr(5e-5, 1)


@pytest.mark.parametrize(("images", "bounds"), [(1, 0), (50, 0), (51, 1), (1000, 1), (10**7, 2)])
def test_few_images_are_shown_more_often(images, bounds):
    assert usual_looks(images) == USUAL_LOOKS[bounds][1]


@pytest.mark.parametrize(
    ("lr", "per_step", "weights", "said"),
    [
        (5e-5, 1, FULL, "above the usual range for adamw and a whole U-Net at 1 image a step"),
        (5e-5, 64, FULL, None),
        (5e-6, 1, FULL, None),  # the example of sd-scripts' own guide
        (1e-5, 2, FULL, "(1e-07 to 7.4e-06)"),
        (1e-5, 32, FULL, None),
        (1e-8, 1, FULL, "below"),
        (3e-4, 8, 5_000_000, None),  # rates for a small network do not apply to full-size ones
    ],
)
def test_a_rate_is_judged_by_the_images_of_a_step(train_config, lr, per_step, weights, said):
    config = train_config(optimizer={"lr": lr})
    exposure = Exposure(200, per_step, 40.0, (10, 120))
    found = advice_on(
        config, Identity(SD1, EPSILON, "the test"), torch.device("cpu"), exposure, weights
    )
    assert [said in line for line in found] == ([] if said is None else [True])


def test_images_that_come_too_often_are_named(train_config):
    config = train_config(optimizer={"lr": 5e-6})
    where = Identity(SD1, EPSILON, "the test"), torch.device("cpu")
    often = Exposure(50, 1.0, 320.0, usual_looks(50))
    (line,) = advice_on(config, *where, often, FULL)
    assert "shown 320 times; 30 to 250 is usual for 50 images" in line
    assert not advice_on(config, *where, USUAL, FULL)


def test_of_a_model_with_random_weights_nothing_is_unusual_but_its_vae(train_config):
    """Training does not change the VAE, so such a model never draws useful images."""
    where = Identity(SD1, EPSILON, "the test"), torch.device("cpu")
    often = Exposure(50, 1.0, 320.0, usual_looks(50))
    for vae in (None, "vae.safetensors"):
        config = train_config(optimizer={"lr": 1e-4}, model={"vae": vae})
        found = advice_on(config, *where, often, FULL, is_random=True)
        assert ["Set model.vae" in line for line in found] == ([] if vae else [True])
