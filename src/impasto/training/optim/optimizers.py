"""Makes optimizers over the parts that learn: libraries' ones, with their arguments checked."""

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
    """Which optimizer is wanted; `config.optimizer.OptimizerConfig` is one."""

    @property
    def kind(self) -> str:
        """A name of the table, of `torch.optim`, of the collection, or `module.Class`."""

    @property
    def lr(self) -> float:
        """Learning rate of groups that have none of their own."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Further arguments, by the optimizer's own names."""

    def given(self) -> dict[str, Any]:
        """All arguments that are asked for, without the learning rate."""


BuildOptimizer = Callable[
    [Sequence[TrainedModule], OptimizerSettings, ChunkRules], torch.optim.Optimizer
]


def build_optimizer(
    modules: Sequence[TrainedModule], config: OptimizerSettings, rules: ChunkRules = AT_ONCE
) -> torch.optim.Optimizer:
    """The optimizer of the settings, with parameter groups for each rate of each part.

    Args:
        modules: What learns.
        config: The settings.
        rules: How it goes through the weights.

    Raises:
        ConfigError: As `require_usable_optimizer`; or it does not go with the rules.
        MissingDependencyError: Its package is not there.
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
        raise ConfigError(f"optimizer.kind {config.kind} cannot be made: {error}.") from error
    if row.finds_lr:
        skip_steps_without_rate(optimizer)
    return optimizer


def require_usable_optimizer(modules: Sequence[TrainedModule], config: OptimizerSettings) -> None:
    """Make sure that an optimizer takes what the settings give it, steps, and obeys its rates.

    Those of the table are known to, by its tests; others are tried out, as are further arguments.

    Args:
        modules: What learns; their tensors may be without values.
        config: The settings.

    Raises:
        ConfigError: There is no such optimizer, or an option of it would have no effect.
        MissingDependencyError: Its package is not there.
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
    """Make sure that an optimizer that goes by chunks steps each weight by itself.

    Those of the table and of the collection are known (`OptimizerRow`); others are tried out.

    Args:
        config: The settings.
        setting: What has it go by chunks; None or empty where nothing does.

    Raises:
        ConfigError: It does not.
    """
    if not setting or config.kind in OPTIMIZERS:
        return
    row = find_row(config.kind)
    if not steps_weights_alone(_builder(row, config), torch.device("cpu")):
        raise ConfigError(f"{not_by_chunks(config.kind, setting)}.")


def _builder(row: OptimizerRow, config: OptimizerSettings) -> Build:
    return functools.partial(_load(row), lr=config.lr, **{**row.defaults, **config.given()})


def find_row(kind: str) -> OptimizerRow:
    """The row of a name: of the table, of `torch.optim`, or of the pytorch-optimizer collection.

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
        f"optimizer.kind is {kind!r}, which is no optimizer. The nearest names are "
        f"{', '.join(near) or 'none'}; known are {', '.join(OPTIMIZERS)}, those of torch.optim and "
        f"of the pytorch-optimizer package, and any class by its module, as in torch.optim.Adam."
    )


def _of_bitsandbytes(wanted: str) -> list[str]:
    """The class of bitsandbytes that a plain name is meant for, if it is installed and has one."""
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
    """The row of `module.Class`, as sd-scripts names other optimizers.

    Raises:
        ConfigError: There is no such module or class, or it is no optimizer.
    """
    module, _, name = path.rpartition(".")
    try:
        candidate = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"optimizer.kind is {path!r}, and there is no such class ({error}). Expected a module "
            f"that is installed and a class in it, as in bitsandbytes.optim.AdEMAMix8bit."
        ) from error
    if not (inspect.isclass(candidate) and issubclass(candidate, torch.optim.Optimizer)):
        raise ConfigError(
            f"optimizer.kind is {path!r}, which is no optimizer (a class of torch.optim.Optimizer)."
        )
    return row_of(path)


@contextlib.contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The weights that a schedule-free optimizer means, and those it trains again afterwards.

    Defazio et al. 2024 (arXiv:2405.15682). Its own way back rounds, so the weights are kept and put
    back bit for bit: looking at a run must not change it.
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
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels not used here
    try:
        return corrected(getattr(importlib.import_module(row.module), row.name))
    except ImportError as error:
        raise MissingDependencyError(
            f"The optimizer {row.name} is in the package {package.replace('_', '-')}, which is not "
            f"installed ({error}). Install it with: {install_packages(package.replace('_', '-'))}\n"
            f"Or take optimizer.kind adamw."
        ) from error


def _collection_names() -> dict[str, str]:
    """Plain name -> class name, of the collection, if it is installed."""
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
