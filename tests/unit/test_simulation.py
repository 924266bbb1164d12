"""Predictions for N images are proportional, and counts are those of the files."""

import re

import numpy as np
import pytest
from conftest import draw_images
from PIL import Image

from impasto.cli.main import main
from impasto.config.dataset import DatasetConfig
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.planning.plan import plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import scan_folder
from impasto.data.subsets import Subset
from impasto.datasets import simulation
from impasto.datasets.build import scan_all
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
            for array in cache._moments._mapped.columns(index.stem)
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


def test_planning_is_timed_by_the_rules_of_the_dataset(tmp_path, monkeypatch):
    """sd-scripts' rules, or a table of buckets, take other times than the default."""
    folder = draw_images(tmp_path / "set", 9)
    rules = {"bucket_selection": "kohya", "bucket_reso_steps": 32, "max_bucket_reso": 128}
    entries = [
        {"resolution": 96, **rules, "min_bucket_reso": 64, "subsets": [{"image_dir": str(folder)}]},
        {"resolution": 128, "enable_bucket": False, "subsets": [{"image_dir": str(folder)}]},
    ]
    config = DatasetConfig.model_validate({"datasets": entries})
    plans, real = [], simulation.plan_dataset

    def plan_dataset(*arguments):
        plans.append(real(*arguments))
        return plans[-1]

    monkeypatch.setattr(simulation, "plan_dataset", plan_dataset)
    sample = real(config, scan_all(config).records)
    simulation.measure_rates(config, sample)
    (timed,) = plans
    sides = {side for size in timed.bucket_counts for side in size.wh}
    assert sides <= {64, 96, 128}
    assert Size(128, 128) in timed.bucket_counts
    assert sum(timed.bucket_counts.values()) == 200_000


def test_the_verb_shows_every_stage_and_refuses_a_rate_of_nothing(tmp_path, capsys):
    folder = draw_images(tmp_path / "set", 9)
    words = ["dataset", "plan", str(folder), "--encode-rate", "100"]
    main([*words, "--simulate", str(10**8)])
    shown = capsys.readouterr().out
    assert "100,000,000 images like the 9 of" in shown
    for stage in ("First scan", "Decoding", "Start of training"):
        assert re.search(rf"^{stage} +[\d.,]+ \w+ ", shown, re.M), stage
    assert re.search(r"^Encoding +11\.6 days +[\d.,]+ TiB", shown, re.M)
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2
    assert "--encode-rate works only with --simulate" in capsys.readouterr().err


def test_of_a_run_what_is_held_out_is_not_simulated(tmp_path, monkeypatch):
    """Regularisation images are balanced against training images, as in `dataset plan`."""
    from impasto.cli.console import Console
    from impasto.cli.dataset_simulate import show_simulation
    from impasto.config.load import load_run_of_source
    from impasto.datasets import build

    ours, class_images = tmp_path / "set", tmp_path / "class"
    noise = np.random.default_rng(0)
    for folder, count in ((ours, 8), (class_images, 12)):
        folder.mkdir()
        for number in range(count):
            pixels = noise.integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    settings = tmp_path / "run.toml"
    settings.write_text(
        f"""output_dir = "run"
[model]
path = "owner/name"
[training]
max_steps = 1
[validation]
split = 0.5
copies = "bytes"
[[dataset.datasets]]
subsets = [
    {{ image_dir = "{ours.as_posix()}" }},
    {{ image_dir = "{class_images.as_posix()}", is_reg = true }},
]
""",
        encoding="utf-8",
    )
    planned, real = [], build.plan_dataset

    def plan(config, records):
        planned.append(records)
        return real(config, records)

    monkeypatch.setattr(build, "plan_dataset", plan)
    source = load_run_of_source(settings)
    show_simulation(source.dataset, source, Console(), 10**6, None)
    (records,) = planned
    trained = [record for record in records if not record.subset.is_reg]
    assert 0 < len(trained) < 8
    assert sum(record.subset.repeats for record in records if record.subset.is_reg) <= len(trained)
