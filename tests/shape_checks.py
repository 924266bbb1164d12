"""Checks of tensors' shapes at run time, in the modules whose functions declare some.

A check binds a call's arguments anew, which takes 50 microseconds: what asks about each of a
thousand weights is checked by mypy alone.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from jaxtyping import install_import_hook


def declaring() -> list[str]:
    """The modules of Impasto that take the names of shapes from jaxtyping."""
    package = Path(find_spec("impasto").origin).parent
    return sorted(
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    )


def install() -> None:
    """Check all calls of functions in those modules; before any of them is imported."""
    install_import_hook(declaring(), "beartype.beartype")
