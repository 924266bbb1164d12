"""`impasto evaluate`: measure models by the images that they draw, against real images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.evaluate_options import drawing_options, measuring_options
from impasto.cli.local_paths import WRITTEN
from impasto.cli.model_options import model_options, open_options
from impasto.errors import ConfigError

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.cli.evaluate_sources import Source
    from impasto.config.run import RunConfig
    from impasto.evaluation.networks import Network
    from impasto.evaluation.question import Answer, Question
    from impasto.evaluation.samples import Contestant
    from impasto.lock_file import LockHolder

PAGE, DATA, SAMPLES = "evaluation.html", "evaluation.json", "samples"


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--images", type=click.Path(path_type=Path), metavar="DIR",
    help="Real images with captions; the captions are used as prompts. Default: the held-out "
    "images of the first run among MODELS that has any.",
)  # fmt: skip
@click.option(
    "--training", type=click.Path(path_type=Path), metavar="DIR",
    help="The training images, to find copies of them; default: those of all runs among MODELS.",
)  # fmt: skip
@click.option(
    "--out", type=WRITTEN, default=Path("evaluation"), show_default=True,
    help="Folder for the page, the JSON file and the samples. The first two are replaced; samples "
    "are kept and reused if their settings are the same.",
)  # fmt: skip
@click.option("--without-base", is_flag=True, help="Leave out the base models of runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@measuring_options
@drawing_options
@model_options
def evaluate(models: tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:  # noqa: FBT001
    """Measure the quality of images drawn by MODELS.

    MODELS are files, Diffusers folders, Hub ids, or runs; the base models of runs are measured
    too. All draw the same prompts with the same seeds. Distance to real images, agreement with the
    prompts and copies of training images are measured, with 95 % confidence intervals, and compared
    with the first model.

    \b
    impasto evaluate runs/style
    impasto evaluate base.safetensors a.safetensors b.safetensors --images held-out --training mine
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.checkpoints.hub import require_source
    from impasto.cli.evaluate_sources import base_models_first, image_folders

    sources = base_models_first(models, open_options(options), without=options["without_base"])
    for source in sources:
        require_source(source.given)
    require_out(out, options["images"], options["training"], *image_folders(sources))
    from impasto.cli.console import Console
    from impasto.progress import SilentProgress

    answer = _measure(sources, out, options, SilentProgress() if as_json else Console())
    _write(answer, out)
    if as_json:
        from impasto.cli.harmless import json_text

        click.echo(json_text(answer.values))
        return
    from impasto.cli.evaluate_text import show

    show(Console(), answer.values)
    Console().note(f"\nWrote {out / PAGE} and {out / DATA}.")


def require_out(out: Path, *real: Path | None) -> None:
    """Make sure that the results get a separate folder, outside the folders of real images.

    Raises:
        ConfigError: The folder holds other files, or is inside a folder of images.
    """
    from impasto import files, presence

    for folder in real:
        if folder is not None and files.is_inside(out, folder):
            raise ConfigError(
                f"--out {out} is inside {folder}, so the samples would count as real images next "
                f"time. Give a folder elsewhere."
            )
    if presence.is_file(out):
        raise ConfigError(f"--out {out} is a file. Give the name of a folder.")
    if not presence.is_dir(out):
        return
    known = {PAGE, DATA, SAMPLES}
    others = [path.name for path in out.iterdir() if path.name not in known and path.name[0] != "."]
    if others:
        raise ConfigError(
            f"--out {out} holds {sorted(others)[0]}, which is not part of an evaluation. Give a "
            f"new folder, or that of an earlier evaluation."
        )


