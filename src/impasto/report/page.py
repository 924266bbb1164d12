"""Makes `report.html` from a run directory, as one self-contained HTML file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from impasto import files
from impasto.errors import RunError
from impasto.key_paths import values_by_path
from impasto.parsing import parse_toml, read_text
from impasto.progress import counted
from impasto.publishing import redact_settings, redact_text, short_path
from impasto.report.figures import bucket_figure, figures_of_run
from impasto.report.previews import read_preview
from impasto.report.run_result import result_of
from impasto.runs import RunDirectory, step_name
from impasto.runs.image_losses import NEWEST_BYTES, read_image_losses
from impasto.runs.learning import Learning, learning_in
from impasto.runs.schema import CHANGED_SETTINGS
from impasto.runs.validation_groups import last_groups
from impasto.runs.validations import validations_of

MAX_SAMPLE_COLUMNS = 6
_WORST = 12  # number of images with the highest loss to list


def write_report(run: RunDirectory | str | Path) -> Path:
    """Write the report of a run, finished or not, and return its path.

    Raises:
        RunError: The run does not exist, or its directory is damaged.
        StorageError: The page could not be written.
    """
    if not isinstance(run, RunDirectory):
        run = RunDirectory.open(Path(run))
    try:
        content = _content(run)
    except KeyError as error:  # an entry that every run writes
        raise RunError(f"{run.path} is damaged: {error} is missing in one of its files.") from error
    page = rendered("run.html.j2", content)
    files.write_text(run.report, page.encode("utf-8", errors="replace").decode("utf-8"))
    return run.report


def rendered(template: str, content: Mapping[str, Any]) -> str:
    """Render a template to a page."""
    return templates().get_template(template).render(content)


@cache
def templates() -> Environment:
    """Return the template environment of all reports; a process compiles each template once."""
    return Environment(
        loader=ChoiceLoader(
            [PackageLoader("impasto.report"), PackageLoader("impasto.report", "static")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
    )


def _content(run: RunDirectory) -> dict[str, Any]:
    metrics = list(run.read_metrics())
    learning = learning_in(metrics, run)
    dataset, status = run.read_json("dataset.json"), run.status()
    text = read_text(run.config_file, "replace")
    publish = allowed_by(text)
    settings = _tree_of(text)
    samples = _samples(run, with_prompts="prompts" in publish)
    return {
        "title": run.path.resolve().name,
        "status_line": redact_text(run.state().sentence(run.address), publish, [run.address]),
        "result": result_of(run, settings, learning),
        "facts": _facts(metrics, learning, dataset),
        "figures": figures_of_run(metrics, validations_of(metrics)),
        "groups": _groups(metrics, publish),
        "worst": _worst_images(run, publish),
        "samples": samples,
        "sample_width": samples["width"],
        "data_line": _data_line(dataset),
        "buckets": bucket_figure(dataset["buckets"]) if dataset else None,
        "set_aside": [_without_folders(item, publish) for item in dataset.get("set_aside", [])],
        "unused": [_without_folders(item, publish) for item in dataset.get("unused", [])],
        "config": redacted_config(text, publish),
        "changed": _changed_settings(run, settings, publish),
        "timings": _timing_rows(status),
        "environment": _environment_rows(run.read_json("environment.json")),
    }


def allowed_by(config: str) -> tuple[str, ...]:
    """Return the entries of `saving.publish` in a run's settings; empty if these are invalid."""
    try:
        named = parse_toml(config).get("saving", {}).get("publish", [])
    except (ValueError, AttributeError, RecursionError):
        return ()
    return tuple(map(str, named)) if isinstance(named, list) else ()


def redacted_config(config: str, publish: tuple[str, ...]) -> str:
    """Return the text of the settings as far as `publish` allows."""
    try:
        return tomli_w.dumps(redact_settings(parse_toml(config), publish))
    except (ValueError, TypeError, RecursionError):
        return redact_text(config, publish)


def _without_folders(item: Mapping[str, Any], publish: tuple[str, ...]) -> dict[str, Any]:
    """Return a skipped file with its path cut to folder and name, unless paths may be published."""
    path, reason = str(item.get("path", "")), str(item.get("reason", ""))
    short = path if "paths" in publish else short_path(path)
    return {**item, "path": short, "reason": redact_text(reason, publish)}


def _tree_of(config: str) -> dict[str, Any]:
    """Parse the settings; return an empty tree if they are invalid."""
    try:
        return parse_toml(config)
    except (ValueError, RecursionError):
        return {}


