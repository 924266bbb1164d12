"""`impasto dataset caption`: write captions with a captioning model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from impasto.cli.dataset_annotation import (
    annotation_options,
    uses_ray,
    whole_name,
    write_annotations,
)
from impasto.cli.dataset_options import CACHE_DIR, LOCAL_SOURCE, executor_options
from impasto.cli.numbers import Finite


@click.command()
@LOCAL_SOURCE
@click.option(
    "--model",
    default="blip-large",
    show_default=True,
    help="A short name, a Hub id, or the folder of a captioner that transformers loads.",
)
@click.option(
    "--prompt",
    default="",
    help="The question for a chat model, or the start of BLIP's captions.",
)
@click.option(
    "--way",
    type=click.Choice(["beam", "sd-scripts", "a1111"]),
    default="beam",
    show_default=True,
    help="Preset for generation: beam search with 3 beams (beam), as in make_captions.py of "
    "sd-scripts, or as in A1111's interrogator.",
)
@click.option("--beams", type=click.IntRange(1), help="Number of beams in the beam search.")
@click.option(
    "--top-p",
    type=Finite(0, 1),
    help="Sample tokens with this top-p instead of beam search; 0 turns sampling off.",
)
@click.option("--min-length", type=click.IntRange(0), help="Minimum length of a caption in tokens.")
@click.option(
    "--max-length",
    type=click.IntRange(1),
    help="Maximum length of a caption in tokens.",
)
@click.option(
    "--repetition-penalty",
    type=Finite(0.1),
    help="Values above 1 reduce repeated words; 1 has no effect.",
)
@click.option("--seed", type=int, help="Seed for sampling (--top-p).")
@click.option(
    "--remove-words",
    is_flag=True,
    help="Remove text that the model claims to read in images (for GIT).",
)
@click.option("--prefix", default="", help="Text before each caption.")
@click.option("--suffix", default="", help="Text after each caption.")
@annotation_options(".caption")
@CACHE_DIR
@executor_options
def caption(source: Path, model: str, way: str, **options: Any) -> None:
    """Caption the images of SOURCE with BLIP, GIT, Florence-2 or a chat model.

    \b
    impasto dataset caption images --model blip-large
    impasto dataset caption images --model Qwen/Qwen2.5-VL-7B-Instruct --prompt "Describe ..."
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.annotate.annotation import CaptionAnnotator, DecodeImages
    from impasto.annotate.captioners import PRESETS, Captioner, require_generation
    from impasto.annotate.models import locate_captioner
    from impasto.annotate.remote import CaptionerRecipe, RemoteAnnotator
    from impasto.cli.console import Console
    from impasto.training.devices import default_device

    console = Console()
    names = ("beams", "top_p", "min_length", "max_length", "repetition_penalty", "seed")
    changes = {name: options[name] for name in names if options[name] is not None}
    found = locate_captioner(model)
    generation = replace(PRESETS[way], **changes)
    require_generation(generation)
    before, behind = options["prefix"], options["suffix"]
    prompt, remove_words = options["prompt"], options["remove_words"]
    device = default_device()
    recipe = CaptionerRecipe(
        whole_name(model), device.type, generation, prompt, remove_words, before, behind
    )
    annotator: CaptionAnnotator | RemoteAnnotator
    if uses_ray(source, options):
        annotator = RemoteAnnotator(DecodeImages(), recipe, device.type == "cuda")
    else:
        with console.stage("Loading the captioner", None, "models"):
            captioner = Captioner.load(
                found, device, prompt=prompt, remove_words=remove_words, progress=console
            )
        captioner.generation = generation
        annotator = CaptionAnnotator(captioner, recipe.change)
    command = ["caption", model, generation, prompt, remove_words, before, behind]
    write_annotations(source, command, annotator, append_caption, "caption", options, console)


def append_caption(before: str, new: str) -> str:
    """Append a caption to an existing line; one that is already there is not repeated."""
    if not before or before == new:
        return new
    return before if before.endswith(f", {new}") else f"{before}, {new}"
