"""The predicted duration of a step: arithmetic, and the cost of launching each operation."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from impasto.data.loading.dataset import sampler_groups
from impasto.data.planning.plan import plan_images
from impasto.data.records import FileStamp, ImageRecord, Size
from impasto.data.subsets import Subset
from impasto.datasets.batching import batch_size_of, build_epoch_sampler
from impasto.training.planning import duration
from impasto.training.planning.fake_step import LiveMemory

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def planned(monkeypatch, train_config):
    """Return the seconds of a step with that many operations, on a device of known speed."""
    monkeypatch.setattr(duration, "_mean_batch_fraction", lambda *_: 1.0)
    monkeypatch.setattr(duration, "seconds_per_weight", lambda *_: 0.0)
    monkeypatch.setattr(duration, "training_rate", lambda *_: 1e12)
    monkeypatch.setattr(duration, "seconds_per_operation", lambda _: 1e-5)
    monkeypatch.setattr(duration, "UTILIZATION", {"cpu": 1.0, "cuda": 1.0})
    monkeypatch.setattr(duration, "COMPILED_UTILIZATION", 1.0)

    def seconds(device, flops, operations, **training):
        config = train_config(training={"mixed_precision": "no", **training})
        footprint = SimpleNamespace(flops=flops, operations=operations)
        return duration.seconds_per_step(config, footprint, (), (), device)

    return seconds


def test_operations_take_their_time_however_small_they_are(planned):
    assert planned(CPU, 1e11, 1000) == pytest.approx(0.1 + 0.01)
    assert planned(GPU, 1e11, 1000) == pytest.approx(0.1)  # launches overlap with computing
    assert planned(GPU, 1e9, 20_000) == pytest.approx(0.2)
    assert planned(GPU, 1e9, 20_000, gradient_accumulation_steps=3) == pytest.approx(0.6)


def test_what_is_asked_for_in_one_go_takes_no_such_time(planned):
    for settings in ({"compile": "full"}, {"cuda_graphs": "step"}):
        assert planned(GPU, 1e9, 20_000, **settings) == pytest.approx(0.001)


def test_an_operation_takes_more_than_none_and_all_are_counted():
    assert 0 < duration.seconds_per_operation(CPU) < 0.01
    weight = torch.ones(3, requires_grad=True)
    with LiveMemory() as counted:
        (weight * 2).sum().backward()
    assert counted.operations >= 4  # multiplication, sum, and their backward operations


@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize("by_pixels", [True, False])
def test_short_batches_count_as_short(train_config, repeats, by_pixels):
    """The epoch's own batches have few images of many shapes, which fill no batch."""
    sizes = [Size(128 + 64 * (n % 10), 512) for n in range(20)] + [Size(512, 512)] * 11
    subset = Subset(repeats=repeats)
    records = [
        ImageRecord(Path(f"{n}.png"), size, FileStamp(1, 1), "words", subset=subset)
        for n, size in enumerate(sizes)
    ]
    plan = plan_images(records, Size(512, 512))
    config = train_config(training={"batch_size": 8, "batch_by_pixels": by_pixels})
    sampler = build_epoch_sampler(config, plan, 1)
    seen = [
        sum(plan.images[s.image].crop.size.area for s in batch.samples)
        for step in range(sampler.steps_per_epoch)
        for batch in sampler.optimizer_step(step).micro_batches
    ]
    most = max(
        batch_size_of(config, group) * group.bucket.area
        for group in sampler_groups(plan.images).counts()
    )
    found = duration._mean_batch_fraction(config, plan.images)
    assert found == pytest.approx(sum(seen) / len(seen) / most)
    assert 0 < found <= 1
