"""Finds whether code is the user's, its qualified name, and its source."""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
from pathlib import Path
from types import FunctionType
from typing import Any


def is_of_user(value: Any) -> bool:
    """Return whether a function or class is the user's, not Python's, a package's or Impasto's."""
    return not _is_own(value) and is_module_of_user(_module_of(value))


def is_module_of_user(name: str) -> bool:
    """Return whether a module is the user's, not Python's, a package's or Impasto's."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or name.partition(".")[0] == _OWN:
        return False
    if file is None:  # typed at a prompt
        return name == "__main__"
    level = name.count(".") + (Path(file).stem == "__init__")
    folders = Path(file).resolve().parents
    return not _is_of_packages(folders[min(level, len(folders) - 1)])


def is_generated(function: FunctionType) -> bool:
    """Return whether `dataclass` or `attrs` generated a method.

    Generated code differs between versions of Python, so it is not compared.
    """
    file = function.__code__.co_filename
    is_theirs = file == "<string>" or file.startswith("<attrs generated")
    return is_theirs and function.__name__ in _GENERATED


_GENERATED = {
    "__init__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__",
    "__setattr__", "__delattr__", "__replace__",
}  # fmt: skip


@functools.cache
def _is_of_packages(folder: Path) -> bool:
    """Return whether an import folder belongs to Python itself or has installed packages."""
    paths = sysconfig.get_paths()
    own = (Path(paths[kind]).resolve() for kind in ("stdlib", "platstdlib"))
    is_named_so = not {"site-packages", "dist-packages"}.isdisjoint(folder.parts)
    is_of_python = any(folder.is_relative_to(path) for path in own)
    return is_named_so or is_of_python or any(folder.glob("*.dist-info"))


def name_of(value: Any) -> str:
    """Return the qualified name of a function or class with its module; else that of the type.

    The module of Impasto's own code is shortened to `impasto`.
    """
    named = value if hasattr(value, "__qualname__") else type(value)
    module = _OWN if _is_own(named) else getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}"


_OWN = __name__.partition(".")[0]


def _is_own(named: Any) -> bool:
    """Return whether code is Impasto's, whose modules may move and whose docstrings may change."""
    return _module_of(named).partition(".")[0] == _OWN


def _module_of(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "")


def source_of(value: Any) -> str:
    """Return the source of a function or method, or of the class of any other value."""
    known = inspect.isfunction(value) or inspect.ismethod(value)
    return source_of_class(value if known else type(value))


def source_of_class(written: Any) -> str:
    """Return the source of a class or function; "" for Impasto's own and if it is not found."""
    if _is_own(written):
        return ""
    try:
        return inspect.getsource(written)
    except (OSError, TypeError):  # defined at a prompt, or built in
        return ""
