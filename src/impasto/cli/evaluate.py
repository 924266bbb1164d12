"""`impasto evaluate`: models measured by what they draw, against real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.evaluate_options import drawing_options, measuring_options
from impasto.cli.model_options import model_options, open_options
from impasto.errors import ConfigError

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.evaluation.evaluate import Answer, Question
    from impasto.evaluation.networks import Network
    from impasto.evaluation.samples import Contestant
    from impasto.models.opening import OpenOptions

PAGE, DATA, SAMPLES = "evaluation.html", "evaluation.json", "samples"


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--images", type=click.Path(path_type=Path), metavar="DIR",
    help="Real images with captions, which are the prompts; default: those that the first run "
    "among MODELS held out.",
)  # fmt: skip
@click.option(
    "--training", type=click.Path(path_type=Path), metavar="DIR",
    help="The images that were trained on, to find copies of them; default: those of the first run "
    "among MODELS.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("evaluation"), show_default=True,
    help="Folder for the page, the JSON file and the samples; samples that are there are kept.",
)  # fmt: skip
@click.option("--without-base", is_flag=True, help="Leave the base models of runs out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
@measuring_options
@drawing_options
@model_options
def evaluate(models: tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:  # noqa: FBT001
    """Measure what MODELS draw: files, Diffusers folders, Hub ids, or runs with their base models.

    All draw the same prompts with the same seeds. Distances to real images, obedience to prompts
    and copies of training images are told with 95 % intervals, against the first model.

    \b
    impasto evaluate runs/style
    impasto evaluate base.safetensors a.safetensors b.safetensors --images held-out --training mine
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.checkpoints.hub import require_source
    from impasto.cli.evaluate_sources import base_models_first

    opened = open_options(options)
    sources = base_models_first(models, without=options["without_base"])
    for source in sources:
        require_source(source)
    require_out(out, options["images"], options["training"])
    from impasto.cli.console import Console
    from impasto.progress import SilentProgress

    answer = _measure(sources, out, opened, options, SilentProgress() if as_json else Console())
    _write(answer, out)
    if as_json:
        from impasto.cli.harmless import json_text

        click.echo(json_text(answer.values))
        return
    from impasto.cli.evaluate_text import show

    show(Console(), answer.values)
    Console().note(f"\nWrote {out / PAGE} and {out / DATA}.")


def require_out(out: Path, *real: Path | None) -> None:
    """Make sure that results go into a folder of their own, which no real images are in.

    Raises:
        ConfigError: The folder holds something else, or lies among the images.
    """
    from impasto import files, presence

    for folder in real:
        if folder is not None and files.is_inside(out, folder):
            raise ConfigError(
                f"--out {out} is inside {folder}, so the samples would be taken for real images "
                f"the next time. Give a folder elsewhere."
            )
    if presence.is_file(out):
        raise ConfigError(f"--out {out} is a file. Give the name of a folder.")
    if not presence.is_dir(out):
        return
    known = {PAGE, DATA, SAMPLES}
    others = [path.name for path in out.iterdir() if path.name not in known and path.name[0] != "."]
    if others:
        raise ConfigError(
            f"--out {out} holds {sorted(others)[0]}, which is no part of an evaluation. Give a new "
            f"folder, or that of an earlier evaluation."
        )


