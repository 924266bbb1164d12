"""Builds library optimizers over the trained networks, with their arguments checked."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from impasto.errors import ConfigError, MissingDependencyError
from impasto.invocation import install_packages
from impasto.models.trainable import TrainedModule
from impasto.optimizer_table import (
    COLLECTION,
    OPTIMIZERS,
    TORCH,
    OptimizerRow,
    not_by_chunks,
    one_rate_only,
    plain_name,
    row_of,
)
from impasto.training.optim.arguments import require_known_arguments
from impasto.training.optim.chunked import AT_ONCE, ChunkedOptimizer, ChunkRules
from impasto.training.optim.corrected import corrected, skip_steps_without_rate
from impasto.training.optim.trial import (
    Build,
    obeys_rates,
    require_steps,
    steps_weights_alone,
)


class OptimizerSettings(Protocol):
    """The optimizer settings; `config.optimizer.OptimizerConfig` implements this protocol."""

    @property
    def kind(self) -> str:
        """A name of the table, torch.optim or the pytorch-optimizer package; or `module.Class`."""

    @property
    def lr(self) -> float:
        """Learning rate of parameter groups that set none."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Further arguments, by the names that the optimizer's class uses."""

    def given(self) -> dict[str, Any]:
        """Return all arguments that are set, without the learning rate."""


BuildOptimizer = Callable[
    [Sequence[TrainedModule], OptimizerSettings, ChunkRules], torch.optim.Optimizer
]


def build_optimizer(
    modules: Sequence[TrainedModule], config: OptimizerSettings, rules: ChunkRules = AT_ONCE
) -> torch.optim.Optimizer:
    """Build the optimizer of the settings, with a parameter group per network and learning rate.

    Args:
        modules: The trained networks.
        config: The optimizer settings.
        rules: Whether, and for which features, weights are stepped chunk by chunk.

    Raises:
        ConfigError: The optimizer does not exist, cannot be built, or has unusable arguments.
        MissingDependencyError: The optimizer's package is not installed.
    """
    require_usable_optimizer(modules, config)
    row = find_row(config.kind)
    build = _builder(row, config)
    groups = [
        {"params": list(parameters.values()), "lr": lr}
        for trained in modules
        for lr, parameters in trained.by_rate()
    ]
    try:
        if rules.need is not None:
            return ChunkedOptimizer(groups, build, rules)
        optimizer = build(groups)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.kind {config.kind} cannot be built: {error}.") from error
    if row.finds_lr:
        skip_steps_without_rate(optimizer)
    return optimizer


def require_usable_optimizer(modules: Sequence[TrainedModule], config: OptimizerSettings) -> None:
    """Check that an optimizer accepts its arguments, can step, and uses the groups' learning rates.

    Optimizers of the table are covered by its tests; others are tried out on a few numbers, and so
    are optimizers with further arguments.

    Args:
        modules: The trained networks; their tensors may be without values.
        config: The optimizer settings.

    Raises:
        ConfigError: The optimizer does not exist or cannot be used, or one of its options would
            have no effect.
        MissingDependencyError: The optimizer's package is not installed.
    """
    row, kind = find_row(config.kind), config.kind
    require_known_arguments(kind, _load(row), config.given(), row.without_effect)
    build = _builder(row, config)
    rates = {lr for trained in modules for lr, _ in trained.by_rate()}
    device = next(p.device for trained in modules for p in trained.parameters().values())
    if device.type == "meta":
        device = torch.device("cpu")
    if kind not in OPTIMIZERS or config.arguments:
        require_steps(kind, build, device)
    is_known = kind in OPTIMIZERS
    if len(rates) > 1 and (row.finds_lr or (not is_known and not obeys_rates(build, device))):
        raise ConfigError(f"{one_rate_only(kind, sorted(rates))}.")


def require_weights_alone(config: OptimizerSettings, setting: str | None) -> None:
    """Check that an optimizer steps each weight independently, where it steps chunk by chunk.

    For optimizers of the table this is recorded (`OptimizerRow`); others are tried out.

    Args:
        config: The optimizer settings.
        setting: The setting that needs chunks, for the message; None or empty checks nothing.

    Raises:
        ConfigError: A step of a weight depends on other weights.
    """
    if not setting or config.kind in OPTIMIZERS:
        return
    row = find_row(config.kind)
    if not steps_weights_alone(_builder(row, config), torch.device("cpu")):
        raise ConfigError(f"{not_by_chunks(config.kind, setting)}.")


