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
    """A part's name and two hashes, the same in each process.

    The first is of its source and of what it holds, which is all that states of earlier versions
    have; the second also of what the user's code refers to. Of a part of Impasto's own the source
    does not count: its versions say what changes a run.
    """
    texts = (json.dumps(_content(value, 0, whole=whole), sort_keys=True) for whole in (False, True))
    hashes = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts)
    return " ".join([_name_of(value), *hashes])


def names_shown(was: str, now: str) -> str:
    """What differs between two descriptions that are not of the same code, for people."""
    one, other = (description.partition(" ")[0] for description in (was, now))
    return f"was {one}, is {'another version of it' if one == other else other}"


def is_same_code(was: str, now: str) -> bool:
    """Whether two parts are the same by all that both of their descriptions say."""
    words = was.split(), now.split()
    return all(one == other for one, other in zip(*words, strict=False))


def _content(held: Any, depth: int, *, whole: bool) -> Any:
    """Names, numbers, texts and source; no addresses, which differ from process to process.

    Args:
        held: A part, or something in it.
        depth: How far within.
        whole: Whether what code refers to is in it.
    """
    content = functools.partial(_content, depth=depth + 1, whole=whole)
    if held is None or isinstance(held, (bool, int, float, str)):
        return held
    values = _values_of(held)
    if values is not None:
        return values
    if depth > DEPTH or inspect.isbuiltin(held) or (inspect.isclass(held) and not whole):
        return _name_of(held)
    if inspect.isclass(held):
        return [_name_of(held), content(_around(held))]
    if isinstance(held, Mapping):
        return {str(key): content(value) for key, value in held.items()}
    if isinstance(held, (list, tuple)):
        return [content(value) for value in held]
    if isinstance(held, np.ndarray):  # of objects
        return [list(held.shape), content(held.ravel().tolist())]
    if isinstance(held, (set, frozenset)):
        return sorted(json.dumps(content(value), sort_keys=True) for value in held)
    around = [content(_around(held))] if whole else []
    return [_name_of(held), _source_of(held), content(_held_by(held)), *around]


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
    hold. What code may change as it runs is left out: other objects of a module, such as a logger,
    names that it assigns, and lists and the like whose names are not those of constants, in
    capitals.
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
            elif not key.startswith("__") and _is_constant(key, value):
                found[f"{name}.{key}"] = value
    return found


def _around_function(function: FunctionType) -> dict[str, Any]:
    defaults = {"defaults": function.__defaults__, "defaults by name": function.__kwdefaults__}
    named = {
        name: function.__globals__[name]
        for name in _names_in(function.__code__)
        if name in function.__globals__
    }
    constants = {name: value for name, value in named.items() if _is_constant(name, value)}
    code = {name: value for name, value in named.items() if _is_code_of_user(value)}
    return {key: v for key, v in defaults.items() if v} | constants | code


def _is_code_of_user(value: Any) -> bool:
    return bool(inspect.isfunction(value) or inspect.isclass(value)) and _is_of_user(value)


def _names_in(code: CodeType) -> set[str]:
    """The global names that code reads and never assigns, also in functions within it."""
    return _globals_in(code, "LOAD_GLOBAL") - _globals_in(code, "STORE_GLOBAL")


def _globals_in(code: CodeType, operation: str) -> set[str]:
    found = {i.argval for i in dis.get_instructions(code) if i.opname == operation}
    inner = (_globals_in(part, operation) for part in code.co_consts if inspect.iscode(part))
    return found.union(*inner)


def _is_constant(name: str, value: Any) -> bool:
    """Whether a value is a number or the like, or made of some and called as a constant is."""
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


def _is_of_user(value: Any) -> bool:
    """Whether a function or class is the user's own, not Python's or of a package."""
    module = sys.modules.get(value.__module__ or "")
    file = getattr(module, "__file__", None)
    if _is_own(value) or module is None:
        return False
    if file is None:  # typed at a prompt
        return str(value.__module__) == "__main__"
    level = value.__module__.count(".") + (Path(file).stem == "__init__")
    folders = Path(file).resolve().parents
    return not _is_of_packages(folders[min(level, len(folders) - 1)])


@functools.cache
def _is_of_packages(folder: Path) -> bool:
    """Whether a folder that modules are imported from is Python's own or has what is installed."""
    paths = sysconfig.get_paths()
    own = (Path(paths[kind]).resolve() for kind in ("stdlib", "platstdlib"))
    is_named_so = not {"site-packages", "dist-packages"}.isdisjoint(folder.parts)
    is_of_python = any(folder.is_relative_to(path) for path in own)
    return is_named_so or is_of_python or any(folder.glob("*.dist-info"))


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
