"""Describes everything that a part given in code computes with: names, numbers, texts and source.

The user's functions and classes are followed completely, each once; those of packages are
identified by name. Data is followed a few levels deep. The description has no memory addresses,
which differ from process to process, and does not depend on the order of sets.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType
from typing import Any

import numpy as np
from torch import Tensor, nn

from impasto.models.networks.vae import tensors_fingerprint
from impasto.training.fingerprints.code_references import cells_of, references
from impasto.training.fingerprints.code_values import NAMED, SIMPLE, values_of
from impasto.training.fingerprints.users_code import (
    is_generated,
    is_of_user,
    name_of,
    source_of,
    source_of_class,
)

DEPTH = 4
"""Number of levels of data that are followed; a container is one level, an object two."""

_WRAPPER = type(functools.lru_cache(maxsize=1)(len))


def contents_of(part: Any, *, learns: bool = False) -> list[Any]:
    """Return a part's description, and those of each user function, class and network it reaches.

    Values that code may change as it runs are left out: names that it assigns, objects of packages
    such as a logger, and lists and other containers whose names are not constants (in capitals).

    Args:
        part: The part given in code.
        learns: Whether the parameters of its networks are trained, as with `Overrides.trainable`;
            then only their shapes count, since their values are in states and are initialized at
            random in each process.
    """
    reader = _Reader(learns=learns)
    found = [reader.content(part, 0)]
    found.extend(reader.inside(code) for code in reader.followed)  # grows during the loop
    return found


class _Reader:
    """Converts values into JSON, and lists the code that has to be followed.

    Attributes:
        followed: The user's functions and classes, and networks, in the order of discovery.
    """

    def __init__(self, *, learns: bool) -> None:
        self.followed: list[Any] = []
        self._learns = learns
        self._places: dict[int, int] = {}

    def content(self, held: Any, depth: int) -> Any:
        """Return the description of a value that is `depth` levels deep in data."""
        if held is None or isinstance(held, (bool, int, float, str)):
            return held
        if isinstance(held, NAMED):
            return [name_of(held), repr(held)]
        if self._is_learned(held):
            return ["learned", list(held.shape)]
        values = values_of(held)
        if values is not None:
            return values
        if _is_followed(held):
            return self._follow(held)
        within = _within(held)
        if within is not None:
            return [name_of(type(held)), *(self.content(part, depth + 1) for part in within)]
        if inspect.ismodule(held):
            return ["module", held.__name__]
        return self._data(held, depth)

    def inside(self, code: Any) -> list[Any]:
        """Return the description of the contents of a function, class or network of `followed`."""
        if inspect.isfunction(code):
            return self._function(code)
        return self._class(code) if inspect.isclass(code) else self._network(code)

    def _follow(self, code: Any) -> list[Any]:
        place = self._places.setdefault(id(code), len(self._places))
        if place == len(self.followed):
            self.followed.append(code)
        return ["code", place, name_of(code)]

    def _data(self, held: Any, depth: int) -> Any:
        if depth > DEPTH or inspect.isbuiltin(held) or inspect.isclass(held):
            return name_of(held)
        items = self._items(held, lambda item: self.content(item, depth + 1))
        if items is not None:
            return items
        if inspect.isfunction(held):  # a package's function
            cells = self.content(cells_of(held), depth + 1)
            return [name_of(held), source_of(held), cells]
        kind = self._follow(type(held)) if is_of_user(type(held)) else source_of(held)
        return [name_of(held), kind, self.content(_attributes(held), depth + 1)]

    def _items(self, held: Any, content: Callable[[Any], Any]) -> Any:
        """Return the described items of a container; None if the value is not a container."""
        if isinstance(held, Mapping):
            keys = {_key(key): key for key in held}
            return {key: content(held[keys[key]]) for key in sorted(keys)}
        if isinstance(held, (list, tuple)):
            return [content(item) for item in held]
        if isinstance(held, np.ndarray):  # an array of objects
            return [list(held.shape), *(content(item) for item in held.ravel().tolist())]
        if isinstance(held, (set, frozenset)):
            return ["set", *(content(item) for item in sorted(held, key=_key))]
        return None

    def _function(self, function: FunctionType) -> list[Any]:
        cells = {} if is_generated(function) else cells_of(function)
        named = references(function, counts)
        return [
            name_of(function),
            source_of(function),
            self.content([function.__defaults__, function.__kwdefaults__], 0),
            {name: self.content(cells[name], 0) for name in sorted(cells)},
            {path: self._constant(_last(path), named[path], 0) for path in sorted(named)},
        ]

    def _class(self, kind: type) -> list[Any]:
        bases = [base for base in kind.__mro__[1:] if is_of_user(base)]
        found = [name_of(kind), source_of_class(kind), [self._follow(base) for base in bases]]
        for key, value in sorted(vars(kind).items()):
            if inspect.isfunction(value) and is_generated(value):
                if key == "__init__":  # it holds the defaults of a dataclass
                    found.append([key, self.content([value.__defaults__, value.__kwdefaults__], 0)])
            elif _is_code(value) if key.startswith("__") else counts(key, value):
                found.append([key, self._constant(key, value, 0)])
        return found

    def _constant(self, name: str, value: Any, depth: int) -> Any:
        """Return the description of a constant; a logger in a table is described by its type."""
        is_table = isinstance(value, (Mapping, list, tuple, set, frozenset))
        if is_table and depth <= DEPTH:
            return self._items(value, lambda item: self._constant(name, item, depth + 1))
        return self.content(value, depth) if counts(name, value) else name_of(value)

    def _network(self, network: nn.Module) -> list[Any]:
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        learned = [name for name, tensor in tensors.items() if self._is_learned(tensor)]
        shapes = [[name, list(tensors.pop(name).shape)] for name in learned]
        layers = [[path, *self._layer(layer)] for path, layer in network.named_modules()]
        return [layers, shapes, tensors_fingerprint(tensors)]

    def _is_learned(self, held: Any) -> bool:
        return self._learns and isinstance(held, nn.Parameter) and held.requires_grad

    def _layer(self, layer: nn.Module) -> list[Any]:
        hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]
        hooked = self.content(hooks, 0)
        if not is_of_user(type(layer)):
            told = re.sub(r"0x[0-9a-fA-F]+", "", layer.extra_repr())
            return [name_of(type(layer)), told, hooked]
        attributes = {k: value for k, value in vars(layer).items() if k not in _OF_NETWORKS}
        return [self._follow(type(layer)), self.content(attributes, 0), hooked]


_OF_NETWORKS = frozenset(vars(nn.Module()))
"""Attributes that PyTorch stores in every network: tensors, layers, hooks, the training flag."""


def counts(name: str, value: Any) -> bool:
    """Return whether a named value decides what code computes and is not changed as it runs.

    Args:
        name: The name by which the code refers to the value.
        value: The value.
    """
    if value is None or isinstance(value, (*SIMPLE, *NAMED)) or _is_code(value):
        return True
    if name.isupper():
        plain = (Mapping, list, tuple, set, frozenset, Tensor, np.ndarray, nn.Module)
        is_own = is_dataclass(value) or is_of_user(type(value))
        return isinstance(value, (*plain, type)) or inspect.isroutine(value) or is_own
    return isinstance(value, (tuple, frozenset)) and all(counts(name, item) for item in value)


def _is_code(value: Any) -> bool:
    """Return whether a value is the user's function or class, or a wrapper such as a partial."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return is_of_user(value)
    if inspect.ismethod(value):
        return False
    return isinstance(value, functools.partial) or any(map(_is_code, _within(value) or ()))


