"""The help of every verb is formatted: examples keep their lines, and every option is explained."""

import click
import pytest
from click.testing import CliRunner

from impasto.cli.main import impasto


def verbs(command, words=()):
    """Return the arguments of each command and group of the command line."""
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from verbs(command.get_command(context, name), (*words, name))


@pytest.mark.parametrize("words", [*verbs(impasto)], ids=" ".join)
def test_help_is_laid_out(words):
    """A raw docstring would print the `\\b` that keeps lines, and join them."""
    result = CliRunner().invoke(impasto, [*words, "--help"], terminal_width=100)
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines()]
    assert not any(line.startswith("\\b") for line in lines)
    assert not any(line.count("impasto ") > 2 for line in lines), "examples are joined"


def test_every_option_is_explained():
    """Without help a user would have to guess the meaning of an option."""
    unexplained = []
    for words in verbs(impasto):
        command = impasto
        for word in words:
            command = command.get_command(click.Context(command), word)
        unexplained += [
            (*words, *option.opts)
            for option in command.params
            if isinstance(option, click.Option) and not option.hidden and not option.help
        ]
    assert unexplained == []
