"""Charts of the report pages: round axes, nothing cut off, and any numbers of a run."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from impasto.report.charts import bucket_chart, histogram_chart, loss_chart
from impasto.report.svg import WIDTH, round_ticks, tick_labels

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ET.Element:
    assert not re.search(r"nan|inf|<script|http(?!://www.w3.org/2000/svg)", svg)
    return ET.fromstring(svg)


def texts(root: ET.Element) -> list[str]:
    return [element.text for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("low", "high", "most", "whole", "ticks"),
    [
        (0, 0.73, 6, False, [0.0, 0.2, 0.4, 0.6, 0.8]),
        (0, 5000, 10, True, [500.0 * i for i in range(11)]),
        (0, 1, 4, True, [0, 1]),
        (0, 3, 10, True, [0, 1, 2, 3]),
        (7, 7, 5, True, [6, 8]),
        (0, 0.0005, 6, False, [1e-4 * i for i in range(6)]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, most, whole, ticks):
    found = round_ticks(low, high, most, whole=whole)
    assert found == pytest.approx(ticks)
    assert found[0] <= low
    assert found[-1] >= high


def test_tick_labels_have_the_decimals_that_tell_them_apart():
    assert tick_labels([0.0, 0.2, 0.4]) == ["0.0", "0.2", "0.4"]
    assert tick_labels([0.0, 500.0, 1000.0]) == ["0", "500", "1,000"]
    assert tick_labels([1.0, 1.05]) == ["1.00", "1.05"]
    assert len(set(tick_labels(round_ticks(0, 3e-6, 6)))) > 3


def test_the_loss_chart_names_its_axes_and_curves():
    training = [(step, 1 / step) for step in range(1, 101)]
    root = parsed(loss_chart(training, [(0, 1.0), (50, 0.5), (100, 0.3)]))
    for words in ("steps", "loss", "training, smoothed", "validation", "0.0", "1.0", "100"):
        assert words in texts(root), words
    assert len(list(root.iter(f"{SVG}polyline"))) == 3
    assert len(list(root.iter(f"{SVG}circle"))) == 3


def test_losses_that_are_not_finite_are_left_out():
    points = [(1, math.nan), (2, 0.5), (3, math.inf), (4, 0.25)]
    assert len(list(parsed(loss_chart(points, [])).iter(f"{SVG}polyline"))) == 2
    assert loss_chart([(1, math.nan)], []) == ""


def test_a_long_run_is_thinned_out_and_keeps_its_peaks():
    training = [(step, 0.1) for step in range(1, 100_001)]
    training[54_321] = (54_322, 9.0)
    svg = loss_chart(training, [])
    assert len(svg) < 60_000
    raw = next(e for e in parsed(svg).iter(f"{SVG}polyline") if e.get("class") == "raw")
    heights = [float(point.split(",")[1]) for point in raw.get("points").split()]
    assert min(heights) < 0.5 * max(heights)


@pytest.mark.parametrize(
    ("training", "validation"),
    [([(1, 0.5)], []), ([], [(0, 0.5)]), ([(5, 0.0)], []), ([(1, 1e-9), (2, 2e-9)], [])],
)
def test_runs_of_hardly_any_updates_have_a_chart(training, validation):
    root = parsed(loss_chart(training, validation))
    assert list(root.iter(f"{SVG}circle")) or list(root.iter(f"{SVG}polyline"))


@pytest.mark.parametrize(
    ("values", "whole"),
    [([1.0], False), ([5] * 7, True), ([0.125, 8.0], False), ([0], True), (list(range(300)), True)],
)
def test_every_value_is_in_a_bar(values, whole):
    svg = histogram_chart(values, "tokens", [75], whole=whole)
    counts = [int(e.text.rpartition(": ")[2]) for e in parsed(svg).iter(f"{SVG}title")]
    assert sum(counts) == len(values)


def test_buckets_are_named_and_escaped_and_nothing_leaves_the_drawing():
    root = parsed(bucket_chart({"512x512": 1200, "<b> & 'c'": 1}))
    assert "<b> & 'c'" in texts(root)
    assert "1,200" in texts(root)
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("x")) + float(bar.get("width")) < WIDTH - 40


def test_without_data_there_is_no_chart():
    assert loss_chart([], []) == histogram_chart([], "tokens") == bucket_chart({}) == ""