def _builder(row: OptimizerRow, config: OptimizerSettings) -> Build:
    return functools.partial(_load(row), lr=config.lr, **{**row.defaults, **config.given()})


def find_row(kind: str) -> OptimizerRow:
    """Return the row of an optimizer's name, looked up in the table and the libraries.

    Names without a dot are searched in the table, in `torch.optim` and in the pytorch-optimizer
    collection, in this order; names with a dot are imported as `module.Class`.

    Raises:
        ConfigError: No optimizer has that name.
    """
    if kind in OPTIMIZERS:
        return OPTIMIZERS[kind]
    if "." in kind:
        return _row_of_class(kind)
    wanted = plain_name(kind)
    for name, candidate in vars(torch.optim).items():
        if plain_name(name) == wanted and inspect.isclass(candidate) and name != "Optimizer":
            return replace(row_of(name), module=TORCH, name=name)
    collection = _collection_names()
    if wanted in collection:
        return row_of(f"{COLLECTION}.{collection[wanted]}")
    known = sorted({*OPTIMIZERS, *collection})
    near = difflib.get_close_matches(kind.lower(), known, n=3, cutoff=0.4)
    near = _of_bitsandbytes(wanted) or near
    raise ConfigError(
        f"optimizer.kind is {kind!r}, which is not an optimizer. Nearest: "
        f"{', '.join(near) or 'none'}; known: {', '.join(OPTIMIZERS)}, those of torch.optim and "
        f"of the pytorch-optimizer package, and any class with its module, as in torch.optim.Adam."
    )


def _of_bitsandbytes(wanted: str) -> list[str]:
    """Return the paths of bitsandbytes classes with a plain name; empty if it is not installed."""
    try:
        module = importlib.import_module("bitsandbytes.optim")
    except ImportError:
        return []
    return [
        f"{module.__name__}.{name}"
        for name, candidate in vars(module).items()
        if plain_name(name) == wanted and inspect.isclass(candidate)
    ]


def _row_of_class(path: str) -> OptimizerRow:
    """Return the row of `module.Class`, as sd-scripts names other optimizers.

    Raises:
        ConfigError: The module or class does not exist, or the class is not an optimizer.
    """
    module, _, name = path.rpartition(".")
    try:
        candidate = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"optimizer.kind is {path!r}, but there is no such class ({error}). Expected an "
            f"installed module and a class in it, as in bitsandbytes.optim.AdEMAMix8bit."
        ) from error
    if not (inspect.isclass(candidate) and issubclass(candidate, torch.optim.Optimizer)):
        raise ConfigError(
            f"optimizer.kind is {path!r}, which is not an optimizer (a subclass of "
            f"torch.optim.Optimizer)."
        )
    return row_of(path)


@contextlib.contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within the context, switch a schedule-free optimizer's weights to those for evaluation.

    Other optimizers are left alone. Defazio et al. 2024 (arXiv:2405.15682). The optimizer's own
    switch back to training rounds, so the weights are saved and restored bit for bit: evaluating a
    run must not change it.
    """
    switch = getattr(optimizer, "eval", None)
    if switch is None or not hasattr(optimizer, "train"):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    switch()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def _load(row: OptimizerRow) -> Any:
    package = row.module.partition(".")[0]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about unused kernels
    try:
        return corrected(getattr(importlib.import_module(row.module), row.name))
    except ImportError as error:
        raise MissingDependencyError(
            f"The optimizer {row.name} is in the package {package.replace('_', '-')}, which is not "
            f"installed ({error}). Install it with: {install_packages(package.replace('_', '-'))}\n"
            f"Or use optimizer.kind adamw."
        ) from error


def _collection_names() -> dict[str, str]:
    """Return plain name -> class name of the pytorch-optimizer package; empty if not installed."""
    try:
        collection = importlib.import_module(COLLECTION)
    except ImportError:
        return {}
    return {
        plain_name(name): name
        for name, candidate in vars(collection).items()
        if inspect.isclass(candidate)
        and issubclass(candidate, torch.optim.Optimizer)
        and name not in {"BaseOptimizer", "Optimizer"}
    }
