"""The docstrings under the fields of a section, which are the help text of its settings.

pydantic's `use_attribute_docstrings` reads them when a class is made: the source of every section,
for each command that reads settings, which is 50 ms. They are read here when somebody asks.
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
    """The docstring under a field of a section, on one line; that of the class nearest to it.

    Args:
        section: The class.
        name: The field.

    Returns:
        The text; empty where there is none.
    """
    ours = itertools.takewhile(lambda kind: kind is not BaseModel, section.__mro__)
    for kind in ours:
        found = _docs_of_module(kind.__module__).get(kind.__qualname__, {}).get(name)
        if found is not None:
            return " ".join(found.split())
    return ""


@functools.cache
def _docs_of_module(name: str) -> Mapping[str, Mapping[str, str]]:
    """Class -> field -> docstring, of the classes at the top of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[name]))
    return {
        item.name: dict(_docs_in(item.body)) for item in tree.body if isinstance(item, ast.ClassDef)
    }


def _docs_in(body: list[ast.stmt]) -> list[tuple[str, str]]:
    """The fields that have a text directly under them, each with that text."""
    return [
        (field.target.id, text.value.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    ]
