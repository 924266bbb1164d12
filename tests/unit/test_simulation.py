"""What is foretold of N images is in proportion, and what is counted is what is there."""

import re

import numpy as np
import pytest
from conftest import draw_images
from conftest import impasto as run

from impasto.data.filling import cache_latents
from impasto.data.latent_cache import LatentCache
from impasto.data.plan import plan_images
from impasto.data.records import Size
from impasto.data.scan import scan_folder
from impasto.data.subsets import Subset
from impasto.datasets.simulation import Rates, sample_of, stages_of


def planned(folder, **changes):
    return plan_images(scan_folder(folder, subset=Subset(**changes)).records, Size(512, 512))


def test_bytes_of_latents_are_those_that_a_cache_has(tmp_path):
    from test_latent_cache import CountingEncoder

    folder = draw_images(tmp_path / "set", 9)
    for flips in (False, True):
        plan = planned(folder, root=folder, flips=flips)
        cache = LatentCache(tmp_path / f"latents {flips}")
        cache_latents(plan.images, cache, CountingEncoder().encoder)
        written = sum(
            array.nbytes
            for index in cache._moments.indices()
            for array in cache._moments._shard(index.stem)
        )
        sampled = sample_of(plan)
        assert sampled.moments * 9 == written
        assert sampled.latents == 1 + flips


def test_memory_is_that_of_the_columns(tmp_path):
    plan = planned(draw_images(tmp_path / "set", 9))
    records = plan.table.records
    own = sum(column.dtype.itemsize for column in records.numbers.values())
    dealt = 3 * (4 + 12 / 16)
    assert sample_of(plan).resident == pytest.approx(own + 4 + 16 + 4 + dealt)
    texts = [f"{r.path}{r.caption}{r.tags}" for r in records]
    assert sample_of(plan).texts == np.mean([len(text.encode()) for text in texts])


def test_ten_times_the_images_take_ten_times_as_much(tmp_path):
    sampled = sample_of(planned(draw_images(tmp_path / "set", 9)))
    rates = Rates(1e-6, 2e-6, 3e-6, 4e-6, 5e-6, 6e-6, 7e-6)
    some, many = (stages_of(n, rates, sampled, 50.0) for n in (10**7, 10**8))
    for one, other in zip(some, many, strict=True):
        assert other.name == one.name
        assert other.seconds == pytest.approx(10 * one.seconds)
        assert (other.bytes, other.ram) == pytest.approx((10 * one.bytes, 10 * one.ram))
    by_name = {stage.name: stage for stage in some}
    assert by_name["First scan"].seconds == pytest.approx(30)
    assert by_name["Encoding"].seconds == 10**7 / 50
    assert by_name["Start of training"].seconds == pytest.approx(180)
    assert stages_of(10, rates, sampled, None)[5].seconds is None


def test_the_verb_shows_every_stage_and_refuses_a_rate_of_nothing(tmp_path):
    folder = draw_images(tmp_path / "set", 9)
    shown = run("dataset", "plan", folder, "--simulate", 10**8, "--encode-rate", 100)
    assert "100,000,000 images like the 9 of" in shown.stdout
    for stage in ("First scan", "Decoding", "Start of training"):
        assert re.search(rf"^{stage} +[\d.,]+ \w+ ", shown.stdout, re.M), stage
    assert re.search(r"^Encoding +11\.6 days +[\d.,]+ TiB", shown.stdout, re.M)
    refused = run("dataset", "plan", folder, "--encode-rate", 5)
    assert refused.returncode == 2
    assert "--encode-rate goes with --simulate" in refused.stderr
