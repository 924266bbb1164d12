"""Results of an evaluation as plain values for JSON, and as sentences for users."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from impasto.evaluation.measures import FRECHET, Material, Measure, Measured, measures_of
from impasto.evaluation.resampling import FEW, FEWEST, Estimate
from impasto.evaluation.samples import Contestant
from impasto.parsing import printable
from impasto.progress import counted
from impasto.publishing import short_path

VERSION = 1

BETTER, WORSE, DIFFERENT, NOISE = "better", "worse", "different", "within noise"


@dataclass(frozen=True)
class Outcome:
    """A model with its measures.

    Attributes:
        model: The model.
        size: Width and height of its samples in pixels; None if they differ between prompts.
        flat: Number of samples of a single colour.
        measured: Its measures.
    """

    model: Contestant
    size: tuple[int, int] | None
    flat: int
    measured: Measured


def number(value: float) -> float | None:
    """Round a number to six digits for JSON; return None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def model_values(outcome: Outcome, first: Outcome) -> dict[str, Any]:
    """Return a model's results for JSON, with the differences from those of the first model."""
    model, names = outcome.model, list(outcome.measured.estimates)
    return {
        "name": model.label,
        "sha256": model.sha256,
        "family": model.family,
        "width": outcome.size and outcome.size[0],
        "height": outcome.size and outcome.size[1],
        "of_one_colour": outcome.flat,
        "opened_with": _opening_values(model),
        "measures": [
            _measure_values(key, outcome, None if outcome is first else first) for key in names
        ],
    }


def _opening_values(model: Contestant) -> dict[str, Any]:
    """Return the options that affect a model's images besides its files, without local folders."""
    vae = model.options.vae
    return {
        "weights": model.options.weights,
        "variant": model.options.variant,
        "prediction_type": model.made_of.get("prediction_type"),
        "other_vae": None if vae is None else printable(short_path(vae)),
        "other_vae_sha256": model.made_of.get("vae_sha256"),
        "clip_skip": model.clip_skip,
    }


def _measure_values(
    key: tuple[str, str], outcome: Outcome, first: Outcome | None
) -> dict[str, Any]:
    """Return one measure with its interval, and its difference from the first model's."""
    estimate = outcome.measured.estimates[key]
    values = {"measure": key[0], "features": key[1] or None, **_estimate_values(estimate)}
    before = first.measured.estimates.get(key) if first is not None else None
    if before is not None:
        difference = estimate.less(before)
        verdict = verdict_of(_measure(key), difference)
        values["against_first"] = {**_estimate_values(difference), "verdict": verdict}
    return values


def _estimate_values(estimate: Estimate) -> dict[str, Any]:
    bounds = estimate.interval() or (math.nan, math.nan)
    return {
        "value": number(estimate.value),
        "low": number(bounds[0]),
        "high": number(bounds[1]),
    }


def _measure(key: tuple[str, str]) -> Measure:
    return next(m for m, _ in measures_of([key[1]]) if m.key == key[0])


def verdict_of(measure: Measure, difference: Estimate) -> str | None:
    """Return the verdict on a difference: better or worse, different, or within noise.

    A difference is beyond noise if its 95 % interval does not contain zero. The verdict is None
    with fewer than `FEWEST` prompts or real images, if the difference may come from following
    captions alone, or if it is undefined.
    """
    bounds = difference.interval()
    is_few = difference.drawn_from is not None and difference.drawn_from < FEWEST
    if is_few or difference.is_dependent:
        return None
    if bounds is None or not math.isfinite(difference.value):
        return None
    if bounds[0] <= 0 <= bounds[1]:
        return NOISE
    if measure.better == "neither":
        return DIFFERENT
    return BETTER if (difference.value < 0) == (measure.better == "lower") else WORSE


