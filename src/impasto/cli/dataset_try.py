"""`impasto dataset try`: compare taggers and captioners on a few images."""

from __future__ import annotations

import contextlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.dataset_annotation import usable_images
from impasto.cli.dataset_options import CACHE_DIR, SOURCE, dataset_config
from impasto.cli.local_paths import WRITTEN
from impasto.cli.ordered import OrderedCommand, in_order

if TYPE_CHECKING:
    from impasto.annotate.annotation import Annotator
    from impasto.cli.console import Console
    from impasto.data.records import ImageRecord

_AT_ONCE = 4
_DEFAULT = "default"


@click.command("try", cls=OrderedCommand)
@SOURCE
@click.option(
    "--tagger", multiple=True, nargs=2, metavar="MODEL THRESHOLD",
    help="A tagger as for `tag`, and its --threshold: a number, balance, model or default.",
)  # fmt: skip
@click.option(
    "--captioner", multiple=True, nargs=2, metavar="MODEL PROMPT",
    help='A captioner as for `caption`, and its --prompt, which may be "".',
)  # fmt: skip
@click.option(
    "--sample", default=12, show_default=True, type=click.IntRange(1),
    help="Number of images to try, evenly spread over the dataset.",
)  # fmt: skip
@click.option(
    "--out", type=WRITTEN,
    help="Write the results as JSON, updated after each model.",
)  # fmt: skip
@CACHE_DIR
def try_models(source: Path, sample: int, out: Path | None, **options: Any) -> None:
    """Try taggers and captioners on a few images of SOURCE; writes nothing beside the images.

    Models are loaded one at a time. A model that cannot be loaded is reported, and the others are
    still tried.

    \b
    impasto dataset try images --tagger wd-swinv2-v3 0.35 --captioner blip-large ""
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto import files
    from impasto.cli.console import Console
    from impasto.errors import ImpastoError, ModelError

    console = Console()
    models = in_order(options, "tagger", "captioner")
    if not models:
        raise click.UsageError("Name models: --tagger MODEL THRESHOLD or --captioner MODEL PROMPT.")
    config = dataset_config(source, {"cache_dir": options["cache_dir"]})
    names = names_of(spread(usable_images(config, console), sample))
    found: list[dict[str, Any]] = []
    for kind, (model, setting) in models:
        column: dict[str, Any] = {"kind": kind, "model": model, "setting": setting}
        try:
            column["words"] = _captions(kind, model, setting, names, console)
        except ImpastoError as error:
            column["error"] = str(error)
            console.note(f"{model}: {error}")
        found.append(column)
        if out is not None:
            shown = [*names]
            files.write_json(out, {"images": shown, "models": found}, durable=False)
    if all("error" in column for column in found):
        raise ModelError("None of the models could be tried; the reasons are above.")
    _tell(names, found, console)


def spread(records: Sequence[ImageRecord], number: int) -> list[ImageRecord]:
    """Return `number` distinct images, evenly spread over all; all if there are no more."""
    each = list({record.path: record for record in records}.values())
    if len(each) <= number:
        return each
    return [each[n * len(each) // number] for n in range(number)]


def names_of(records: Sequence[ImageRecord]) -> dict[str, ImageRecord]:
    """Return display name -> image: the path below its folder, or in full if that is ambiguous."""
    often = Counter(record.file_name for record in records)
    return {r.file_name if often[r.file_name] == 1 else str(r.path): r for r in records}


def _captions(
    kind: str, model: str, setting: str, names: Mapping[str, ImageRecord], console: Console
) -> dict[str, str]:
    """Run a model on images, and return name -> caption or tags; unreadable images are left out."""
    from impasto.annotate.annotation import captions_of

    annotator = _ANNOTATORS[kind](model, setting, console)
    found: dict[str, str] = {}
    named = [*names.items()]
    with console.stage(f"Trying {model}", len(names), "images") as advance:
        for begin in range(0, len(named), _AT_ONCE):
            batch = named[begin : begin + _AT_ONCE]
            texts = captions_of(annotator, [record for _, record in batch])
            found |= {name: texts[r.path] for name, r in batch if r.path in texts}
            advance(len(batch))
    del annotator
    _free()
    return found


def _tagging(model: str, setting: str, console: Console) -> Annotator[Any]:
    from impasto.annotate.annotation import TagAnnotator
    from impasto.annotate.models import TAGGERS
    from impasto.annotate.tags import Spelling
    from impasto.cli.dataset_tag import load_tagger, selection_of

    tagger = load_tagger(model, console)
    options = {
        "threshold": None if setting in ("", _DEFAULT) else setting,
        "by_category": (), "mcut": False, "only": (), "by_score": False,
        "rating": "off", "quality": "off",
    }  # fmt: skip
    balance = TAGGERS[model].balance if model in TAGGERS else None
    selection = selection_of(options, tagger.profile.thresholds, balance, model)
    return TagAnnotator(tagger, selection, Spelling())


def _captioning(model: str, setting: str, console: Console) -> Annotator[Any]:
    from impasto.annotate.annotation import CaptionAnnotator
    from impasto.annotate.captioners import PRESETS, Captioner
    from impasto.annotate.models import locate_captioner
    from impasto.training.devices import default_device

    folder = locate_captioner(model)
    with console.stage("Loading the captioner", None, "models"):
        captioner = Captioner.load(folder, default_device(), prompt=setting, progress=console)
    captioner.generation = PRESETS["beam"]
    return CaptionAnnotator(captioner)


_ANNOTATORS = {"tagger": _tagging, "captioner": _captioning}


def _free() -> None:
    """Free the VRAM of the previous model for the next one."""
    import gc

    import torch

    gc.collect()
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()


def _tell(names: Iterable[str], found: Sequence[dict[str, Any]], console: Console) -> None:
    for name in names:
        console.heading(unicodedata.normalize("NFC", name))
        console.table({_label(c): c["words"].get(name, "") for c in found if "words" in c})


def _label(column: dict[str, Any]) -> str:
    """Return the label of a result: kind, model and setting, as one model may be tried twice."""
    return " ".join(filter(None, (column["kind"], column["model"], column["setting"])))
