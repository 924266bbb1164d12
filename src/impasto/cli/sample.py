"""`impasto sample`: draw images with a model or a finished run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto import presence
from impasto.cli.local_paths import WRITTEN
from impasto.cli.model_options import model_options, open_options
from impasto.cli.sampling_options import require_sampler_and_sides, sampling_options
from impasto.progress import counted

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.models.merging.lora_merging import WeightedLora
    from impasto.models.networks.hypernetwork import HypernetworkStack
    from impasto.models.networks.loading import BaseModel
    from impasto.models.tokenization.tokens import Emphasis
    from impasto.sampling.prompts import Prompt
    from impasto.sampling.sampler import Sampler

_NUMBERED = re.compile(r"(\d{4,9})-")


@click.command()
@click.argument("model")
@click.argument("prompts", nargs=-1, required=True)
@click.option(
    "--out",
    type=WRITTEN,
    default=Path("samples"),
    show_default=True,
    help="Folder for the images.",
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
    "--seed",
    default=1,
    show_default=True,
    type=click.IntRange(0, 2**63 - 1),
    help="Seed of the first image; each further image adds 1.",
)
@click.option(
    "--count",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Number of images per prompt.",
)
@click.option(
    "--clip-skip",
    type=click.IntRange(1, 12),
    help="Clip skip, as in training; default: the value recorded in the file.",
)
@click.option(
    "--emphasis",
    type=click.Choice(["mean", "no_norm", "off"]),
    default="mean",
    show_default=True,
    help="How (cat:1.2) and [dog] weight words: as in A1111 (mean), as in A1111 without "
    "restoring the mean (no_norm), or not at all (off).",
)
@click.option(
    "--empty-text",
    type=click.Choice(["encoded", "zeros"]),
    help="What SDXL uses for an empty negative prompt: the encoded empty text, or zeros.  "
    "[default: as recorded in MODEL]",
)
@click.option(
    "--hypernetwork",
    "hypernetworks",
    multiple=True,
    metavar="FILE[:STRENGTH]",
    help="A hypernetwork to use; repeatable. A prompt may contain <hypernet:name:0.5>.",
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FILE[:STRENGTH]",
    help="A LoRA or LoCon to use; repeatable. It is added to MODEL in memory only.",
)
@click.option(
    "--strengths",
    metavar="0,0.5,1",
    help="Draw each prompt at each of these strengths of the hypernetworks; they are the columns "
    "of --grid.",
)
@click.option("--grid", is_flag=True, help="Also write all images as one image, grid.png.")
@model_options
def sample(
    model: str,
    prompts: tuple[str, ...],
    out: Path,
    negative: str,
    width: int | None,
    height: int | None,
    steps: int,
    guidance: float,
    guidance_rescale: float,
    seed: int,
    count: int,
    sampler: str,
    clip_skip: int | None,
    emphasis: Emphasis,
    empty_text: str | None,
    hypernetworks: tuple[str, ...],
    loras: tuple[str, ...],
    strengths: str | None,
    grid: bool,  # noqa: FBT001
    **options: Any,
) -> None:
    """Draw each of PROMPTS with MODEL: a file, a Diffusers folder, a Hub id, or a finished run.

    Existing images in the folder are kept: the numbers of new ones continue after theirs.
    """
    from impasto.checkpoints.hub import require_source
    from impasto.cli.console import Console

    require_sampler_and_sides(sampler, width, height)
    require_source(model)
    from impasto.models.merging.lora_merging import open_loras
    from impasto.models.networks.hypernetwork import load_hypernetworks
    from impasto.sampling.drawing import prepare_sampler, with_strengths
    from impasto.sampling.prompts import Prompt
    from impasto.training.devices import default_device

    console = Console()
    stack = load_hypernetworks(hypernetworks)
    sweep = _sweep(strengths, stack)
    added = open_loras(loras)
    base = _load(model, added, options, console)
    zeros = None if empty_text is None else empty_text == "zeros"
    device = default_device()
    drawer = prepare_sampler(base, stack, device, clip_skip, emphasis, zeroes_empty_text=zeros)
    stack.attach(base.unet)
    size, named = _size(width, height, model, base), tuple(lora.named for lora in added)
    first = Prompt(
        prompts[0], negative, seed, *size, steps, guidance, sampler, guidance_rescale, named
    )
    single = _series(first, prompts, count)
    swept: list[float | None] = [*sweep] or [None]
    wanted = [with_strengths(p, stack, strength) for p in single for strength in swept]
    _advise(base, single, emphasis, console)
    images = _generate_all(drawer, wanted, out, console)
    if grid:
        columns = len(sweep) or (count if count > 1 else 4)
        _save_grid(images, columns, out, wanted[0], drawer.text_settings)
    console.note(f"Wrote {counted(len(images), 'images')} to {out}.")


def _series(first: Prompt, texts: Sequence[str], count: int) -> list[Prompt]:
    """Return `count` prompts per text, otherwise like `first`; each adds 1 to the seed."""
    each = (text for text in texts for _ in range(count))
    return [replace(first, text=text, seed=first.seed + index) for index, text in enumerate(each)]


def _load(
    model: str, loras: Sequence[WeightedLora], options: dict[str, Any], console: Console
) -> BaseModel:
    """Load the model with LoRAs added to it in memory, and print their names."""
    from impasto.models.merging.lora_merging import with_loras
    from impasto.models.networks.loading import load_base_model

    changed = partial(with_loras, loras=loras)
    base = load_base_model(model, open_options(options), console, changed=changed)
    for lora in loras:
        console.note(f"With {lora.description}.")
    return base


def _sweep(strengths: str | None, stack: HypernetworkStack) -> list[float]:
    """Parse the strengths to draw each prompt at; empty if each is drawn once.

    Raises:
        ConfigError: There is no hypernetwork, or a strength is not a number.
    """
    from impasto.errors import ConfigError

    sweep = _numbers(strengths) if strengths else []
    if sweep and not stack.networks:
        raise ConfigError("--strengths has no effect without --hypernetwork.")
    return sweep


def _advise(base: BaseModel, prompts: list[Prompt], emphasis: Emphasis, console: Console) -> None:
    """Print a warning about prompts that are too long, and advice on guidance rescale."""
    from impasto.sampling.drawing import cut_warning
    from impasto.sampling.sampler import rescale_advice

    cut = cut_warning(base, (text for prompt in prompts for text in prompt.texts), emphasis)
    if cut:
        console.note(f"Warning: {cut}")
    advice = rescale_advice(base.scheduler_config, prompts, "--guidance-rescale 0.7")
    if advice:
        console.note(advice)


def _generate_all(drawer: Sampler, wanted: list[Prompt], out: Path, console: Console) -> list[Any]:
    """Draw and save the image of each prompt, and return the images."""
    from impasto.sampling.sampler import save_png

    images = []
    first = _next_number(out)
    with console.stage("Drawing", len(wanted), "images") as advance:
        for index, prompt in enumerate(wanted, start=first):
            image = drawer.draw(prompt)
            save_png(image, out / f"{index:04d}-{prompt.seed}.png", prompt, drawer.text_settings)
            images.append(image)
            advance(1)
    return images


def _save_grid(
    images: list[Any], columns: int, out: Path, prompt: Prompt, more: Mapping[str, str]
) -> None:
    """Save all images as a grid, with the settings of the first, under an unused name."""
    from impasto.sampling.sampler import make_grid, save_png

    save_png(make_grid(images, min(columns, len(images))), _free_grid(out), prompt, more)


def _size(width: int | None, height: int | None, model: str, base: BaseModel) -> tuple[int, int]:
    """Return width and height; a side that is not given is that of the training size."""
    if width is not None and height is not None:
        return width, height
    native = _native_size(model, base)
    return width or native[0], height or native[1]


def _native_size(model: str, base: BaseModel) -> tuple[int, int]:
    """Return the size that the model was trained at, from the settings of a run or the file."""
    from impasto.config.load import load_begun_config
    from impasto.models.reading.native_size import native_size
    from impasto.runs.remote.reading import settings_file_of

    config_file = settings_file_of(model)
    if not presence.is_file(config_file):
        return native_size(base.contents)
    sizes = (entry.width_height for entry in load_begun_config(config_file).dataset.entries)
    width, height = max(sizes)
    return max(8, width // 8 * 8), max(8, height // 8 * 8)


def _next_number(out: Path) -> int:
    """Return the number after the largest of the images in a folder, or 0 for the first."""
    names = (path.name for path in out.iterdir()) if presence.is_dir(out) else ()
    taken = [int(found[1]) for name in names if (found := _NUMBERED.match(name))]
    return max(taken, default=-1) + 1


def _free_grid(out: Path) -> Path:
    """Return the path `grid.png`, or `grid-2.png` and so on if that exists."""
    number, candidate = 1, out / "grid.png"
    while presence.exists(candidate):
        number += 1
        candidate = out / f"grid-{number}.png"
    return candidate


def _numbers(text: str) -> list[float]:
    """Parse a list of strengths from the command line.

    Raises:
        ConfigError: A value is not a number.
    """
    from impasto.errors import ConfigError
    from impasto.finite import finite

    try:
        return [finite(piece) for piece in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--strengths is {text!r}; expected numbers such as 0,0.5,1.") from error
