"""Code as a text: what a run that is given parts in code has to have again when it is resumed."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
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
    if depth > DEPTH or inspect.isclass(held) or inspect.isbuiltin(held):
        return _name_of(held)
    if isinstance(held, Mapping):
        return {str(key): _content(value, depth + 1) for key, value in held.items()}
    if isinstance(held, (list, tuple)):
        return [_content(value, depth + 1) for value in held]
    if isinstance(held, np.ndarray):  # of objects
        return [list(held.shape), _content(held.ravel().tolist(), depth + 1)]
    if isinstance(held, (set, frozenset)):
        return sorted(json.dumps(_content(value, depth + 1), sort_keys=True) for value in held)
    return [_name_of(held), _source_of(held), _content(_held_by(held), depth + 1)]


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
    written = value if known else type(value)
    if _is_own(written):
        return ""
    try:
        return inspect.getsource(written)
    except (OSError, TypeError):  # made at a prompt, or built in
        return ""
