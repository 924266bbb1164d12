"""The two hashes of code in states of earlier versions, computed as those versions did.

They do not cover code that is more than two functions away, or contents of classes and constants
other than numbers. So they are compared only if a state has no others; `code_contents.py` covers
the rest.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from types import FunctionType
from typing import Any

import numpy as np
from torch import Tensor

from impasto.training.fingerprints.code_references import cells_of, global_names
from impasto.training.fingerprints.code_values import values_of
from impasto.training.fingerprints.users_code import (
    is_of_user,
    name_of,
    source_of,
    source_of_class,
)

DEPTH = 4


def former_hashes(part: Any) -> list[str]:
    """Return two hashes of a part: of its source and data; and with the user's code it refers to.

    Both are `failed` for parts on which earlier versions raised an error: no state has these.
    """
    try:
        texts = [
            json.dumps(_content(part, 0, whole=whole), sort_keys=True) for whole in (False, True)
        ]
    except Exception:
        return ["failed", "failed"]
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def _content(held: Any, depth: int, *, whole: bool) -> Any:
    """Return a JSON description of a value: names, numbers, texts and source.

    It has no memory addresses, which differ from process to process.

    Args:
        held: A part, or a value in it.
        depth: The level of the value within the part.
        whole: Whether to include what code refers to.
    """
    content = functools.partial(_content, depth=depth + 1, whole=whole)
    if held is None or isinstance(held, (bool, int, float, str)):
        return held
    values = values_of(held)
    if values is not None:
        return values
    if inspect.ismodule(held) and depth <= _NEVER_THE_SAME.get(held.__name__, -1):
        return ["module", held.__name__]
    if depth > DEPTH or inspect.isbuiltin(held) or (inspect.isclass(held) and not whole):
        return name_of(held)
    if inspect.isclass(held):
        return [name_of(held), content(_around(held))]
    if isinstance(held, (Mapping, list, tuple, np.ndarray, set, frozenset)):
        return _items(held, content)
    around = [content(_around(held))] if whole else []
    return [name_of(held), source_of(held), content(_held_by(held)), *around]


def _items(held: Any, content: Callable[[Any], Any]) -> Any:
    if isinstance(held, Mapping):
        return {str(key): content(value) for key, value in held.items()}
    if isinstance(held, np.ndarray):  # an array of objects
        return [list(held.shape), content(held.ravel().tolist())]
    if isinstance(held, (list, tuple)):
        return [content(value) for value in held]
    return sorted(json.dumps(content(value), sort_keys=True) for value in held)


def _held_by(value: Any) -> Any:
    """Return the closure variables of a function, or the attributes of an object."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if inspect.isfunction(value):
        return list(cells_of(value).values())
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(getattr(value, "__dict__", {}))


def _around(value: Any) -> dict[str, Any]:
    """Return what a user's function, or the classes of an object, refer to, by name.

    That is constants, functions and classes of its module, defaults of arguments, and attributes of
    classes. Values that code may change as it runs are left out: other objects of a module, such as
    a logger, names that it assigns, and containers whose names are not constants (in capitals).
    """
    if inspect.isfunction(value):
        return _around_function(value) if is_of_user(value) else {}
    if inspect.ismethod(value) or isinstance(value, functools.partial):
        return {}  # their function is described instead
    return _around_class(value if inspect.isclass(value) else type(value))


def _around_class(kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for written in kind.__mro__:
        if not is_of_user(written):
            continue
        name = written.__qualname__
        found[name] = source_of_class(written)
        for key, value in vars(written).items():
            if inspect.isfunction(value):
                around = _around_function(value)
                found |= {f"{name}.{key}: {inner}": held for inner, held in around.items()}
            elif not key.startswith("__") and _is_constant(key, value):
                found[f"{name}.{key}"] = value
    return found


def _around_function(function: FunctionType) -> dict[str, Any]:
    defaults = {"defaults": function.__defaults__, "defaults by name": function.__kwdefaults__}
    named = {
        name: function.__globals__[name]
        for name in global_names(function.__code__, "LOAD_GLOBAL")
        if name in function.__globals__
    }
    constants = {name: value for name, value in named.items() if _is_constant(name, value)}
    code = {name: value for name, value in named.items() if _is_code_of_user(value)}
    return {key: v for key, v in defaults.items() if v} | constants | code


def _is_code_of_user(value: Any) -> bool:
    return bool(inspect.isfunction(value) or inspect.isclass(value)) and is_of_user(value)


def _is_constant(name: str, value: Any) -> bool:
    """Return whether a value is a simple constant, or a container of them named in capitals."""
    if isinstance(value, (tuple, frozenset)):
        return all(_is_constant(name, inner) for inner in value)
    simple = (bool, int, float, complex, str, bytes, PurePath, np.generic)
    if value is None or isinstance(value, simple):
        return True
    if not name.isupper():
        return False
    if isinstance(value, Mapping):
        return all(_is_constant(name, inner) for inner in value.values())
    if isinstance(value, (list, set)):
        return all(_is_constant(name, inner) for inner in value)
    return isinstance(value, (Tensor, np.ndarray))


_NEVER_THE_SAME = {"numpy": 2, "torch": 3}
"""Module -> the deepest level at which its content differed in each process, or raised an error.

No state can match such a hash, and searching these modules takes seconds."""
