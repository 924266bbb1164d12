"""One training of `bench quality` and the models derived from it, each measured and stored as JSON.

Existing results are reused, so that a stopped comparison can be continued. After changing the
settings of a row, remove its results by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality_rows import Derived, Row, Setup, config_of, preset, prior_folder, scale
from impasto.data.scanning.scan import scan_folder
from impasto.demo.recipe import BASE_MODEL, HELD_OUT, PICTURES, TAGGER, demo_config
from impasto.evaluation.evaluate import Question, RealImages, evaluate
from impasto.evaluation.image_features import CaptionedImage
from impasto.evaluation.networks import TaggerNetwork
from impasto.evaluation.samples import Contestant, DrawSettings, open_contestant
from impasto.models.merging.merging import Mixture, Output, merge_models
from impasto.models.merging.mixing import FORMULAS
from impasto.models.networks.hypernetwork import HypernetworkStack
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.opening import OpenOptions
from impasto.parsing import parse_json, read_text
from impasto.progress import SilentProgress
from impasto.runs import RunDirectory
from impasto.sampling.drawing import prepare_sampler
from impasto.sampling.prior import PriorPlan, draw_missing, require_same_folder
from impasto.sampling.prompts import Prompt
from impasto.training.analysis.borrowing import borrowed_session, evaluating_current
from impasto.training.analysis.posthoc_models import make_averages, measure, write_average
from impasto.training.devices import default_device, release_cached_memory
from impasto.training.trainer import train

SIDE, GUIDANCE = 128, 2.0
"""Side in pixels, and guidance scale, of drawn images, as in the demo."""

DRAWS_OF_LOSS = 8
SEED_OF_LOSS = 1
"""Seed of the validation loss, so that all models get the same noise and timesteps."""


@dataclass(frozen=True)
class Place:
    """The paths of the models, samples and results of a comparison.

    Attributes:
        scratch: A folder for this comparison alone.
        setup: The settings that all rows share.
    """

    scratch: Path
    setup: Setup

    @property
    def folder(self) -> Path:
        """The folder of results; its name is a hash of the setup, the rate scale and the preset."""
        setup = {**asdict(self.setup), "seeds": None, "scale": scale(), "preset": preset()}
        text = json.dumps(setup, sort_keys=True)
        return self.scratch / f"results-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def result(self, name: str, seed: int) -> Path:
        """Return the file with the numbers of a row for a seed."""
        return self.folder / f"{slug(name)}-{seed}.json"


def slug(name: str) -> str:
    """Return the name of a row as a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def names_of(row: Row) -> list[str]:
    """Return the names of all results of a row."""
    return [row.name, *(derived.name for derived in row.derived)]


def read_result(place: Place, name: str, seed: int) -> dict[str, Any] | None:
    """Return the numbers of a row, or None if they are missing."""
    file = place.result(name, seed)
    return parse_json(read_text(file)) if file.is_file() else None


def is_done(place: Place, row: Row, seed: int) -> bool:
    """Return whether all numbers of a row exist."""
    return all(place.result(name, seed).is_file() for name in names_of(row))


def run_job(place: Place, row: Row, seed: int) -> float:
    """Train a row with a seed, measure its models, remove them, and return the seconds it took."""
    began = time.perf_counter()
    out = place.folder / "runs" / f"{slug(row.name)}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    if row.way == "none":
        keep(place, row.name, seed, BASE_MODEL)
        return time.perf_counter() - began
    run = train(config_of(row, place.setup, seed, out, place.scratch))
    keep(place, row.name, seed, _exported(run))
    for derived, model in _derived(run, row):
        keep(place, derived.name, seed, model)
    shutil.rmtree(out, ignore_errors=True)
    return time.perf_counter() - began


def keep(place: Place, name: str, seed: int, model: Path) -> None:
    """Measure a model, and write the numbers at once, unless they exist."""
    if place.result(name, seed).is_file():
        return
    values = measure_model(place, model, f"{slug(name)}-{seed}", seed)
    target = place.result(name, seed)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1), encoding="utf-8")
    partial.replace(target)


