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

from impasto.config.optimizer import OptimizerConfig, finds_one_rate, one_rate_only
from impasto.errors import ConfigError, MissingDependencyError
from impasto.invocation import install_packages
from impasto.models.trainable import Part
from impasto.training.chunked import AT_ONCE, ChunkedOptimizer, ChunkRules
from impasto.training.optimizer_arguments import require_known_arguments
from impasto.training.optimizer_trial import Build, obeys_rates, require_steps

BuildOptimizer = Callable[[Sequence[Part], OptimizerConfig, ChunkRules], torch.optim.Optimizer]


@dataclass(frozen=True)
class OptimizerRow:
    """Where an optimizer is, and what it is given unless the settings say otherwise.

    Attributes:
        module: The module to import.
        name: The class in it.
        defaults: Arguments.
        finds_lr: Whether it finds the learning rate itself, from a factor of about 1.
        state_bytes: What it keeps for each number that learns.
        without_effect: Arguments that it takes and does not heed, each with the reason.
    """

    module: str
    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    finds_lr: bool = False
    state_bytes: float = 8
    without_effect: Mapping[str, str] = field(default_factory=dict)

    @property
    def looks_at_all_together(self) -> bool:
        """Whether it needs all weights at once, or keeps weights of its own."""
        return self.finds_lr or "ScheduleFree" in self.name


_TORCH, _BNB, _COLLECTION = "torch.optim", "bitsandbytes.optim", "pytorch_optimizer"
_FIXED_RATE = {"relative_step": False, "scale_parameter": False, "warmup_init": False}

_BNB_KINDS = {
    "amsgrad": "bitsandbytes has no AMSGrad",
    "optim_bits": "the kind says it, as in adamw8bit and paged_adamw32bit",
    "is_paged": "the kind says it, as in paged_adamw8bit",
}
_IN_32_BITS = {**_BNB_KINDS, "min_8bit_size": "its states have 32 bits"}
_BNB_SGD = {
    **_BNB_KINDS,
    "nesterov": "bitsandbytes' SGD has ordinary momentum only",
    "dampening": "bitsandbytes' SGD does not heed it",
}

OPTIMIZERS: dict[str, OptimizerRow] = {
    "adamw": OptimizerRow(_TORCH, "AdamW", {"fused": True}),
    "adamw8bit": OptimizerRow(_BNB, "AdamW8bit", state_bytes=2.1, without_effect=_BNB_KINDS),
    "paged_adamw": OptimizerRow(_BNB, "PagedAdamW", without_effect=_IN_32_BITS),
    "paged_adamw8bit": OptimizerRow(
        _BNB, "PagedAdamW8bit", state_bytes=2.1, without_effect=_BNB_KINDS
    ),
    "paged_adamw32bit": OptimizerRow(_BNB, "PagedAdamW32bit", without_effect=_IN_32_BITS),
    "lion": OptimizerRow(_BNB, "Lion", state_bytes=4, without_effect=_IN_32_BITS),
    "lion8bit": OptimizerRow(_BNB, "Lion8bit", state_bytes=1.1, without_effect=_BNB_KINDS),
    "paged_lion8bit": OptimizerRow(
        _BNB, "PagedLion8bit", state_bytes=1.1, without_effect=_BNB_KINDS
    ),
    "sgd_nesterov": OptimizerRow(_TORCH, "SGD", {"nesterov": True, "momentum": 0.9}, state_bytes=4),
    "sgd8bit": OptimizerRow(
        _BNB, "SGD8bit", {"momentum": 0.9}, state_bytes=1.1, without_effect=_BNB_SGD
    ),
    "sgd_nesterov8bit": OptimizerRow(
        _BNB, "SGD8bit", {"momentum": 0.9}, state_bytes=1.1, without_effect=_BNB_SGD
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
    "sgd_schedule_free": OptimizerRow(
        _COLLECTION,
        "ScheduleFreeSGD",
        state_bytes=4,
        without_effect={"eps": "nothing is divided by a second moment"},
    ),
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
        ConfigError: As `require_obedience`; or it does not go with the rules.
        MissingDependencyError: Its package is not there.
    """
    require_obedience(parts, config)
    row = find_row(config.kind)
    build = _builder(row, config)
    groups = [
        {"params": list(parameters.values()), "lr": lr}
        for part in parts
        for lr, parameters in part.by_rate()
    ]
    try:
        if rules.need is None:
            return build(groups)
        if row.looks_at_all_together:
            raise ConfigError(
                f"optimizer.kind {config.kind} looks at all weights together and does not go with "
                f"{rules.need}. Take that setting out, or take another optimizer.kind."
            )
        return ChunkedOptimizer(groups, build, rules)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.kind {config.kind} cannot be made: {error}.") from error


def require_obedience(parts: Sequence[Part], config: OptimizerConfig) -> None:
    """Make sure that an optimizer takes what the settings give it, steps, and obeys its rates.

    Those of the table are known to, by its tests; others are tried out, as are further arguments.

    Args:
        parts: What learns; their tensors may be without values.
        config: The settings.

    Raises:
        ConfigError: There is no such optimizer, or an option of it would have no effect.
        MissingDependencyError: Its package is not there.
    """
    row, kind = find_row(config.kind), config.kind
    require_known_arguments(kind, _load(row), config.given(), row.without_effect)
    build = _builder(row, config)
    rates = {lr for part in parts for lr, _ in part.by_rate()}
    device = next(p.device for part in parts for p in part.parameters().values())
    if device.type == "meta":
        device = torch.device("cpu")
    if kind not in OPTIMIZERS or config.arguments:
        require_steps(kind, build, device)
    is_known = kind in OPTIMIZERS
    if len(rates) > 1 and (row.finds_lr or (not is_known and not obeys_rates(build, device))):
        raise ConfigError(f"{one_rate_only(kind, sorted(rates))}.")


def _builder(row: OptimizerRow, config: OptimizerConfig) -> Build:
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
    wanted = _plain(kind)
    for name, candidate in vars(torch.optim).items():
        if _plain(name) == wanted and inspect.isclass(candidate) and name != "Optimizer":
            return OptimizerRow(_TORCH, name)
    collection = _collection_names()
    if wanted in collection:
        return _row_like(_COLLECTION, collection[wanted])
    known = sorted({*OPTIMIZERS, *collection})
    near = difflib.get_close_matches(kind.lower(), known, n=3, cutoff=0.4)
    raise ConfigError(
        f"optimizer.kind is {kind!r}, which is no optimizer. The nearest names are "
        f"{', '.join(near) or 'none'}; known are {', '.join(OPTIMIZERS)}, those of torch.optim and "
        f"of the pytorch-optimizer package, and any class by its module, as in torch.optim.Adam."
    )


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
    return _row_like(module, name)


def _row_like(module: str, name: str) -> OptimizerRow:
    """A row of the table where it has that class; otherwise a new one."""
    same = [row for row in OPTIMIZERS.values() if row.name == name]
    as_it_is = [row for row in same if row.module == module and not row.defaults]
    finds_lr = finds_one_rate(name)
    state_bytes = max((row.state_bytes for row in same), default=8)
    return as_it_is[0] if as_it_is else OptimizerRow(module, name, {}, finds_lr, state_bytes)


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


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
