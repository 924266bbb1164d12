"""`impasto import-command`: translate an sd-scripts command line to commented settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from impasto import presence
from impasto.cli.local_paths import WRITTEN


@click.command("import-command")
@click.argument("command")
@click.option("--out", type=WRITTEN, help="Write the settings to this file.")
def import_command(command: str, out: Path | None) -> None:
    """Print the settings that match COMMAND, an sd-scripts command line in quotes.

    COMMAND runs fine_tune.py, train_db.py or sdxl_train.py.

    Example: impasto import-command --out run.toml "accelerate launch fine_tune.py --output_dir out
    --pretrained_model_name_or_path sd15.safetensors --train_data_dir images --resolution 512"
    """
    from impasto import files, invocation
    from impasto.errors import RunError
    from impasto.sdscripts.importing import command_to_toml

    if out is not None and presence.exists(out):
        raise RunError(f"{out} already exists and was not changed. Choose another --out.")
    text = command_to_toml(_tokens(command))
    if out is None:
        click.echo(text, nl=False)
    else:
        files.rewrite_text(out, text)
        click.echo(f"Wrote {out}. Check it with: {invocation.command('train', out, '--plan')}")


_OF_WINDOWS = re.compile(r"\\[\w.\\]|[A-Za-z]:\\")


def _tokens(command: str) -> list[str]:
    """Split a command into arguments as a shell does, with continued lines and quotes.

    A backslash before a letter or after a drive means that the command has Windows paths; then
    backslashes are not escapes, as they otherwise are before spaces, quotes and brackets.

    Raises:
        ConfigError: A quote is not closed.
    """
    from impasto.errors import ConfigError

    line = re.sub(r"[\\^`][ \t]*\r?\n", " ", command)  # sh, cmd and PowerShell
    words = shlex.shlex(line, posix=True)
    words.whitespace_split, words.commenters = True, ""
    if _OF_WINDOWS.search(line):
        words.escape = ""
    try:
        return list(words)
    except ValueError as error:
        raise ConfigError(f"The command cannot be read: {error}. Put it in quotes.") from error
