"""A command that knows the order in which different repeatable options were typed."""

from __future__ import annotations

from typing import Any

import click

_ORDER = "impasto.ordered"


class OrderedCommand(click.Command):
    """Records the order of all options together; click records it for each option separately."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments as usual, and record the names of the options in order."""
        if args and not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            ctx.meta[_ORDER] = [parameter.name for parameter in order]
        return super().parse_args(ctx, args)


def in_order(options: dict[str, Any], *names: str) -> list[tuple[str, Any]]:
    """Return (name, value) of some repeatable options, in the order in which they were typed."""
    waiting = {name: list(options[name]) for name in names}
    order = click.get_current_context().meta.get(_ORDER, [])
    return [(name, waiting[name].pop(0)) for name in order if waiting.get(name)]
