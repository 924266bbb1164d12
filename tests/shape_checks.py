"""Checks of tensor shapes at run time, in the modules whose functions declare shapes.

A check binds a call's arguments again, which takes 50 microseconds: functions called for each of a
thousand weights are left to mypy.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from jaxtyping import install_import_hook


def declaring() -> list[str]:
    """Return the modules of Impasto that import shape annotations from jaxtyping."""
    package = Path(find_spec("impasto").origin).parent
    return sorted(
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    )


def install() -> None:
    """Check all calls of functions in those modules; call this before any of them is imported."""
    install_import_hook(declaring(), "beartype.beartype")
