"""`impasto import-command`: an old command line as commented settings."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command("import-command")
@click.argument("command")
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file.")
def import_command(command: str, out: Path | None) -> None:
    """Print the settings that sd-scripts' COMMAND, in quotes, stands for.

    Example: impasto import-command "accelerate launch fine_tune.py --pretrained_model_name_or_path
    sd15.safetensors --train_data_dir pictures --resolution 512 --output_dir out" > run.toml
    """
    from impasto import files, invocation
    from impasto.sdscripts.importing import settings_of_command

    text = settings_of_command(shlex.split(command))
    if out is None:
        click.echo(text, nl=False)
    else:
        files.rewrite_text(out, text)
        click.echo(
            f"Written to {out}. Look at it with: {invocation.command('train', out, '--plan')}"
        )
