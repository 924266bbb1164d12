"""Builds networks without values from their configurations, by the classes of their libraries."""

from __future__ import annotations

import functools
import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from impasto.errors import ModelError
from impasto.models.family import Component, Library
from impasto.models.reading.configs import require_modest
from impasto.models.reading.contents import ModelContents
from impasto.parsing import parse_json

UNFIT = (
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError,
    AssertionError, MemoryError, ImportError,
)  # fmt: skip
"""Exceptions that diffusers and transformers raise for configurations of which no network can be
built.
"""


def empty_networks(contents: ModelContents) -> dict[str, nn.Module]:
    """Build the networks of a model without values, by component.

    Raises:
        ModelError: A configuration is unusable.
    """
    return {
        component.name: empty_network(
            component, contents.configs[component.name], f"{contents.source} ({component.name})"
        )
        for component in contents.identity.family.components
    }


def empty_network(component: Component, config: Mapping[str, Any], source: str) -> nn.Module:
    """Build a network without values; it has the names and shapes of its tensors.

    Raises:
        ModelError: The configuration is unusable.
    """
    require_modest(config, source)
    with _unfit_told(source), without_values():
        return make_network(component, config)


def needed_tensors(contents: ModelContents) -> dict[str, Mapping[str, Tensor]]:
    """Return the tensors that the networks of a model need, without values, by component.

    Raises:
        ModelError: A configuration is unusable.
    """
    return {
        component.name: tensors_needed_by(
            component, contents.configs[component.name], f"{contents.source} ({component.name})"
        )
        for component in contents.identity.family.components
    }


def tensors_needed_by(
    component: Component, config: Mapping[str, Any], source: str
) -> Mapping[str, Tensor]:
    """Return the tensors that a network needs, without values; callers must not change them.

    The network is built once per configuration, since the models of a mixture have the same one.

    Raises:
        ModelError: The configuration is unusable.
    """
    require_modest(config, source)
    with _unfit_told(source):
        return _tensors_needed(component.library, component.class_name, json.dumps(config))


@functools.lru_cache(maxsize=16)
def _tensors_needed(library: Library, class_name: str, config: str) -> Mapping[str, Tensor]:
    with without_values():
        return dict(_network(library, class_name, parse_json(config)).state_dict())


@contextmanager
def _unfit_told(source: str) -> Iterator[None]:
    try:
        yield
    except UNFIT as error:
        raise ModelError(
            f"{source}: no network can be built from its configuration "
            f"({type(error).__name__}: {error})."
        ) from error


@contextmanager
def without_values() -> Iterator[None]:
    """Build networks without values within the block, and without drawing initial weights.

    PyTorch would draw them for tensors on the meta device, too, through its decompositions: a fifth
    of the time that building Stable Diffusion's networks takes.
    """
    with torch.device("meta"), _WithoutFirstWeights():
        yield


class _WithoutFirstWeights(TorchFunctionMode):
    """Makes the functions of `torch.nn.init` return their tensor unchanged."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def make_network(component: Component, config: Mapping[str, Any]) -> nn.Module:
    """Build a network from its configuration, with PyTorch's default initial weights."""
    return _network(component.library, component.class_name, config)


def _network(library: Library, class_name: str, config: Mapping[str, Any]) -> nn.Module:
    return MAKERS[library](_class_of(library, class_name), config)


@functools.cache
def _class_of(library: Library, class_name: str) -> Any:
    with _without_remarks_of_imports():
        return getattr(importlib.import_module(library), class_name)


_REMARKING = (
    "bitsandbytes", "torchao", "torch.utils._pytree",
    "diffusers.quantizers.torchao.torchao_quantizer",
)  # fmt: skip
"""Loggers of packages that diffusers imports for quantized networks, which Impasto does not use.

They warn of optional libraries that are not installed and that nothing here needs.
"""


@contextmanager
def _without_remarks_of_imports() -> Iterator[None]:
    """Limit the loggers of `_REMARKING` to errors within the block; the imports are unchanged."""
    loggers = [logging.getLogger(name) for name in _REMARKING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.ERROR))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _of_diffusers(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    return kind.from_config(config)  # type: ignore[no-any-return]


def _of_transformers(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    return kind(kind.config_class(**config))  # type: ignore[no-any-return]


MAKERS: dict[Library, Callable[[Any, Mapping[str, Any]], nn.Module]] = {
    "diffusers": _of_diffusers,
    "transformers": _of_transformers,
}
"""Library -> function that builds a network of one of its classes from a configuration."""
