"""Makes the card of a model for the Hugging Face Hub: a README.md, from the data of its run.

Settings, paths and prompts are included as far as the run's `saving.publish` allows, as in exported
files and the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from impasto.checkpoints.file_names import model_name
from impasto.errors import RunError
from impasto.hub_ids import is_hub_id
from impasto.parsing import parse_toml
from impasto.report.charts import loss_chart
from impasto.report.comparison import Points, RunFigures, figures_of
from impasto.report.page import allowed_by, redacted_config
from impasto.report.previews import newest_previews, read_preview
from impasto.report.run_result import base_of
from impasto.report.svg import standalone
from impasto.runs import RunDirectory, step_name
from impasto.runs.learning import read_learning, validation_of
from impasto.runs.learning_text import best_text, evidence_text, model_text
from impasto.runs.mixture import mixture_of

CARD = "README.md"
SAMPLES, CURVES = "samples", "curves"
"""The folders beside the card for the images that it shows."""

_LOSS_CURVES = f"{CURVES}/loss.svg"
_CURVES_SHOWN = f"![Training and validation loss over steps]({_LOSS_CURVES})"
_SAMPLES = 8
OWN_IMAGES = frozenset({_LOSS_CURVES, *(f"{SAMPLES}/{n:03d}.png" for n in range(1, _SAMPLES + 1))})
"""The names of all images that a card made by this module may show."""

_ROWS = 10  # rows of the table of losses
_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_AT_START = re.compile(r"^([#+=-]|\d+[.)](?=\s))")
_ONE_LINE = 1 << 30


@dataclass(frozen=True)
class License:
    """The licence under which a model is published.

    Attributes:
        id: An identifier in `hub_licenses.LICENSES`.
        name: Its name if the id is `other`.
        link: The URL of its text if the id is `other`.
    """

    id: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """The card of a published model, with its images.

    Attributes:
        text: The card, in Markdown.
        images: The images that it shows: name in the repository -> bytes of a PNG or SVG file.
    """

    text: str
    images: Mapping[str, bytes] = field(default_factory=dict)


def license_of(run: RunDirectory) -> str | None:
    """Return the licence in `[saving.metadata]` of a run's settings, or None if there is none."""
    found = _metadata(_settings(figures_of(run).config)).get("license")
    return str(found) if found else None


def make_card(model: Path, run: RunDirectory | None, license_: License) -> ModelCard:
    """Make the card of a model, with the data of its run if it has one.

    Args:
        model: The file or Diffusers folder to publish.
        run: The run that trained it; None if it was not trained here.
        license_: The licence under which it is published.

    Raises:
        RunError: The path of the run is not a run directory.
    """
    figures = None if run is None else figures_of(run)
    settings = {} if figures is None else _settings(figures.config)
    publish = () if figures is None else allowed_by(figures.config)
    metadata = _metadata(settings)
    images, samples = _samples(figures, publish)
    curves = _curves(figures)
    title = str(metadata.get("title") or model_name(model))
    sections = [
        _front_matter(model, settings, license_),
        f"# {plain(title)}",
        plain(str(metadata.get("description") or "")),
        _origin(settings),
        _section("Trigger words", _code(str(metadata.get("trigger_phrase") or ""))),
        _section("How to use it", plain(str(metadata.get("usage_hint") or ""))),
        _section("Samples", samples),
    ]
    if figures is not None:
        sections += [
            _section("Training", _training(figures)),
            _section("Losses", _losses(figures, _CURVES_SHOWN if curves else "")),
            _learnt(figures.run, model),
            _section("Dataset", _dataset(figures.run)),
            _section("Settings", _config(figures, publish)),
        ]
    sections.append(f"Author: {plain(str(metadata['author']))}" if metadata.get("author") else "")
    return ModelCard("\n\n".join(filter(None, sections)) + "\n", {**images, **curves})


def plain(text: str) -> str:
    """Escape any text as Markdown that shows it literally, in one line."""
    escaped = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _AT_START.sub(lambda found: f"{found[1][:-1]}&#{ord(found[1][-1])};", escaped)


def _front_matter(model: Path, settings: Mapping[str, Any], license_: License) -> str:
    """Return the YAML front matter, which the Hub reads."""
    base, metadata = base_of(settings), _metadata(settings)
    is_hypernetwork = _section_of(settings, "method").get("kind") == "hypernetwork"
    entries = {
        "license": license_.id,
        "license_name": _name_id(license_.name) if license_.name else None,
        "license_link": license_.link,
        "base_model": base if is_hub_id(base) else None,
        "library_name": "diffusers" if model.is_dir() else None,
        "pipeline_tag": "text-to-image",
        "instance_prompt": " ".join(str(metadata.get("trigger_phrase") or "").split()) or None,
        "tags": [
            "stable-diffusion",
            "text-to-image",
            "impasto",
            *(["hypernetwork"] if is_hypernetwork else []),
            *_tags(metadata),
        ],
    }
    known = {key: value for key, value in entries.items() if value is not None}
    text = yaml.safe_dump(known, allow_unicode=True, sort_keys=False, width=_ONE_LINE)
    return f"---\n{text}---"


