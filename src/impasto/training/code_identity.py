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


def described(part: Any) -> str:
    """A part's name, and a hash of its source and of what it holds; the same in each process."""
    text = json.dumps(_content(part, 0), sort_keys=True)
    return f"{_name_of(part)} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _content(part: Any, depth: int) -> Any:
    """Names, numbers, texts and source; no addresses, which differ from process to process."""
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, Tensor):
        return tensors_fingerprint({"": part})
    if depth > DEPTH or inspect.isclass(part) or inspect.isbuiltin(part):
        return _name_of(part)
    if isinstance(part, Mapping):
        return {str(key): _content(value, depth + 1) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [_content(value, depth + 1) for value in part]
    return [_name_of(part), _source_of(part), _content(_held_by(part), depth + 1)]


def _held_by(part: Any) -> Any:
    """What a function has around it, or an object in it."""
    if isinstance(part, functools.partial):
        return [part.func, part.args, part.keywords]
    if inspect.isfunction(part):
        return [cell.cell_contents for cell in part.__closure__ or ()]
    if inspect.ismethod(part):
        return [part.__func__, part.__self__]
    if is_dataclass(part):
        return {field.name: getattr(part, field.name) for field in fields(part)}
    return dict(getattr(part, "__dict__", {}))


def _name_of(part: Any) -> str:
    named = part if hasattr(part, "__qualname__") else type(part)
    module = _WRITTEN_AS.get(named.__module__, named.__module__)
    return f"{module}.{named.__qualname__}"


_WRITTEN_AS = {
    "impasto.training.optim.ema": "impasto.training.ema",
    "impasto.training.optim.lr_schedules": "impasto.training.schedules",
    "impasto.training.optim.optimizers": "impasto.training.optimizers",
}
"""Modules that have moved -> what states call them, so that those of before can be resumed."""


def _source_of(part: Any) -> str:
    known = inspect.isfunction(part) or inspect.ismethod(part)
    try:
        return inspect.getsource(part if known else type(part))
    except (OSError, TypeError):  # made at a prompt, or built in
        return ""
