"""Reads the docstrings under the fields of a section, which are the help texts of its settings.

pydantic's `use_attribute_docstrings` would read them when a class is created: the source of every
section, for each command that reads settings, which takes 50 ms. They are read here on demand.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from collections.abc import Mapping

from pydantic import BaseModel


def docs_of(section: type[BaseModel], name: str) -> str:
    """Return the docstring of a field on one line, from the nearest base class that has one.

    Args:
        section: The section's class.
        name: The name of the field.

    Returns:
        The text; empty if the field has none.
    """
    ours = itertools.takewhile(lambda kind: kind is not BaseModel, section.__mro__)
    for kind in ours:
        found = _docs_of_module(kind.__module__).get(kind.__qualname__, {}).get(name)
        if found is not None:
            return " ".join(found.split())
    return ""


@functools.cache
def _docs_of_module(name: str) -> Mapping[str, Mapping[str, str]]:
    """Return class -> field -> docstring, for the top-level classes of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[name]))
    return {
        item.name: dict(_docs_in(item.body)) for item in tree.body if isinstance(item, ast.ClassDef)
    }


def _docs_in(body: list[ast.stmt]) -> list[tuple[str, str]]:
    """Return the fields that have a docstring directly under them, each with that docstring."""
    return [
        (field.target.id, text.value.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    ]
