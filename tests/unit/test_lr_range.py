"""The learning-rate range test as numbers: rates, smoothing, and suggestions from a curve."""

import math

import pytest

from impasto.errors import ConfigError
from impasto.report.lr_page import lr_chart, write_lr_page
from impasto.training.analysis.lr_range import LrCurve, LrRange, Suggestion, suggest

TRIED = LrRange(1e-8, 1e-2, 121)
RATES = [TRIED.rate_at(step) for step in range(121)]


def curve_of(loss, first=1.0):
    losses = []
    for rate in RATES:
        losses.append(loss(rate))
        if not losses[-1] <= 2 * first:
            break
    return LrCurve(first, RATES[: len(losses)], losses)


def valley(rate):
    """Return a loss of 0.5 at its minimum, 1e-4: a parabola in the logarithm, flat at 1 far
    below."""
    return min(1.0, 0.5 + 0.125 * (math.log10(rate) + 4) ** 2) if rate < 1e-4 else steep(rate)


def steep(rate):
    return 0.5 + 2 * (math.log10(rate) + 4) ** 2


def test_rates_rise_by_the_same_factor():
    assert RATES[0] == pytest.approx(1e-8)
    assert RATES[-1] == pytest.approx(1e-2)
    assert RATES[20] == pytest.approx(1e-7)
    with pytest.raises(ConfigError, match="below --to"):
        LrRange(1e-3, 1e-3, 10)
    with pytest.raises(ConfigError, match="at least 2 steps, not 1"):
        LrRange(1e-3, 1e-2, 1)


def test_a_tenth_of_the_least_is_suggested():
    found = curve_of(valley)
    assert found.has_diverged
    assert suggest(found).lr == pytest.approx(1e-5, rel=0.25)
    assert 1e-6 < found.steepest < 1e-4


def test_a_spike_of_noise_is_not_taken_for_the_least():
    def noisy(rate):
        return 0.45 if rate == RATES[60] else valley(rate)

    assert suggest(curve_of(noisy)).lr == suggest(curve_of(valley)).lr


def test_the_mean_of_neighbours_does_not_lag():
    """The mean of a straight line is the line itself, up to its ends."""
    line = LrCurve(1.0, RATES[:20], [1 - 0.01 * i for i in range(20)])
    assert line.smoothed == pytest.approx(line.losses)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda rate: 1.0 - 0.05 * (math.log10(rate) + 8), "higher --to"),
        (lambda rate: 1.0, "hardly changed"),
        (lambda rate: 1.0 + 1e3 * rate, "rose"),
        (lambda rate: math.nan, "first step"),
    ],
)
def test_a_curve_that_does_not_say_suggests_nothing(loss, words):
    suggestion = suggest(curve_of(loss))
    assert suggestion.lr is None
    assert words in suggestion.reason


def test_the_chart_has_the_suggestion_and_bears_what_diverged(tmp_path):
    found = curve_of(valley)
    found = LrCurve(1.0, RATES[: len(found.rates) + 1], [*found.losses[:-1], 1.9, math.nan])
    suggestion = suggest(found)
    drawn = lr_chart(found, suggestion)
    assert f"suggested {suggestion.lr:.2g}" in drawn
    assert "nan" not in drawn
    page = tmp_path / "rates.html"
    write_lr_page(page, "a <b>", found, suggestion)
    written = page.read_text(encoding="utf-8")
    assert "a &lt;b&gt;" in written
    assert "not finite" in written
    assert lr_chart(LrCurve(1.0, RATES[:1], [math.inf]), Suggestion(None, "")) == ""
