"""`impasto dataset prior`: draw regularisation images with the base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.local_paths import WRITTEN
from impasto.cli.model_options import model_options, open_options
from impasto.cli.sampling_options import require_sampler_and_sides, sampling_options
from impasto.errors import ConfigError
from impasto.progress import counted

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.models.networks.loading import BaseModel
    from impasto.sampling.prior import PriorPlan

LARGEST_SEED = 2**63 - 1


@click.command()
@click.argument("model")
@click.argument("folder", type=WRITTEN)
@click.option(
    "--words",
    multiple=True,
    help='The prompt to draw, such as "a frog"; repeatable, then prompts are used in turn.',
)
@click.option(
    "--captions-of", "source", metavar="SOURCE", type=click.Path(path_type=Path),
    help="Draw the captions of these images in turn, without repetitions, instead of --words.",
)  # fmt: skip
@click.option(
    "--count",
    default=200,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Number of images to draw.",
)
@click.option("-n", "--negative", default="", help="Negative prompt.")
@click.option(
    "--width",
    type=click.IntRange(8, 8192),
    help="Width in pixels; default: the size that MODEL was trained at.",
)
@click.option(
    "--height",
    type=click.IntRange(8, 8192),
    help="Height in pixels; default: the size that MODEL was trained at.",
)
@sampling_options
@click.option(
    "--seed", default=1, show_default=True, type=click.IntRange(0, LARGEST_SEED),
    help="Seed of the first image; each further image adds 1.",
)  # fmt: skip
@click.option(
    "--clip-skip",
    type=click.IntRange(1, 12),
    help="Clip skip, as in training; default: the value recorded in the file.",
)
@model_options
def prior(model: str, folder: Path, **options: Any) -> None:
    """Draw regularisation images with MODEL into FOLDER, with captions beside them.

    MODEL is the base model that will be trained. Add FOLDER to the dataset as a subset with is_reg
    = true. Run the same command again to continue an interrupted one, or with a larger --count to
    draw more.

    \b
    impasto dataset prior base.safetensors reg/frog --words "a frog" --count 200
    impasto dataset prior base.safetensors reg/style --captions-of images
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.checkpoints.hub import require_source

    if bool(options["words"]) == (options["source"] is not None):
        raise ConfigError(
            'Give the prompts to draw: either --words "a frog" or --captions-of SOURCE.'
        )
    require_sampler_and_sides(options["sampler"], options["width"], options["height"])
    if options["seed"] + options["count"] > LARGEST_SEED:
        raise ConfigError(f"--seed {options['seed']} leaves no seeds for {options['count']} images")
    require_source(model)
    from impasto.cli.console import Console

    console = Console()
    texts = _texts(options["words"], options["source"], console)
    _draw(model, folder, texts, options, console)


def _texts(given: tuple[str, ...], source: Path | None, console: Console) -> list[str]:
    """Return the prompts: those of `--words`, or the distinct captions of `source`.

    Raises:
        ConfigError: There is no prompt, or an empty one.
    """
    texts = [text.strip() for text in given]
    if source is not None:
        from impasto.cli.dataset_options import dataset_config, scan_images

        scan = scan_images(dataset_config(source, {}), console, decode=False)
        records = [record for record in scan.records if not record.subset.is_reg]
        texts = list(dict.fromkeys(record.fixed_caption.strip() for record in records))
        texts = [text for text in texts if text]
    if not texts or not all(texts):
        where = "--words" if source is None else f"The captions of {source}"
        raise ConfigError(f"{where}: there is nothing to draw. Give at least one text.")
    return texts


def _draw(
    model: str, folder: Path, texts: list[str], options: dict[str, Any], console: Console
) -> None:
    from impasto.models.merging.mix_record import hash_model
    from impasto.models.networks.hypernetwork import HypernetworkStack
    from impasto.models.networks.loading import load_base_model
    from impasto.models.reading.opening import locate
    from impasto.sampling.drawing import cut_warning, prepare_sampler
    from impasto.sampling.prior import (
        draw_missing,
        missing_images,
        require_same_folder,
        write_missing_captions,
    )
    from impasto.training.devices import default_device

    opened = open_options(options)
    base = load_base_model(model, opened, console)
    plan = _plan(base, texts, options)
    vae = None if opened.vae is None else hash_model(locate(opened.vae, opened, console), console)
    identity = {
        "sha256": hash_model(locate(model, opened, console), console),
        "weights": opened.weights,
        "variant": opened.variant,
        "prediction": base.identity.prediction.name,
        "vae": vae,
        "clip_skip": options["clip_skip"],
    }
    require_same_folder(folder, plan.record(identity))
    if cut := cut_warning(base, texts):
        console.note(f"Warning: {cut}")
    there = plan.count - len(missing_images(folder, plan.count))
    if there:
        console.note(f"{counted(there, 'images are')} already drawn.")
    if captions := write_missing_captions(plan, folder):
        console.note(f"{counted(captions, 'captions were')} missing and have been written again.")
    drawn = 0
    if there < plan.count:
        sampler = prepare_sampler(
            base, HypernetworkStack(), default_device(), options["clip_skip"], "off"
        )
        drawn = draw_missing(plan, folder, sampler, console)
    console.note(f"Drew {counted(drawn, 'images')} into {folder}. Add this subset to the dataset:")
    console.note(f"\n  [[datasets.subsets]]\n  image_dir = {_toml(folder)}\n  is_reg = true\n")


def _plan(base: BaseModel, texts: list[str], options: dict[str, Any]) -> PriorPlan:
    from impasto.models.reading.native_size import native_size
    from impasto.sampling.prior import PriorPlan
    from impasto.sampling.prompts import Prompt

    native = native_size(base.contents)
    prompt = Prompt(
        "",
        options["negative"],
        options["seed"],
        options["width"] or native[0],
        options["height"] or native[1],
        options["steps"],
        options["guidance"],
        options["sampler"],
        options["guidance_rescale"],
    )
    return PriorPlan(texts, options["count"], prompt)


def _toml(folder: Path) -> str:
    """Return the absolute path as a TOML string with forward slashes, which Windows reads too."""
    import json

    return json.dumps(folder.absolute().as_posix(), ensure_ascii=False)
