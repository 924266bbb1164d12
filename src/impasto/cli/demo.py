"""`impasto demo`: a complete training run on the embedded model and images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from impasto.cli.local_paths import WRITTEN
from impasto.invocation import command, quoted

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.config.run import RunConfig
    from impasto.runs import RunDirectory

SHOWN = 5  # number of images for the captioner and tagger


@click.command()
@click.option(
    "--out",
    type=WRITTEN,
    help="Run directory; default: impasto-demo, or the next free impasto-demo-2, -3, ...",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable."
)
def demo(out: Path | None, overrides: tuple[str, ...]) -> None:
    """Teach the embedded tiny model a new drawing style: under 5 minutes on two CPU cores."""
    from impasto.cli.console import Console

    console = Console()
    from impasto.cli.finish import finish
    from impasto.demo.recipe import BASE_MODEL, demo_config
    from impasto.invocation import is_first_process
    from impasto.presence import free_path
    from impasto.runs import RunDirectory
    from impasto.training import trainer

    config = demo_config(out or free_path(Path("impasto-demo")), overrides)
    console.heading("Impasto's demo")
    console.paragraph(
        "A tiny Stable Diffusion model that knows 171 things as colourful icons is taught to draw "
        "in dark ink on ochre paper, from 100 captioned images. The 12 prompts of its previews "
        "name things that none of these images shows."
    )
    if is_first_process():  # others come when the first has created it
        RunDirectory.require_free(config.output_dir)
    _tell_what_is_seen(console)
    console.heading("Training")
    run = finish(lambda: trainer.train(config, console), console)
    _mix(run, config, console)
    console.heading("The same with your own folder of images")
    console.note(
        "Put a text file with a few words beside each image (cat.jpg, cat.txt), then:\n\n"
        + "".join(f"  {line}\n" for line in _suggest_commands(run.config_file))
    )
    console.paragraph(
        f"The base model of the demo is in {quoted(BASE_MODEL)}; for real work, set model.path to "
        f"a full-size model and start from an example: {command('new', 'style-12gb')}"
    )


def _suggest_commands(config_file: Path) -> list[str]:
    """Return the commands for a run with the user's images in MY_IMAGES, ready to be pasted."""
    bounds = "--resolution 136 --min-side 64 --max-side 256 --step 32"
    changes = [
        "dataset.image_dir=MY_IMAGES",
        "validation.image_dir=none",
        "validation.split=0.1",
        "output_dir=my-run",
    ]
    sets = [argument for change in changes for argument in ("--set", change)]
    size = "--width 128 --height 128 --guidance 2"
    return [
        command("dataset", "plan", "MY_IMAGES", *bounds.split()),
        command("train", config_file, *sets),
        command("sample", "my-run", "a cat face", *size.split()),
    ]


def _mix(run: RunDirectory, config: RunConfig, console: Console) -> None:
    """Mix the result with the base model, and score what each draws; only in the first process."""
    from impasto.demo.ending import RATIO, draw_previews, mix_with_base
    from impasto.demo.evidence import look_at_drawings
    from impasto.errors import MissingDependencyError
    from impasto.invocation import is_first_process
    from impasto.runs import step_name

    steps, prompts = run.sampled_steps(), config.previews.prompts
    if not is_first_process() or config.method.kind != "full" or not prompts:
        return
    console.heading("Mixed with the base model, to keep what it knows")
    model = mix_with_base(run, config, console)
    names = {0: "the base model", steps[-1]: f"the result of {steps[-1]:,} steps"}
    folders = {n: run.samples / step_name(step) for step, n in names.items() if step in steps}
    folders[f"the mixture, {RATIO:.0%} result"] = draw_previews(model, config, console)
    try:
        found = look_at_drawings(folders, prompts, console)
    except MissingDependencyError:  # reported before training already
        found = {}
    told = {name.capitalize(): str(each) for name, each in found.items()}
    console.table({**told, "Model": str(model)})
    if found:
        console.paragraph(
            "The kernel distance is measured to the held-out drawings, real ones in the style: "
            "lower is closer. The prompts name things that no training image shows: those that "
            "are not recognised were forgotten."
        )


def _tell_what_is_seen(console: Console) -> None:
    """Print the results of the small captioner and tagger on images outside their training set."""
    import torch

    from impasto.annotate.annotation import CaptionAnnotator, TagAnnotator, captions_of
    from impasto.annotate.captioners import Captioner, Generation
    from impasto.annotate.onnx_tagger import OnnxTagger
    from impasto.annotate.tags import Selection, Spelling
    from impasto.data.scanning.scan import scan_folder
    from impasto.demo.recipe import CAPTIONER, PICTURES, TAGGER
    from impasto.errors import MissingDependencyError

    console.heading("Captions and tags by the demo's small models")
    records = scan_folder(PICTURES).records[:SHOWN]
    short = Generation(min_length=0)  # its captions have two words or more
    tags: dict[Path, str] = {}
    with console.stage("Captioning and tagging", None, "models") as advance:
        captioner = Captioner.load(str(CAPTIONER), torch.device("cpu"), generation=short)
        captions = captions_of(CaptionAnnotator(captioner), records)
        advance(1)
        try:
            tags = captions_of(TagAnnotator(OnnxTagger(TAGGER), Selection(), Spelling()), records)
            advance(1)
        except MissingDependencyError as error:
            console.note(str(error))
    console.table(
        {path.name: " | ".join(filter(None, (c, tags.get(path)))) for path, c in captions.items()}
    )
