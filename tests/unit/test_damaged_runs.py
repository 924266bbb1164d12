"""`report` on a run with a damaged file: it shows the rest, and names the file."""

import json
import os
import sys

import pytest
from PIL import Image

from impasto.errors import RunError
from impasto.report.charts import loss_chart
from impasto.report.page import write_report
from impasto.report.svg import round_ticks
from impasto.runs import RunDirectory

DATASET = {
    "images": 1, "held_out": 0, "buckets": {"64x64": 1}, "mean_lost_area": 0.0, "enlarged": 0,
    "uncaptioned": 0, "too_long": 0, "max_tokens": 75, "set_aside": [], "unused": [],
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run with a preview."""
    run = RunDirectory(tmp_path / "ink")
    step = run.samples / "step-00000000"
    step.mkdir(parents=True)
    run.config_file.write_text("seed = 1\n", encoding="utf-8")
    run.metrics_file.write_text('{"step": 1, "loss": 0.5}\n', encoding="utf-8")
    Image.effect_noise((64, 64), 50).convert("RGB").save(step / "000.png")
    return run


def page_of(run):
    return write_report(run).read_text(encoding="utf-8")


def dataset_of(run, **changed):
    text = json.dumps({**DATASET, **changed})
    (run.path / "dataset.json").write_text(text, encoding="utf-8")


def test_a_preview_that_is_cut_off_is_left_out_and_named(run):
    assert page_of(run).count("data:image/png") == 1
    whole = run.samples / "step-00000000" / "000.png"
    (run.samples / "step-00000000" / "001.png").write_bytes(whole.read_bytes()[:-900])
    for publish in ("", '[saving]\npublish = ["prompts"]\n'):
        run.config_file.write_text(publish, encoding="utf-8")
        page = page_of(run)
        assert page.count("data:image/png") == 1
        assert "not a PNG image: step-00000000/001.png." in page


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no FIFOs in folders")
def test_a_fifo_among_the_previews_does_not_hang(run):
    os.mkfifo(run.samples / "step-00000000" / "000a.png")
    assert "step-00000000/000a.png" in page_of(run)


@pytest.mark.parametrize("loss", ["-1", "5e-324", "-5e-324", "1e29", "0", "-0.0"])
def test_any_loss_is_drawn(run, loss):
    run.metrics_file.write_text(f'{{"step": 1, "loss": {loss}}}\n', encoding="utf-8")
    assert "training, smoothed" in page_of(run)


def test_a_loss_below_zero_is_within_the_chart():
    assert ">-1.0<" in loss_chart([(1, -1.0), (2, 0.5)], [])
    assert ">0.00<" in loss_chart([(1, 0.2)], [])


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-300])
def test_ticks_of_the_smallest_numbers_enclose_them(value):
    ticks = round_ticks(0, value, 6)
    assert ticks[0] == 0
    assert value <= ticks[-1] < 1e-298
    assert len(set(ticks)) == len(ticks)


def test_ticks_of_neighbouring_numbers_differ():
    low, high = 1.0, 1.0000000000000002
    ticks = round_ticks(low, high, 10)
    assert ticks[0] <= low < high <= ticks[-1]
    assert len(set(ticks)) == len(ticks)


@pytest.mark.parametrize("unused", [3, ["x"], [3], [{"path": 1, "reason": "x"}], {"path": "x"}])
def test_files_passed_over_are_of_the_form_that_runs_write(run, unused):
    dataset_of(run, unused=unused)
    with pytest.raises(RunError, match="unused"):
        write_report(run)
    dataset_of(run, unused=[{"path": "/x/pics/a.txt", "reason": "not read"}])
    assert "pics/a.txt" in page_of(run)
