"""`impasto dataset captions`: preview the captions that training will use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.dataset_options import CACHE_DIR, IMAGE_DIR, SOURCE, dataset_config
from impasto.member_paths import plain
from impasto.progress import counted

if TYPE_CHECKING:
    from impasto.config.run import RunConfig
    from impasto.data.loading.templates import CaptionTemplates
    from impasto.data.records import ImageRecord

_SEED = 42  # the default of a run


@dataclass(frozen=True)
class _Showing:
    """One caption of an image; `epoch` and `repeat` count from 1 and are 0 for held-out images."""

    epoch: int
    repeat: int
    caption: str

    @property
    def when(self) -> dict[str, Any]:
        if not self.epoch:
            return {"held_out": True}
        return {"epoch": self.epoch, "repeat": self.repeat}


@dataclass(frozen=True)
class _Course:
    """The length, seed and templates of a run, on which captions depend besides the image."""

    epochs: int
    steps_per_epoch: int
    seed: int
    templates: CaptionTemplates | None

    def showings(self, record: ImageRecord) -> Iterator[_Showing]:
        """Yield the caption of a training image for each epoch and repeat."""
        from impasto.data.captions import TrainingPosition

        steps, subset = self.steps_per_epoch, record.subset
        for epoch in range(self.epochs):
            position = TrainingPosition(epoch + 1, epoch * steps, self.epochs * steps)
            for repeat in range(record.repeats):
                keys = (subset.dataset, subset.number, record.name, repeat)
                text = subset.captions.write(record.caption_text, position, self.seed, *keys)
                if self.templates is not None:
                    text = self.templates.around(text, self.seed, epoch, *keys)
                yield _Showing(epoch + 1, repeat + 1, text)


@click.command()
@SOURCE
@click.option(
    "--epochs",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Epochs to show.",
)
@click.option(
    "--images",
    "--pictures",
    "shown_images",
    default=10,
    show_default=True,
    type=click.IntRange(0),
    help="How many images to show; 0 means all.",
)
@click.option(
    "--seed", type=int, help=f"The run's seed.  [default: that of the run SOURCE, or {_SEED}]"
)
@click.option("--match", default="", help="Only images whose names contain this text.")
@click.option(
    "--image", default="", metavar="NAME", help="Only this image, by its path below SOURCE."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with token counts.")
@click.option(
    "--steps-per-epoch",
    type=click.IntRange(1),
    help="Number of steps per epoch, used by token_warmup_step.  [default: one per image and "
    "repeat]",
)
@IMAGE_DIR
@CACHE_DIR
def captions(
    source: Path,
    epochs: int,
    shown_images: int,
    seed: int | None,
    match: str,
    image: str,
    as_json: bool,  # noqa: FBT001
    steps_per_epoch: int | None,
    **options: Any,
) -> None:
    """Show the exact captions that training would use, epoch by epoch."""
    from impasto.cli.console import Console
    from impasto.config.load import load_run_of_source
    from impasto.data.planning.regularisation import balance
    from impasto.datasets.build import scan_all, split_of_source
    from impasto.errors import ConfigError
    from impasto.progress import SilentProgress

    console = Console()
    progress = SilentProgress() if as_json else console
    config, run = dataset_config(source, options), load_run_of_source(source)
    split = split_of_source(scan_all(config, progress), run, config, progress)
    found = balance(split.training)
    if seed is None:
        seed = _SEED if run is None else run.seed
    per_epoch = steps_per_epoch or sum(record.repeats for record in found)
    course = _Course(epochs, per_epoch, seed, _templates_of(run))
    held_out = ((r, [_Showing(0, 0, r.fixed_caption)]) for r in split.held_out)
    images = [
        (record, showings)
        for record, showings in chain(((r, course.showings(r)) for r in found), held_out)
        if match.lower() in record.name.lower() and image in ("", record.file_name)
    ]
    if not images:
        asked = f"is named {image!r} (--image)" if image else f"has {match!r} in its name (--match)"
        raise ConfigError(f"No image {asked}.")
    shown = [(record, list(showings)) for record, showings in images[: shown_images or None]]
    left = len(images) - len(shown)
    if as_json:
        _print_json(shown, left)
        return
    for record, showings in shown:
        console.heading(record.name)
        for showing in showings:
            console.note(_line(showing, record.repeats))
    if left:
        console.note(f"\n... and {counted(left, 'more images')} (--images 0 shows all)")


def _templates_of(run: RunConfig | None) -> CaptionTemplates | None:
    """Return the templates that a run puts around captions; None unless it is a hypernetwork's."""
    if run is None or run.hypernetwork is None:
        return None
    from impasto.training.builders.methods import (
        build_templates,  # imports torch, which other runs do not need here
    )

    return build_templates(run)


def _line(showing: _Showing, repeats: int) -> str:
    again = f".{showing.repeat}" if repeats > 1 else ""
    when = f"epoch {showing.epoch}{again}" if showing.epoch else "held out"
    return f"  {when}: {showing.caption or '(empty)'}"


def _print_json(images: Sequence[tuple[ImageRecord, list[_Showing]]], left: int) -> None:
    """Print the captions of images as JSON, with token counts that exclude start and end tokens."""
    from impasto.cli.harmless import json_text
    from impasto.models.networks.tokenizers import tokenizer_of
    from impasto.models.tokenization.tokens import TextLayout, TextTokens
    from impasto.models.tokenization.vocabulary import EOS

    tokens = TextTokens(tokenizer_of({}, EOS), TextLayout())
    found: dict[str, Any] = {}
    for record, showings in images:
        path = plain(record.path.as_posix())
        names = chain([record.file_name, path], (f"{path} ({n})" for n in count(3)))
        name = next(name for name in names if name not in found)  # taken names are in other subsets
        lengths = tokens.lengths([showing.caption for showing in showings])
        found[name] = [
            {**showing.when, "caption": showing.caption, "tokens": length}
            for showing, length in zip(showings, lengths, strict=True)
        ]
    click.echo(json_text({"images": found, "images_left_out": left}))
