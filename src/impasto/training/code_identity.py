"""Code as a text: what a run that is given parts in code has to have again when it is resumed."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from torch import Tensor

from impasto.models.networks.vae import tensors_fingerprint

DEPTH = 4


def described(value: Any) -> str:
    """A part's name, and a hash of its source and of what it holds; the same in each process.

    Of a part of Impasto's own the source does not count: its versions say what changes a run.
    """
    text = json.dumps(_content(value, 0), sort_keys=True)
    return f"{_name_of(value)} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _content(held: Any, depth: int) -> Any:
    """Names, numbers, texts and source; no addresses, which differ from process to process."""
    if held is None or isinstance(held, (bool, int, float, str)):
        return held
    values = _values_of(held)
    if values is not None:
        return values
    if depth > DEPTH or inspect.isbuiltin(held):
        return _name_of(held)
    if inspect.isclass(held):
        return [_name_of(held), _content(_around(held), depth + 1)]
    if isinstance(held, Mapping):
        return {str(key): _content(value, depth + 1) for key, value in held.items()}
    if isinstance(held, (list, tuple)):
        return [_content(value, depth + 1) for value in held]
    if isinstance(held, np.ndarray):  # of objects
        return [list(held.shape), _content(held.ravel().tolist(), depth + 1)]
    if isinstance(held, (set, frozenset)):
        return sorted(json.dumps(_content(value, depth + 1), sort_keys=True) for value in held)
    inside, around = _content(_held_by(held), depth + 1), _content(_around(held), depth + 1)
    return [_name_of(held), _source_of(held), inside, around]


def _values_of(held: Any) -> Any:
    """A tensor, an array of numbers, bytes or a path as text; None of anything else."""
    if isinstance(held, Tensor):
        return tensors_fingerprint({"": held})
    if isinstance(held, (np.ndarray, np.generic)) and held.dtype != object:
        values = hashlib.sha256(held.tobytes()).hexdigest()
        return [str(held.dtype), list(held.shape), values]
    if isinstance(held, (bytes, bytearray)):
        return ["bytes", held.hex()]
    if isinstance(held, PurePath):
        return ["path", held.as_posix()]
    if isinstance(held, complex):
        return ["complex", held.real, held.imag]
    return None


def _held_by(value: Any) -> Any:
    """What a function has around it, or an object in it."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if inspect.isfunction(value):
        return [cell.cell_contents for cell in value.__closure__ or ()]
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(getattr(value, "__dict__", {}))


def _around(value: Any) -> dict[str, Any]:
    """What the user's code refers to, of a function, or of the classes that an object is made of.

    That is constants, functions and classes of its module, defaults of arguments, and what classes
    hold. Other objects of a module, such as a logger, are left out: what is in them differs from
    process to process.
    """
    if inspect.isfunction(value):
        return _around_function(value) if _is_of_user(value) else {}
    if inspect.ismethod(value) or isinstance(value, functools.partial):
        return {}  # their function is looked at
    return _around_class(value if inspect.isclass(value) else type(value))


def _around_class(kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for written in kind.__mro__:
        if not _is_of_user(written):
            continue
        name = written.__qualname__
        found[name] = _source_of_class(written)
        for key, value in vars(written).items():
            if inspect.isfunction(value):
                around = _around_function(value)
                found |= {f"{name}.{key}: {inner}": held for inner, held in around.items()}
            elif not key.startswith("__") and _is_constant(value):
                found[f"{name}.{key}"] = value
    return found


def _around_function(function: FunctionType) -> dict[str, Any]:
    defaults = {"defaults": function.__defaults__, "defaults by name": function.__kwdefaults__}
    named = {
        name: function.__globals__[name]
        for name in _names_in(function.__code__)
        if name in function.__globals__
    }
    constants = {name: value for name, value in named.items() if _is_constant(value)}
    code = {name: value for name, value in named.items() if _is_code_of_user(value)}
    return {key: v for key, v in defaults.items() if v} | constants | code


def _is_code_of_user(value: Any) -> bool:
    return bool(inspect.isfunction(value) or inspect.isclass(value)) and _is_of_user(value)


def _names_in(code: CodeType) -> set[str]:
    """The global names that code loads, also in functions within it."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    inner = (_names_in(constant) for constant in code.co_consts if inspect.iscode(constant))
    return found.union(*inner)


def _is_constant(value: Any) -> bool:
    """Whether a value is made of numbers, texts, bytes, paths, tensors and arrays alone."""
    if isinstance(value, Mapping):
        return all(_is_constant(inner) for inner in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_constant(inner) for inner in value)
    simple = (bool, int, float, complex, str, bytes, PurePath, Tensor, np.ndarray, np.generic)
    return value is None or isinstance(value, simple)


def _is_of_user(value: Any) -> bool:
    """Whether a function or class is the user's own, not Python's or of a package."""
    module = sys.modules.get(value.__module__ or "")
    file = getattr(module, "__file__", None)
    if _is_own(value) or module is None:
        return False
    if file is None:  # typed at a prompt
        return str(value.__module__) == "__main__"
    return not any(Path(file).resolve().is_relative_to(folder) for folder in _of_packages())


@functools.cache
def _of_packages() -> tuple[Path, ...]:
    """The folders of Python's own modules and of what is installed."""
    paths = sysconfig.get_paths()
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(paths[kind]).resolve() for kind in kinds)


def _name_of(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    module = _OWN if _is_own(named) else named.__module__
    return f"{module}.{named.__qualname__}"


_OWN = __name__.partition(".")[0]


def _is_own(named: Any) -> bool:
    """Whether it is Impasto's, whose modules may move and whose sentences may change."""
    return str(named.__module__).partition(".")[0] == _OWN


def _source_of(value: Any) -> str:
    known = inspect.isfunction(value) or inspect.ismethod(value)
    return _source_of_class(value if known else type(value))


def _source_of_class(written: Any) -> str:
    if _is_own(written):
        return ""
    try:
        return inspect.getsource(written)
    except (OSError, TypeError):  # made at a prompt, or built in
        return ""