def _changed_settings(
    run: RunDirectory, settings: Mapping[str, Any], publish: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Return the settings that differ from the defaults; empty if the run has not recorded them."""
    try:
        paths = set(run.read_json(CHANGED_SETTINGS).get("paths", []))
    except RunError:
        return []
    known = dict(values_by_path(redact_settings(settings, publish)))
    return [
        (path, json.dumps(value, ensure_ascii=False, default=str))
        for path, value in known.items()
        if path in paths
    ]


def _groups(metrics: list[dict[str, Any]], publish: tuple[str, ...]) -> dict[str, Any] | None:
    """Return losses by group of held-out images; tags only if prompts may be published."""
    found = last_groups(metrics)
    if found is None:
        return None
    shown = [one for one in found.groups if one.by != "tag" or "prompts" in publish]
    return {"step": found.step, "rows": shown, "hidden": len(found.groups) - len(shown)}


def _worst_images(run: RunDirectory, publish: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the images with the highest loss; empty if the run has recorded fewer than two."""
    found = read_image_losses(run.image_losses_file, NEWEST_BYTES)
    if len(found) < 2:  # a single image would be compared with itself
        return []
    return [
        {
            "path": one.image if "paths" in publish else short_path(one.image),
            "ratio": f"{one.ratio:.2f}",
            "times": f"{one.times:,}",
        }
        for one in found[:_WORST]
    ]


def _facts(
    metrics: list[dict[str, Any]], learning: Learning | None, dataset: Mapping[str, Any]
) -> list[dict[str, str]]:
    facts = []
    if learning is not None:
        before, after = learning.first.loss, learning.last.loss
        shown = f"{before:.3f} → {after:.3f}"
        facts.append(_fact("validation loss before → after", shown, learning.mood))
    if dataset:
        facts.append(_fact("images", str(dataset["images"])))
    lines = [m for m in metrics if m.keys() >= {"loss", "samples_seen", "images_per_s"}]
    if lines:
        rates = [m["images_per_s"] for m in lines]
        facts += [
            _fact("steps", str(lines[-1]["step"])),
            _fact("images seen", f"{lines[-1]['samples_seen']:,}"),
            _fact("images per second, median", f"{sorted(rates)[len(rates) // 2]:.1f}"),
        ]
    return facts


def _fact(name: str, value: str, mood: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "mood": mood}


def _samples(run: RunDirectory, *, with_prompts: bool) -> dict[str, Any]:
    """Return rows of prompts by columns of steps, images as data URLs, with or without prompts."""
    steps = run.sampled_steps()
    if len(steps) > MAX_SAMPLE_COLUMNS:
        last = len(steps) - 1
        picks = {round(i * last / (MAX_SAMPLE_COLUMNS - 1)) for i in range(MAX_SAMPLE_COLUMNS)}
        steps = [steps[i] for i in sorted(picks)]
    names = sorted(
        {p.name for step in steps for p in (run.samples / step_name(step)).glob("*.png")}
    )
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []
    width = 128
    for name in names:
        paths = [run.samples / step_name(step) / name for step in steps]
        previews = [read_preview(path, with_texts=with_prompts) for path in paths]
        damaged += [
            f"{path.parent.name}/{path.name}"
            for path, preview in zip(paths, previews, strict=True)
            if preview is None and os.path.lexists(path)
        ]
        known = [preview for preview in previews if preview is not None]
        if not known:
            continue
        width = min(known[0].width, 256)
        prompt = (known[0].prompt or name) if with_prompts else f"preview {len(rows) + 1}"
        rows.append({"prompt": prompt, "images": [p.url if p else "" for p in previews]})
    return {"steps": steps, "rows": rows, "width": width, "damaged": damaged}


def _data_line(dataset: Mapping[str, Any]) -> str:
    if not dataset:
        return "The dataset has not been read yet."
    return (
        f"{counted(dataset['images'], 'images')} to train on"
        f"{_regularisation_text(dataset)} and {dataset['held_out']} held "
        "out, in "
        f"{counted(len(dataset['buckets']), 'buckets')}; {100 * dataset['mean_lost_area']:.1f} "
        "% of the area "
        f"is cropped away on average, {counted(dataset['enlarged'], 'images are')} enlarged, "
        f"{counted(dataset['uncaptioned'], 'images have')} no caption, "
        f"{counted(dataset['too_long'], 'images have')} captions of over "
        f"{dataset['max_tokens']} tokens, which are cut off."
    )


def _regularisation_text(dataset: Mapping[str, Any]) -> str:
    used = dataset.get("regularisation", 0)  # missing in runs of earlier versions
    return f" ({used} of them for regularisation)" if used else ""


def _environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not environment:
        return []
    gpus = ", ".join(gpu.get("name", "?") for gpu in environment["gpus"]) or "none"
    rows = [
        ("system", f"{environment['system']}, {environment['machine']}"),
        ("CPUs", f"{environment['cpu_count']}, {environment['torch_threads']} threads used"),
        ("memory", f"{environment['memory_gib']} GiB"),
        ("GPU", gpus),
        ("python", environment["python"]),
    ]
    return rows + list(environment["packages"].items())


def _timing_rows(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the durations of the parts of a run's last session."""
    timings: dict[str, float] = status.get("timings_s", {})  # numbers, as `RunDirectory` checks
    return [(name, f"{seconds:.1f} s") for name, seconds in timings.items()]
