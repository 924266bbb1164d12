"""`impasto download`: download a model from the Hugging Face Hub, into its cache or a folder."""

from __future__ import annotations

from pathlib import Path

import click

from impasto.cli.local_paths import WRITTEN


@click.command()
@click.argument("hub_id", metavar="OWNER/NAME")
@click.option("--revision", help="A branch, tag or commit; default: the main branch.")
@click.option(
    "--variant", help="The set of weights to download if there are several, such as fp16."
)
@click.option("--file", "name", help="Download only this file of the repository; needs --out.")
@click.option(
    "--out", metavar="DIR", type=WRITTEN,
    help="Save the model in this folder, under its name; default: the cache of the Hub, where "
    "model.path = \"owner/name\" finds it.",
)  # fmt: skip
def download(
    hub_id: str, revision: str | None, variant: str | None, name: str | None, out: Path | None
) -> None:
    """Download the model OWNER/NAME from the Hugging Face Hub.

    From a Diffusers model, only the parts that Impasto uses are downloaded, as safetensors if
    available. From other repositories, the VAE or the only checkpoint is downloaded. An interrupted
    download continues where it stopped.

    \b
    impasto download owner/name
    impasto download owner/name --file model.safetensors --out models
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.checkpoints.hub import looks_like_hub_id
    from impasto.errors import ConfigError

    whole = f"{hub_id}@{revision}" if revision else hub_id
    if not looks_like_hub_id(whole):
        raise ConfigError(f"{whole!r} is not an id of the Hugging Face Hub. Give owner/name.")
    if name is not None and out is None:
        raise ConfigError("--file needs --out, the folder to save the file in.")
    if name is not None and variant is not None:
        raise ConfigError("--variant has no effect with --file. Remove one of them.")
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