def measure_model(place: Place, model: Path, label: str, seed: int) -> dict[str, Any]:
    """Return the validation loss of the held-out images, and the measures of the samples."""
    loss = validation_loss(model, place.scratch)
    contestant = open_contestant(str(model), label, OpenOptions(), SilentProgress())
    answer = evaluate(
        question(place.setup, seed),
        [contestant],
        DrawSettings(place.folder / "samples", None, default_device()),
        SilentProgress(),
        release_cached_memory,
    )
    [drawn] = answer.values["models"]
    samples = [s["file"] for pair in answer.values["pairs"] for s in pair["samples"]]
    return {
        "numbers": {
            "validation_loss": loss,
            **{found["measure"]: found["value"] for found in drawn["measures"]},
        },
        "references": {
            f"{of['name']}: {found['measure']}": found["value"]
            for of in answer.values["references"]
            for found in of["measures"]
        },
        "samples": samples,
    }


def validation_loss(model: Path, scratch: Path) -> float:
    """Return the mean loss over the twelve held-out images, at the same draws for each model."""
    changes = [
        f"model.path={json.dumps(str(model))}",
        f"dataset.cache_dir={json.dumps(str(scratch / 'derived'))}",
        f"seed={SEED_OF_LOSS}",
        f"validation.timesteps={DRAWS_OF_LOSS}",
        "validation.training_images=0",
        "training.ema_decay=none",
        "training.fit_check=false",
        "previews.prompts=[]",
    ]
    config = demo_config(scratch / "no-run", changes)
    with (
        borrowed_session(config, SilentProgress(), "measuring") as session,
        evaluating_current(session),
    ):
        if session.validator is None:
            raise RuntimeError("The demo has no held-out images.")
        found = session.validator.of_held_out.measure(
            session.trainable.unet, session.eval_conditioner, session.recipe
        )
    return found.mean


def question(setup: Setup, seed: int) -> Question:
    """Return the evaluation: held-out captions, drawn with `seed`, against their images."""
    held_out = _images(HELD_OUT)
    texts = [(image.caption, number) for number, image in enumerate(held_out.entries)]

    def prompts_of(_: Contestant) -> list[Prompt]:
        usual = Prompt("", "", 1000 * seed, SIDE, SIDE, setup.drawing_steps, GUIDANCE)
        return [
            replace(usual, text=text, seed=usual.seed + n * len(texts) + row)
            for row, (text, _) in enumerate(texts)
            for n in range(setup.per_prompt)
        ]

    tagger = TaggerNetwork("demo", TAGGER, SilentProgress())
    return Question(
        held_out, _images(PICTURES), texts, setup.per_prompt, prompts_of, (tagger,),
        replicates=20, seed=1,
    )  # fmt: skip


def _images(folder: Path) -> RealImages:
    records = scan_folder(folder).records
    entries = [CaptionedImage(record.path, record.fixed_caption.strip()) for record in records]
    return RealImages(folder.name, entries, lambda path: path.name)


def _exported(run: RunDirectory) -> Path:
    model = run.exported_model()
    if model is None:
        raise RuntimeError(f"{run.path} contains no exported model.")
    return model


def _derived(run: RunDirectory, row: Row) -> Iterator[tuple[Derived, Path]]:
    """Yield the models derived from a finished run, one at a time."""
    for derived in row.derived:
        target = run.path / f"{slug(derived.name)}.safetensors"
        if derived.is_best:  # a run without a best model has its last one only
            yield derived, next(iter(run.path.glob("models/*-best.safetensors")), _exported(run))
        elif derived.ratio is not None:
            mixture = Mixture(
                (str(BASE_MODEL), str(_exported(run))), FORMULAS["weighted-sum"], derived.ratio
            )
            merge_models(mixture, Output(target, "safetensors"), OpenOptions())
            yield derived, target
        else:
            found = measure(run, make_averages(run, derived.lengths), SilentProgress())
            best = min(found, key=lambda each: each.loss)
            write_average(run, best.average, Output(target, "safetensors"), SilentProgress(), found)
            yield derived, target


def draw_prior(place: Place) -> None:
    """Draw the missing prior images with the base model."""
    captions = [record.fixed_caption.strip() for record in scan_folder(PICTURES).records]
    texts = list(dict.fromkeys(captions))
    prompt = Prompt("", "", 1, SIDE, SIDE, place.setup.drawing_steps, GUIDANCE)
    plan = PriorPlan(texts, place.setup.prior, prompt)
    folder = prior_folder(place.scratch)
    require_same_folder(folder, plan.record({"model": "the demo's base model"}))
    base = load_base_model(BASE_MODEL)
    sampler = prepare_sampler(base, HypernetworkStack(), default_device(), None, "off")
    draw_missing(plan, folder, sampler, SilentProgress())


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error, which is NaN for a single value."""
    found = np.array(values, dtype=float)
    error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
    return float(found.mean()), float(error)
