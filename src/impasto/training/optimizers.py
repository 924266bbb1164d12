"""Makes optimizers over the parts that learn: libraries' ones, with their arguments checked."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from impasto.config.optimizer import OptimizerConfig
from impasto.errors import ConfigError, MissingDependencyError
from impasto.invocation import install_packages
from impasto.models.trainable import Part
from impasto.training.chunked import AT_ONCE, ChunkedOptimizer, ChunkRules

BuildOptimizer = Callable[[Sequence[Part], OptimizerConfig, ChunkRules], torch.optim.Optimizer]

_OURS = {"params", "lr", "self", "args", "kwargs", "foreach", "fused", "capturable"}


@dataclass(frozen=True)
class OptimizerRow:
    """Where an optimizer is, and what it is given unless the settings say otherwise.

    Attributes:
        module: The module to import.
        name: The class in it.
        defaults: Arguments.
        finds_lr: Whether it finds the learning rate itself, from a factor of about 1.
        state_bytes: What it keeps for each number that learns.
    """

    module: str
    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    finds_lr: bool = False
    state_bytes: float = 8

    @property
    def looks_at_all_together(self) -> bool:
        """Whether it needs all weights at once, or keeps weights of its own."""
        return self.finds_lr or "ScheduleFree" in self.name


_TORCH, _BNB, _COLLECTION = "torch.optim", "bitsandbytes.optim", "pytorch_optimizer"
_FIXED_RATE = {"relative_step": False, "scale_parameter": False, "warmup_init": False}

OPTIMIZERS: dict[str, OptimizerRow] = {
    "adamw": OptimizerRow(_TORCH, "AdamW", {"fused": True}),
    "adamw8bit": OptimizerRow(_BNB, "AdamW8bit", state_bytes=2.1),
    "paged_adamw": OptimizerRow(_BNB, "PagedAdamW"),
    "paged_adamw8bit": OptimizerRow(_BNB, "PagedAdamW8bit", state_bytes=2.1),
    "paged_adamw32bit": OptimizerRow(_BNB, "PagedAdamW32bit"),
    "lion": OptimizerRow(_BNB, "Lion", state_bytes=4),
    "lion8bit": OptimizerRow(_BNB, "Lion8bit", state_bytes=1.1),
    "paged_lion8bit": OptimizerRow(_BNB, "PagedLion8bit", state_bytes=1.1),
    "sgd_nesterov": OptimizerRow(_TORCH, "SGD", {"nesterov": True, "momentum": 0.9}, state_bytes=4),
    "sgd8bit": OptimizerRow(_BNB, "SGD8bit", {"momentum": 0.9}, state_bytes=1.1),
    "sgd_nesterov8bit": OptimizerRow(
        _BNB, "SGD8bit", {"nesterov": True, "momentum": 0.9}, state_bytes=1.1
    ),
    "adafactor": OptimizerRow("transformers.optimization", "Adafactor", _FIXED_RATE, state_bytes=1),
    "prodigy": OptimizerRow(_COLLECTION, "Prodigy", finds_lr=True, state_bytes=16),
    "dadapt_adam": OptimizerRow(_COLLECTION, "DAdaptAdam", finds_lr=True, state_bytes=12),
    "dadapt_adagrad": OptimizerRow(_COLLECTION, "DAdaptAdaGrad", finds_lr=True, state_bytes=12),
    "dadapt_adan": OptimizerRow(_COLLECTION, "DAdaptAdan", finds_lr=True, state_bytes=20),
    "dadapt_lion": OptimizerRow(_COLLECTION, "DAdaptLion", finds_lr=True),
    "dadapt_sgd": OptimizerRow(_COLLECTION, "DAdaptSGD", finds_lr=True, state_bytes=12),
    "adamw_schedule_free": OptimizerRow(_COLLECTION, "ScheduleFreeAdamW"),
    "radam_schedule_free": OptimizerRow(_COLLECTION, "ScheduleFreeRAdam"),
    "sgd_schedule_free": OptimizerRow(_COLLECTION, "ScheduleFreeSGD", state_bytes=4),
}


def build_optimizer(
    parts: Sequence[Part], config: OptimizerConfig, rules: ChunkRules = AT_ONCE
) -> torch.optim.Optimizer:
    """The optimizer of the settings, with parameter groups for each rate of each part.

    Args:
        parts: What learns.
        config: The settings.
        rules: How it goes through the weights.

    Raises:
        ConfigError: There is no such optimizer, it does not take an argument, or it does not go
            with the rules.
        MissingDependencyError: Its package is not there.
    """
    row = find_row(config.kind)
    factory = _load(row)
    arguments = {**row.defaults, **config.given()}
    require_known_arguments(config.kind, factory, config.given())
    groups = [
        {"params": list(parameters.values()), "lr": lr}
        for part in parts
        for lr, parameters in part.by_rate()
    ]
    build = functools.partial(factory, lr=config.lr, **arguments)
    try:
        if rules.need is None:
            return build(groups)  # type: ignore[no-any-return]
        if row.looks_at_all_together:
            raise ConfigError(
                f"optimizer.kind {config.kind} looks at all weights together and does not go with "
                f"{rules.need}. Take that setting out, or take another optimizer.kind."
            )
        return ChunkedOptimizer(groups, build, rules)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.kind {config.kind} cannot be made: {error}.") from error


def find_row(kind: str) -> OptimizerRow:
    """The row of a name: of the table, of `torch.optim`, or of the pytorch-optimizer collection.

    Raises:
        ConfigError: No optimizer has that name.
    """
    if kind in OPTIMIZERS:
        return OPTIMIZERS[kind]
    wanted = _plain(kind)
    for name, candidate in vars(torch.optim).items():
        if _plain(name) == wanted and inspect.isclass(candidate) and name != "Optimizer":
            return OptimizerRow(_TORCH, name)
    collection = _collection_names()
    if wanted in collection:
        return OptimizerRow(_COLLECTION, collection[wanted])
    known = sorted({*OPTIMIZERS, *collection})
    near = difflib.get_close_matches(kind.lower(), known, n=3, cutoff=0.4)
    raise ConfigError(
        f"optimizer.kind is {kind!r}, which is no optimizer. The nearest names are "
        f"{', '.join(near) or 'none'}; known are {', '.join(OPTIMIZERS)}, and those of torch.optim "
        f"and of the pytorch-optimizer package."
    )


def require_known_arguments(kind: str, factory: Any, given: Mapping[str, Any]) -> None:
    """Make sure that an optimizer takes each argument, and that its type fits.

    Raises:
        ConfigError: It does not; with what it takes.
    """
    signature = inspect.signature(factory.__init__).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values())
    for name, value in given.items():
        if name in signature:
            _require_type(kind, name, value, signature[name].default)
        elif not open_ended or name in {"betas", "eps", "weight_decay"}:
            takes = sorted(set(signature) - _OURS)
            near = difflib.get_close_matches(name, takes, n=1, cutoff=0.5)
            nearest = f"the nearest is {near[0]}; " if near else ""
            raise ConfigError(
                f"optimizer.kind {kind} does not take {name} ({nearest}it takes "
                f"{', '.join(takes)})."
            )


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
        return getattr(importlib.import_module(row.module), row.name)
    except ImportError as error:
        raise MissingDependencyError(
            f"The optimizer {row.name} is in the package {package.replace('_', '-')}, which is not "
            f"installed ({error}). Install it with: {install_packages(package.replace('_', '-'))}\n"
            f"Or take optimizer.kind adamw."
        ) from error


def _collection_names() -> dict[str, str]:
    """Plain name -> class name, of the collection, if it is installed."""
    try:
        collection = importlib.import_module(_COLLECTION)
    except ImportError:
        return {}
    return {
        _plain(name): name
        for name, candidate in vars(collection).items()
        if inspect.isclass(candidate)
        and issubclass(candidate, torch.optim.Optimizer)
        and name not in {"BaseOptimizer", "Optimizer"}
    }


def _require_type(kind: str, name: str, value: Any, default: Any) -> None:
    """A flag wants a flag, a number a number, a sequence a sequence."""
    problem = f"optimizer.kind {kind}: {name} is {value!r}; expected something like {default!r}."
    if isinstance(default, bool) != isinstance(value, bool) and isinstance(
        default, (bool, int, float)
    ):
        raise ConfigError(problem)
    if isinstance(default, (int, float)) and not isinstance(value, (int, float)):
        raise ConfigError(problem)
    if isinstance(default, (tuple, list)) and (
        not isinstance(value, (tuple, list)) or len(value) != len(default)
    ):
        raise ConfigError(problem)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