def _is_followed(held: Any) -> bool:
    if inspect.isfunction(held) or inspect.isclass(held):
        return is_of_user(held)
    return isinstance(held, nn.Module)


def _within(held: Any) -> list[Any] | None:
    """Return the parts of a wrapper such as a partial, a property or a method; None if not one."""
    if isinstance(held, (functools.partial, functools.partialmethod)):
        return [held.func, held.args, held.keywords]
    if isinstance(held, _WRAPPER):
        return [held.__wrapped__]
    if isinstance(held, (staticmethod, classmethod)):
        return [held.__func__]
    if isinstance(held, property):
        return [held.fget, held.fset, held.fdel]
    if isinstance(held, functools.cached_property):
        return [held.func]
    if inspect.ismethod(held):
        return [held.__func__, held.__self__]
    return None


def _attributes(held: Any) -> dict[str, Any]:
    """Return the attributes of an object; an empty dict if it has none that can be read."""
    if is_dataclass(held):
        return {field.name: getattr(held, field.name) for field in fields(held)}
    slots = [
        name
        for kind in type(held).__mro__
        if is_of_user(kind)
        for name in _names(vars(kind).get("__slots__", ()))
    ]
    found = {name: getattr(held, name) for name in slots if hasattr(held, name)}
    return found | dict(getattr(held, "__dict__", {}))


def _names(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _key(key: Any) -> str:
    """Return a text for an item of a set or a key of a mapping, to sort by."""
    return json.dumps(_flat(key, 0), sort_keys=True)


def _flat(held: Any, depth: int) -> Any:
    """Return a value as JSON, with code described by its name and closure variables."""
    if held is None or isinstance(held, (bool, int, float, str)):
        return held
    values = [name_of(held), repr(held)] if isinstance(held, NAMED) else values_of(held)
    if values is not None or depth > DEPTH:
        return name_of(held) if values is None else values
    if isinstance(held, (list, tuple)):
        return [_flat(item, depth + 1) for item in held]
    if isinstance(held, (set, frozenset)):
        return sorted(json.dumps(_flat(item, depth + 1), sort_keys=True) for item in held)
    parts = _within(held)
    if parts is not None:
        return [name_of(type(held)), *(_flat(part, depth + 1) for part in parts)]
    within = cells_of(held) if inspect.isfunction(held) else {}
    if not (inspect.isroutine(held) or inspect.isclass(held)):
        within = _attributes(held)
    return [name_of(held), {name: _flat(within[name], depth + 1) for name in sorted(within)}]