def _measure(
    sources: list[str], out: Path, opened: OpenOptions, options: dict[str, Any], console: Any
) -> Answer:
    """Draw and measure, alone in the folder of results.

    Raises:
        RunError: Another process evaluates into the same folder.
    """
    from impasto import files, locks
    from impasto.errors import OutOfMemoryError, RunError
    from impasto.evaluation.evaluate import evaluate as measured
    from impasto.evaluation.samples import DrawSettings, open_contestant
    from impasto.training.devices import default_device, is_out_of_memory, release_cached_memory

    def refuse(holder: locks.LockHolder) -> None:
        raise RunError(f"Another process evaluates into {out}: {holder.words}.")

    device = default_device()
    networks = _networks(options, device, console)
    labels = labels_of(sources)
    contestants = [
        open_contestant(source, label, opened, console)
        for source, label in zip(sources, labels, strict=True)
    ]
    question = _question(sources, contestants, networks, options, console)
    files.require_writable(out)
    settings = DrawSettings(out / SAMPLES, options["clip_skip"], device)
    with locks.FolderLock(out, "evaluating", refuse):
        try:
            answer = measured(question, contestants, settings, console, release_cached_memory)
        except Exception as error:
            if not is_out_of_memory(error) or isinstance(error, OutOfMemoryError):
                raise
            raise OutOfMemoryError(
                "Memory ran out while drawing. Draw smaller images with --width and --height, or "
                "end what else uses the GPU, and give the same command again: what was drawn is "
                "kept."
            ) from error
    answer.values["drawing"] = {name: options[name] for name in DRAWING}
    return answer


DRAWING = ("seed", "steps", "guidance", "guidance_rescale", "sampler", "negative", "clip_skip")


def labels_of(sources: list[str]) -> list[str]:
    """What models are called: by their files' names, numbered where several have the same."""
    from impasto import presence
    from impasto.parsing import printable

    found: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        name = printable(path.resolve().name if presence.exists(path) else source.replace("/", "-"))
        for ending in (".safetensors", ".ckpt", ".sft", ".pt"):
            name = name.removesuffix(ending)
        label, number = name, 1
        while label in found:
            number += 1
            label = f"{name}-{number}"
        found.append(label)
    return found


def _networks(options: dict[str, Any], device: Any, console: Console) -> tuple[Network, ...]:
    """The networks that are asked for, each once.

    Raises:
        ConfigError: One is not known, or two have the same name.
    """
    from impasto.demo.recipe import TAGGER
    from impasto.evaluation.networks import TaggerNetwork, load_network, load_tagger

    shipped = {"demo": TAGGER}
    wanted = options["features"]
    networks: list[Network] = []
    if options["tagger"] is not None and options["tagger"] not in wanted:
        networks.append(load_tagger(options["tagger"], console, shipped))
    networks += [load_network(name, device, console, shipped) for name in wanted]
    names = [network.facts.name for network in networks]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"Two feature networks are called {next(n for n in names if names.count(n) > 1)!r}. "
            f"Give each once, or rename the folder of one."
        )
    if options["tagger"] in wanted:  # its tags are those that count
        networks.sort(key=lambda n: n is not networks[wanted.index(options["tagger"])])
    taggers = [network for network in networks if isinstance(network, TaggerNetwork)]
    for extra in taggers[1:]:
        extra.tells_tags = False
    if "demo" in wanted:
        console.note(
            "Features: demo, the small tagger of Impasto's demo, which knows flat icons alone. For "
            "photographs and drawings give --features clip or dinov2."
        )
    return tuple(networks)


def _question(
    sources: list[str],
    models: list[Contestant],
    networks: tuple[Network, ...],
    options: dict[str, Any],
    console: Console,
) -> Question:
    """What is drawn and what it is compared with."""
    from impasto.cli.evaluate_sources import Prompts, previewed_size, real_images
    from impasto.evaluation.evaluate import Question

    images, training = real_images(sources, options["images"], options["training"], console)
    size = options["width"], options["height"]
    prompts = Prompts.of(images, options, previewed_size(sources) or size, size)
    prompts.of_model(models[0])  # a fault of the file is told before anything is drawn
    return Question(
        images,
        training,
        prompts.texts,
        options["count"],
        prompts.of_model,
        networks,
        options["bootstrap"],
        options["seed"],
    )


def _write(answer: Answer, out: Path) -> None:
    """The JSON file, and the page."""
    from impasto import files
    from impasto.report.evaluation_page import write_evaluation

    files.write_json(out / DATA, answer.values)
    write_evaluation(out / PAGE, answer.values, answer.real, answer.training)
