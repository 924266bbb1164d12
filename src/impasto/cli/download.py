"""`impasto download`: a model of the Hugging Face Hub, into its cache or a folder."""

from __future__ import annotations

from pathlib import Path

import click

from impasto.cli.local_paths import WRITTEN


@click.command()
@click.argument("hub_id", metavar="OWNER/NAME")
@click.option("--revision", help="A branch, tag or commit; default: the main branch.")
@click.option("--variant", help="Which set of weights where there are several, such as fp16.")
@click.option("--file", "name", help="A file of the repository, instead of a Diffusers model.")
@click.option(
    "--out", metavar="DIR", type=WRITTEN,
    help="Put it into this folder, under its own name; default: the Hub's own cache, where "
    "model.path = \"owner/name\" finds it.",
)  # fmt: skip
def download(
    hub_id: str, revision: str | None, variant: str | None, name: str | None, out: Path | None
) -> None:
    """Download the model OWNER/NAME from the Hugging Face Hub.

    Of a Diffusers model only the parts that are used are downloaded, as safetensors where there are
    any. Of others the VAE or the one checkpoint is. An interrupted download goes on where it
    stopped.

    \b
    impasto download owner/name
    impasto download owner/name --file model.safetensors --out models
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.checkpoints.hub import looks_like_hub_id
    from impasto.errors import ConfigError

    whole = f"{hub_id}@{revision}" if revision else hub_id
    if not looks_like_hub_id(whole):
        raise ConfigError(f"{whole!r} is no id of the Hugging Face Hub. Give owner/name.")
    if name is not None and out is None:
        raise ConfigError("--file needs --out, the folder that the file is put into.")
    if name is not None and variant is not None:
        raise ConfigError("--variant has no effect on --file, which names a file. Take one out.")
    from impasto.checkpoints.fetching import fetch_copy
    from impasto.checkpoints.hub import download as download_into_cache
    from impasto.checkpoints.weight_files import WeightChoice
    from impasto.cli.console import Console
    from impasto.models.families import folder_layouts

    console = Console()
    if out is None:
        choice = WeightChoice(variant=variant)
        found = download_into_cache(whole, folder_layouts(), console, choice)
    else:
        layouts = folder_layouts()
        found = fetch_copy(whole, out, layouts, console, variant=variant, file=name)
    console.note(f"{whole} is in {found}.")