def notes_of(material: Material, outcomes: Sequence[Outcome]) -> list[str]:
    """Return notes for interpreting the results: too few images, models of different kinds."""
    samples, real = len(material.groups), len(material.real.images)
    notes = []
    for name, features in material.real.features.items():
        width = features.shape[1]
        if min(samples, real) <= width:
            notes.append(
                f"{FRECHET.title}, {name}: {counted(samples, 'samples')} and "
                f"{counted(real, 'real images')} are too few for {width} features: the distance is "
                f"too high, and comparable only for equal numbers of images. Use at least more "
                f"images than features, or better ten times as many. The kernel "
                f"distance is unbiased for any number of images."
            )
    if material.is_linked and len(outcomes) > 1 and material.real.features:
        notes.append(
            f"{FRECHET.title}: the prompts are captions of the same real images, and a model gets "
            f"a lower distance merely by following captions, so its differences have no "
            f"verdict. The kernel distance leaves such pairs out."
        )
    notes += _few_notes(len(material.prompts), real)
    if material.is_shared:
        runs = " and ".join(material.shared_by)
        by = f"{runs} was trained on" if runs else "were trained on"
        notes.append(
            f"Some real images are among those that {by}, so a model that repeats them looks "
            f"good. Give --images a folder that was not trained on."
        )
    families = dict.fromkeys(outcome.model.family for outcome in outcomes)
    sizes = {outcome.size for outcome in outcomes}
    if len(families) > 1 or len(sizes) > 1:
        notes.append(
            "The models differ in family or in the size of their images, so the same seed gives "
            "them different noise, and differences are less certain."
        )
    notes += [
        f"{outcome.model.label}: {outcome.flat} of its {samples} images are of a single "
        f"colour, as when values have become NaN."
        for outcome in outcomes
        if outcome.flat
    ]
    return notes


def _few_notes(prompts: int, real: int) -> list[str]:
    """Return notes on too few prompts and too few real images."""
    notes = []
    if prompts < FEW:
        notes.append(
            f"{counted(prompts, 'prompts are')} few: below {FEW} the intervals are rough, and "
            f"below {FEWEST} no verdict is given. Give more images with captions, or more prompts."
        )
    if real < FEWEST:
        notes.append(
            f"{counted(real, 'real images are')} few: below {FEWEST} no verdict on a distance to "
            f"them is given."
        )
    return notes


def caution_text(values: Mapping[str, Any]) -> str:
    """Return a sentence on how many verdicts are expected by chance; empty for one model."""
    if len(values["models"]) < 2:
        return ""
    rows = [row for model in values["models"][1:] for row in model["measures"]]
    verdicts = [(row.get("against_first") or {}).get("verdict") for row in rows]
    judged = [verdict for verdict in verdicts if verdict is not None]
    if not judged:
        return (
            f"No difference was judged: a verdict requires {FEWEST} prompts, and for distances as "
            f"many real images."
        )
    nothing = "No difference is beyond noise. " if set(judged) == {NOISE} else ""
    return (
        f"{nothing}{counted(len(judged), 'differences were')} judged. Without any real difference, "
        f"about one in twenty would seem to be one: of these, {len(judged) / 20:.2g} on average."
    )


def difference_texts(values: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each difference from the first model that is beyond noise."""
    titles = {m["key"]: m["title"] for m in values["measures"]}
    first, *others = values["models"]
    found = []
    for model in others:
        for row in model["measures"]:
            against = row.get("against_first") or {}
            if against.get("verdict") in (BETTER, WORSE, DIFFERENT):
                of = f" ({row['features']})" if row["features"] else ""
                found.append(_sentence(model, first, row, f"{titles[row['measure']]}{of}"))
    return found


def _sentence(
    model: Mapping[str, Any], first: Mapping[str, Any], row: Mapping[str, Any], title: str
) -> str:
    against = row["against_first"]
    verb = "differs from" if against["verdict"] == DIFFERENT else f"is {against['verdict']} than"
    return (
        f"{model['name']} {verb} {first['name']} in {title}: {estimate_text(row)}, the difference "
        f"is {estimate_text(against, sign='+')}."
    )


def estimate_text(row: Mapping[str, Any], sign: str = "") -> str:
    """Format a value with its interval: `0.52 (0.41 to 0.63)`; a dash if there is none."""
    if row["value"] is None:
        return "–"
    shown = _shown(row["value"], sign)
    if row["low"] is None or row["high"] is None:
        return shown
    return f"{shown} ({_shown(row['low'], sign)} to {_shown(row['high'], sign)})"


def _shown(value: float, sign: str) -> str:
    """Format a number in three digits, or whole from 1,000 on: `0.0123`, `+0.5`; 0 has no sign."""
    if value == 0:
        return "0"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.3g}"


def unusable(estimates: Mapping[tuple[str, str], Estimate]) -> list[tuple[str, str]]:
    """Return the measures that are not finite: a mean of no images, a distance of one image."""
    return [key for key, estimate in estimates.items() if not np.isfinite(estimate.value)]
