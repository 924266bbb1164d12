"""Groups of verbs whose help shows each verb's first sentence whole."""

from __future__ import annotations

import inspect

import click


class FullHelpGroup(click.Group):
    """A group that folds long lines of help instead of cutting them off."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of verbs."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, first_paragraph(command)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def first_paragraph(command: click.Command) -> str:
    """What a verb does, in one line without its end mark."""
    text = inspect.cleandoc(command.short_help or command.help or "")
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")
