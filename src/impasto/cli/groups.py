"""Command groups whose help shows the first sentence of each command in full."""

from __future__ import annotations

import difflib
import inspect

import click


class FullHelpGroup(click.Group):
    """A command group that wraps long help lines and suggests the nearest name for a typo."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command by its name, or suggest the nearest one.

        Raises:
            click.UsageError: No command has that name; the message suggests the nearest.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near:
                raise
            message = f"{error.message} Did you mean {near[0]}?"
            raise click.UsageError(message, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, first_paragraph(command)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def first_paragraph(command: click.Command) -> str:
    """Return the first paragraph of a command's help as one line, without the final full stop."""
    text = inspect.cleandoc(command.short_help or command.help or "")
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")
