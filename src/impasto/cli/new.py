"""`impasto new`: write a settings file from an example or for a goal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto import presence
from impasto.cli.local_paths import WRITTEN

if TYPE_CHECKING:
    from impasto.config.material import Material


@click.command()
@click.argument("example", required=False)
@click.argument("file", type=WRITTEN, required=False)
@click.option(
    "--goal",
    type=click.Choice(["style", "subject", "large", "scratch"]),
    help="Write settings for this goal, with the images in --data and the model in --model.",
)
@click.option("--data", type=click.Path(path_type=Path), help="With --goal: the folder of images.")
@click.option("--model", help="The base model: a file, a Diffusers folder, a Hub id, or a run.")
@click.option(
    "--out",
    type=WRITTEN,
    help="The file to write; default: DATA-GOAL.toml in the current folder.",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    help="The run directory; default: a folder in runs, named like the settings file.",
)
@click.option(
    "--vram",
    type=click.IntRange(1),
    metavar="GB",
    help="VRAM in GiB that the run may use; default: the free VRAM.",
)
@click.option(
    "--resolution",
    type=click.IntRange(64, 8192),
    help="Training resolution in pixels; default: that of the model.",
)
@click.option(
    "--clip-skip",
    type=click.IntRange(1, 12),
    help="Clip skip; use 2 for anime models of SD 1. Default: the last layer.",
)
def new(example: str | None, file: Path | None, goal: str | None, **options: Any) -> None:
    """Write a settings file: EXAMPLE as FILE, or one for a --goal; without both, list the examples.

    \b
    impasto new
    impasto new style-12gb my-style.toml
    impasto new --goal style --data images --model v1-5-pruned.safetensors
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.cli.console import Console
    from impasto.invocation import command

    console = Console()
    if goal is not None:
        if example is not None:
            raise click.UsageError(f"Give either the example {example} or --goal, not both.")
        target = _write_for_goal(goal, options, console)
        console.note(
            f"Wrote {target}. See what it would do:\n  {command('train', target, '--plan')}"
        )
        return
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise click.UsageError(f"{given[0]} works only with --goal.")
    examples = _examples()
    if example is None:
        console.table({name: _first_comment(path) for name, path in examples.items()})
        return
    target = _write(examples, example, file)
    is_run = "output_dir" in target.read_text(encoding="utf-8")
    arguments = ("train", target, "--plan") if is_run else ("dataset", "plan", target)
    console.note(
        f"Wrote {target}. Set its paths, then see what it would do:\n  {command(*arguments)}"
    )


def _write_for_goal(name: str, options: dict[str, Any], console: Any) -> Path:
    """Write the settings for a goal, without replacing a file, and return the file's path.

    Raises:
        ImpastoError: The images or the model cannot be used, or the file exists.
    """
    from impasto.checkpoints.hub import require_source

    data, model, out = options["data"], options["model"], options["out"]
    for option, value in (("--data", data), ("--model", model)):
        if value is None:
            raise click.UsageError(f"--goal needs {option}.")
    target = out or Path(f"{data.absolute().name or 'run'}-{name}.toml")
    _require_free(target)
    require_source(model)
    named = Path("runs") / target.name.removesuffix(".toml")
    options["output_dir"] = options["output_dir"] or named
    from impasto.config.goal_settings import settings_for, settings_text
    from impasto.config.goals import GOALS
    from impasto.config.load import build_run_config

    material = _look_at(options, console)
    build_run_config(settings_for(GOALS[name], material)[0], source=f"--goal {name}")
    from impasto import files

    files.write_text(target, settings_text(GOALS[name], material))
    return target


def _look_at(options: dict[str, Any], console: Any) -> Material:
    """Inspect the images, the model and the GPU, on which the settings depend.

    Raises:
        ConfigError: A name cannot be written into a file.
        DatasetError: The folder has no usable images.
        ModelError: The model cannot be trained.
    """
    from impasto.config.material import Material
    from impasto.data.folders.masks import masks_of
    from impasto.data.scanning.scan import scan_folder
    from impasto.errors import ConfigError
    from impasto.parsing import is_text, printable

    for value in (str(options[key]) for key in ("data", "model", "output_dir")):
        if not is_text(value):
            raise ConfigError(
                f"{printable(value)} is not UTF-8, so it cannot be written to a file. Rename it."
            )
    scan = scan_folder(options["data"], progress=console)
    from impasto.diffusion.prediction import EPSILON
    from impasto.models.reading.native_size import native_size
    from impasto.models.reading.opening import OpenOptions, open_model
    from impasto.remote_paths import shown

    masks, masked = masks_of(options["data"], scan.records)
    contents = open_model(options["model"], OpenOptions(), console)
    family = contents.identity.family
    native = min(native_size(contents))
    free_gib, half = _gpu_here()
    return Material(
        model=options["model"],
        family=f"{family.name}, predicts {contents.identity.prediction.name}",
        resolution=options["resolution"] or native,
        native=native,
        generation=family.generation,
        predicts_noise=contents.identity.prediction is EPSILON,
        takes_clip_skip=family.takes_any_layer,
        image_dir=shown(options["data"]),
        images=scan.tally.usable,
        captions=[record.fixed_caption for record in scan.records],
        output_dir=shown(options["output_dir"]),
        vram=options["vram"],
        clip_skip=options["clip_skip"],
        mask_dir=str(masks or ""),
        masked=masked,
        free_gib=free_gib,
        half=half,
    )


def _gpu_here() -> tuple[float | None, str | None]:
    """Return the free GiB of this machine's GPU and its 16-bit precision; None, None on a CPU."""
    from impasto.training.compute.precision import native_precision
    from impasto.training.devices import default_device
    from impasto.training.planning.resolve import free_memory

    device = default_device()
    if device.type == "cpu":
        return None, None
    return free_memory(device) / 2**30, native_precision(device).kind


def _require_free(target: Path) -> None:
    from impasto.errors import ConfigError

    if presence.exists(target):
        raise ConfigError(f"{target} already exists and was not changed. Name another file.")


def _examples() -> dict[str, Path]:
    """Return name -> path of the example settings, in the checkout or else in the wheel."""
    package = Path(__file__).resolve().parents[1]
    folders = (package.parents[1] / "configs", package / "examples")
    folder = next((f for f in folders if presence.is_file(f / "style-12gb.toml")), folders[1])
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _first_comment(path: Path) -> str:
    """Return the first comment of an example, a sentence about its purpose."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip("# ").strip()


def _write(examples: dict[str, Path], name: str, file: Path | None) -> Path:
    """Copy an example to `file`, name the copy in its comments, and return the copy's path.

    Raises:
        ConfigError: There is no such example (the message suggests the nearest), or the file
            exists.
    """
    import difflib

    from impasto import files
    from impasto.errors import ConfigError

    name = name.removesuffix(".toml")
    if name not in examples:
        near = difflib.get_close_matches(name, examples, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"There is no example {name!r}.{hint} There are: {', '.join(examples) or 'none'}."
        )
    target = file or Path(f"{name}.toml")
    _require_free(target)
    text = examples[name].read_text(encoding="utf-8")
    files.write_text(target, text.replace(f"configs/{name}.toml", target.as_posix()))
    return target
