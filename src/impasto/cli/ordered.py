"""A command whose repeatable options are one list in the order in which they were typed."""

from __future__ import annotations

from typing import Any

import click

_ORDER = "impasto.ordered"


class OrderedCommand(click.Command):
    """Remembers in which order options came, which click keeps for each option alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as usual, and note the names of the options in their order."""
        if args and not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            ctx.meta[_ORDER] = [parameter.name for parameter in order]
        return super().parse_args(ctx, args)


def in_order(options: dict[str, Any], *names: str) -> list[tuple[str, Any]]:
    """The values of some repeatable options of the current command, each with its name."""
    waiting = {name: list(options[name]) for name in names}
    order = click.get_current_context().meta.get(_ORDER, [])
    return [(name, waiting[name].pop(0)) for name in order if waiting.get(name)]