def _name_id(name: str) -> str:
    """Convert the name of a licence to the form that the Hub expects: `my-license-1.0`."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "custom"


def _tags(metadata: Mapping[str, Any]) -> list[str]:
    tags = str(metadata.get("tags") or "").split(",")
    return list(dict.fromkeys(" ".join(tag.split()) for tag in tags if tag.strip()))


def _origin(settings: Mapping[str, Any]) -> str:
    base = base_of(settings)
    if not base:
        return ""
    address = f"https://huggingface.co/{base}"
    known = f"[{plain(base)}]({address})" if is_hub_id(base) else plain(base)
    return f"Fine-tuned from {known} with Impasto."


def _training(figures: RunFigures) -> str:
    left_out = {"state", "model", "could not be read", "memory"}
    rows = {name: text for name, text in figures.rows().items() if name not in left_out}
    return _table(("", ""), list(rows.items()))


def _curves(figures: RunFigures | None) -> dict[str, bytes]:
    """Return the file with the loss curves; empty if the run has measured no loss."""
    known = {} if figures is None else figures.curves
    drawn = loss_chart(known.get("loss", []), known.get("validation_loss", []))
    return {_LOSS_CURVES: standalone(drawn).encode("utf-8")} if drawn else {}


def _losses(figures: RunFigures, curves: str) -> str:
    """Return the section on losses: the curves, and a table if there are training losses.

    The table has the training loss, as the mean since the previous row, and the validation loss.
    """
    training = figures.curves.get("loss", [])
    validation = figures.curves.get("validation_loss", [])
    if not training:
        return curves
    last = training[-1][0]
    steps = sorted({max(1, round(last * n / _ROWS)) for n in range(1, _ROWS + 1)})
    rows, before = [], 0
    for step in steps:
        losses = [loss for at, loss in training if before < at <= step]
        mean = f"{sum(losses) / len(losses):.4f}" if losses else ""
        measured = _between(validation, before, step)
        if mean or measured:  # a short run has fewer values than rows
            rows.append((f"{step:,}", mean, measured))
            before = step
    head = ("step", "training loss", "validation loss")
    columns = 3 if validation else 2
    return f"{curves}\n\n{_table(head[:columns], [row[:columns] for row in rows])}"


def _learnt(run: RunDirectory, model: Path) -> str:
    """Return a text on the validation loss of the model, and how certain it is.

    For a model other than the final one, it is about that model's own validation, if it had one.
    """
    learning, last, mixture = read_learning(run), run.exported_model(), mixture_of(run, model)
    is_last = last is not None and last.resolve() == model.resolve()
    mixed = "" if mixture is None else plain(f"This model is {mixture.sentence}.")
    if learning is None:
        return mixed
    told: tuple[str, ...]
    if is_last:
        told = (learning.sentence(), f"Lowest: {best_text(learning)}.", evidence_text(learning))
    else:
        own = validation_of(run, learning, model)
        text = "" if own is None else model_text(learning, own, mixed=mixture is not None)
        told = (text, evidence_text(learning) if text else "")
    return "\n\n".join(filter(None, (mixed, *map(plain, told))))


def _between(points: Points, before: int, step: int) -> str:
    found = [loss for at, loss in points if before < at <= step]
    return f"{found[-1]:.4f}" if found else ""


def _dataset(run: RunDirectory) -> str:
    """Return a table of counts over the dataset, without file names or captions."""
    try:
        found = run.read_json("dataset.json")
    except RunError:
        return ""
    rows = [
        (name, f"{found[key]:,}")
        for name, key in (
            ("images trained on", "images"),
            ("regularisation images among them", "regularisation"),
            ("images held out for validation", "held_out"),
            ("images without captions", "uncaptioned"),
        )
        if key in found and (found[key] or key != "regularisation")
    ]  # fmt: skip
    if "buckets" in found:
        rows.append(("buckets", f"{len(found['buckets']):,}"))
    return _table(("", ""), rows)


def _config(figures: RunFigures, publish: tuple[str, ...]) -> str:
    shown = redacted_config(figures.config, publish).strip()
    if not shown:
        return ""
    longest = max((len(found) for found in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return (
        f"<details><summary>All settings</summary>\n\n{fence}toml\n{shown}\n{fence}\n\n</details>"
    )


def _samples(figures: RunFigures | None, publish: tuple[str, ...]) -> tuple[dict[str, bytes], str]:
    """Return the newest previews and their Markdown, with prompts only if they may be published."""
    images: dict[str, bytes] = {}
    lines: list[str] = []
    if figures is None:
        return images, ""
    run, with_prompts = figures.run, "prompts" in publish
    step, names = newest_previews(run) or (0, [])
    for name in names[:_SAMPLES]:
        preview = read_preview(run.samples / step_name(step) / name, with_texts=with_prompts)
        if preview is None:
            continue
        file = f"{SAMPLES}/{len(images) + 1:03d}.png"
        images[file] = preview.content
        prompt = plain(preview.prompt) if with_prompts else ""
        lines.append(f"![Sample {len(images)}]({file})" + (f"\n\n{prompt}" if prompt else ""))
    return images, "\n\n".join(lines)


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _code(text: str) -> str:
    code = " ".join(text.split())
    if not code:
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", code)), default=0) + 1)
    return f"{fence} {code} {fence}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *(tuple(map(plain, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _settings(config: str) -> dict[str, Any]:
    try:
        return parse_toml(config)
    except ValueError:
        return {}


def _section_of(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _metadata(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return _section_of(_section_of(settings, "saving"), "metadata")