def _measure(sources: list[Source], out: Path, options: dict[str, Any], console: Any) -> Answer:
    """Draw samples and measure them, holding a lock on the folder of results.

    Raises:
        OutOfMemoryError: Memory ran out.
        RunError: Another process is evaluating into the same folder.
    """
    from impasto import files, locks
    from impasto.cli.evaluate_sources import labels_of
    from impasto.errors import RunError
    from impasto.evaluation.evaluate import draw_all, measure_all
    from impasto.evaluation.samples import DrawSettings, open_contestant
    from impasto.training.devices import default_device, release_cached_memory

    def refuse(holder: LockHolder) -> None:
        raise RunError(f"Another process is evaluating into {out}: {holder.description}.")

    device = default_device()
    networks = _networks(options, device, console)
    contestants = [
        open_contestant(source.given, label, source.options, console, source.clip_skip)
        for source, label in zip(sources, labels_of(s.given for s in sources), strict=True)
    ]
    question, notes = _question(sources, contestants, networks, options, console)
    files.require_writable(out)
    settings = DrawSettings(out / SAMPLES, options["clip_skip"], device, question.emphasis)
    with locks.FolderLock(out, "evaluating", refuse):
        with _memory_for("drawing", "Draw smaller images with --width and --height"):
            drawn = draw_all(question, contestants, settings, console, release_cached_memory)
        with _memory_for("measuring", "Use a smaller feature network or fewer images"):
            answer = measure_all(question, contestants, drawn, settings.folder, console)
    answer.values["drawing"] = {name: options[name] for name in DRAWING}
    answer.values["drawing"]["emphasis"] = question.emphasis
    answer.values["notes"] += notes
    return answer


DRAWING = ("seed", "steps", "guidance", "guidance_rescale", "sampler", "negative", "clip_skip")


@contextmanager
def _memory_for(work: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into one that names the work and gives advice.

    Raises:
        OutOfMemoryError: Memory ran out inside the context.
    """
    from impasto.errors import OutOfMemoryError
    from impasto.training.devices import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Memory ran out while {work}. {advice}, or close other programs that use it, and run "
            f"the same command again: finished samples are reused."
        ) from error


def _networks(options: dict[str, Any], device: Any, console: Console) -> tuple[Network, ...]:
    """Load the feature networks in `--features` and `--tagger`, each once.

    Raises:
        ConfigError: A network is unknown, or two have the same name.
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
    if options["tagger"] in wanted:  # its tags are used to check prompts
        first = networks[wanted.index(options["tagger"])]
        networks.sort(key=lambda network: network is not first)
    taggers = [network for network in networks if isinstance(network, TaggerNetwork)]
    for extra in taggers[1:]:
        extra.tells_tags = False
    if "demo" in wanted:
        console.note(
            "Features: demo, the small tagger of Impasto's demo, which knows only flat icons. For "
            "photographs and drawings, use --features clip or dinov2."
        )
    return tuple(networks)


def _question(
    sources: list[Source],
    models: list[Contestant],
    networks: tuple[Network, ...],
    options: dict[str, Any],
    console: Console,
) -> tuple[Question, tuple[str, ...]]:
    """Build the question to evaluate, with notes on what could not be found."""
    from impasto.cli.evaluate_images import find_images
    from impasto.cli.evaluate_prompts import Prompts
    from impasto.cli.evaluate_sources import emphasis_of_captions, first_previews, run_config
    from impasto.evaluation.question import Question

    runs: dict[bool, dict[str, RunConfig]] = {True: {}, False: {}}
    for model, source in zip(models, sources, strict=True):
        config = run_config(source.given)
        if config is not None:
            runs[source.is_named][model.label] = config
    images = find_images(runs[True], options["images"], options["training"], console, runs[False])
    previews = first_previews(sources)
    usual = None if previews is None else (previews.size, models[previews.number].resolution)
    prompts = Prompts.of(images.real, options, usual, emphasis_of_captions(sources))
    prompts.of_model(models[0])  # reports an error in the file before anything is drawn
    question = Question(
        images.real,
        images.training,
        prompts.texts,
        options["count"],
        prompts.of_model,
        networks,
        options["bootstrap"],
        options["seed"],
        images.trained_on,
        prompts.emphasis,
    )
    return question, images.notes


def _write(answer: Answer, out: Path) -> None:
    """Write the JSON file and the page of an evaluation."""
    from impasto import files
    from impasto.report.evaluation_page import write_evaluation

    files.write_json(out / DATA, answer.values)
    write_evaluation(out / PAGE, answer.values, answer.real, answer.training)
