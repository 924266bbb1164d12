"""Code as a text: what a run that is given parts in code has to have again when it is resumed."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from impasto.models.networks.vae import tensors_fingerprint

DEPTH = 4


def described(value: Any) -> str:
    """A part's name, and a hash of its source and of what it holds; the same in each process."""
    text = json.dumps(_content(value, 0), sort_keys=True)
    return f"{_name_of(value)} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _content(held: Any, depth: int) -> Any:
    """Names, numbers, texts and source; no addresses, which differ from process to process."""
    if held is None or isinstance(held, (bool, int, float, str)):
        return held
    if isinstance(held, Tensor):
        return tensors_fingerprint({"": held})
    if depth > DEPTH or inspect.isclass(held) or inspect.isbuiltin(held):
        return _name_of(held)
    if isinstance(held, Mapping):
        return {str(key): _content(value, depth + 1) for key, value in held.items()}
    if isinstance(held, (list, tuple)):
        return [_content(value, depth + 1) for value in held]
    return [_name_of(held), _source_of(held), _content(_held_by(held), depth + 1)]


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
    module = _WRITTEN_AS.get(named.__module__, named.__module__)
    return f"{module}.{named.__qualname__}"


_WRITTEN_AS = {
    "impasto.training.optim.ema": "impasto.training.ema",
    "impasto.training.optim.lr_schedules": "impasto.training.schedules",
    "impasto.training.optim.optimizers": "impasto.training.optimizers",
}
"""Modules that have moved -> what states call them, so that those of before can be resumed."""


def _source_of(value: Any) -> str:
    known = inspect.isfunction(value) or inspect.ismethod(value)
    try:
        return inspect.getsource(value if known else type(value))
    except (OSError, TypeError):  # made at a prompt, or built in
        return ""
