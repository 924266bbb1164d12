"""`impasto convert` and `impasto inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from impasto import files, presence
from impasto.cli.local_paths import WRITTEN
from impasto.cli.model_options import model_options, open_options
from impasto.cli.precision_options import asked_dtypes, precision_options
from impasto.errors import ConfigError
from impasto.remote_paths import is_remote

FORMATS_OF_HYPERNETWORKS = ("a1111", "portable", "novelai")
_OF_MODELS = (
    "ema", "unet_dtype", "text_encoder_dtype", "vae_dtype", "vae", "family", "prediction_type",
    "weights", "variant",
)  # fmt: skip
"""Options that have no effect on a hypernetwork, which is one small network."""


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=WRITTEN)
@click.option(
    "--to",
    "form",
    type=click.Choice(["safetensors", "ckpt", "diffusers", "a1111", "portable", "novelai"]),
    help="Format to write; default: chosen by the file extension of OUT, a Diffusers folder if it "
    "has none. For a hypernetwork: a1111, portable (also for ComfyUI), novelai or safetensors.",
)
@precision_options(usual="unchanged")
@click.option("--ema", is_flag=True, help="Use the averaged weights: short for --weights ema.")
@click.option(
    "--title", help="The model's name in its metadata; default: that of IN, or the name of OUT."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@model_options
def convert(source: str, target: Path, form: str | None, **options: Any) -> None:
    """Write the model IN (a file, a Diffusers folder, a Hub id, or a run) as OUT.

    Weights stay bit for bit the same unless a precision is given; averaged weights are left out.

    \b
    impasto convert old.ckpt new.safetensors --dtype fp16
    impasto convert model.safetensors model-folder
    impasto convert style.pt style-for-comfyui.pt --to portable
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.checkpoints.hub import require_source

    require_source(source)
    from impasto.checkpoints.kinds import HYPERNETWORK
    from impasto.cli.console import Console
    from impasto.models.reading.opening import OpenOptions, locate
    from impasto.models.writing.conversion import convert_hypernetwork, convert_model, form_of
    from impasto.models.writing.saving import DTYPES

    console = Console()
    file = locate(source, OpenOptions(), console) if is_remote(source) else Path(source)
    if presence.is_file(file) and _kind_of(file) is HYPERNETWORK:
        _require_of_hypernetworks(options)
        written = convert_hypernetwork(
            file,
            target,
            form,
            DTYPES.get(options["dtype"]),
            title=options["title"],
            overwrite=options["overwrite"],
        )
        console.table(written)
        return
    if form in FORMATS_OF_HYPERNETWORKS:
        raise ConfigError(f"{source} is not a hypernetwork, so --to {form} does not apply.")
    if options.pop("ema"):
        if options["weights"] == "plain":
            raise ConfigError("--ema and --weights plain contradict each other. Remove one.")
        options["weights"] = "ema"
    opened_as = open_options(options)
    written = convert_model(
        source,
        target,
        form_of(target, form),
        asked_dtypes(options),
        opened_as,
        title=options["title"],
        overwrite=options["overwrite"],
        progress=console,
    )
    console.table(written)


def _require_of_hypernetworks(options: dict[str, Any]) -> None:
    """Make sure that no option is given that has no effect on a hypernetwork.

    Raises:
        ConfigError: Such an option is given.
    """
    given = {**options, "weights": options["weights"] != "auto"}
    for name in _OF_MODELS:
        if given[name]:
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect on a hypernetwork. Remove it."
            )


def _kind_of(file: Path) -> Any:
    from impasto.checkpoints.kinds import kind_of
    from impasto.checkpoints.reading import open_tensor_file
    from impasto.models.families import file_layouts

    return kind_of(open_tensor_file(file), file_layouts())


@click.command()
@click.argument("source", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--no-hash", is_flag=True, help="Do not read the whole file to hash it.")
@click.option(
    "--out", metavar="FILE", type=WRITTEN,
    help="Also write the result into this file as JSON.",
)  # fmt: skip
@model_options
def inspect(
    source: str,
    *,
    as_json: bool,
    no_hash: bool,
    out: Path | None,
    **options: Any,
) -> None:
    """Describe the model FILE: a file, a Diffusers folder, a Hub id, or a run.

    No code in the file is executed. A file that is not a base model is identified too: a LoRA, a
    VAE and so on.
    """
    from impasto.checkpoints.hub import require_source

    require_source(source)
    if out is not None and out.suffix.lower() != ".json":
        raise ConfigError(
            f"--out {out} is not the name of a JSON file. Give one that ends in .json."
        )
    if out is not None:
        files.require_absent(out)
    from impasto.cli.console import Console
    from impasto.cli.harmless import json_text
    from impasto.models.writing.inspection import inspect_model
    from impasto.progress import SilentProgress

    console = Console()
    progress = SilentProgress() if as_json else console
    found = inspect_model(source, open_options(options), progress, hashing=not no_hash)
    if out is not None:
        files.write_json(out, found)
    if as_json:
        click.echo(json_text(found))
        return
    for heading, rows in found.items():
        console.heading(heading)
        console.table(rows)
