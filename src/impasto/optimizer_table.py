"""The table of the named optimizers, with their modules and properties. Imports no library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ELEMENTWISE = (
    "Adadelta", "Adam", "Adamax", "AdamW", "ASGD", "Lion", "NAdam", "PagedAdamW",
    "PagedAdamW32bit", "RAdam", "RMSprop", "Rprop", "SGD",
)  # fmt: skip
"""Classes that update each element by its own gradients, so that shards are updated separately.

Not among them: those with 8-bit states, where neighbours have a common scale; Adafactor, Muon and
similar ones, which use rows and columns; Prodigy, D-Adaptation and schedule-free ones, which use
all weights together.
"""

COUPLED = frozenset({"adagc", "adai", "adams", "avagrad", "gravity", "kron", "lorarite", "magma"})
"""Classes of pytorch-optimizer, by `plain_name`, whose update of a weight depends on other weights.

Adai and AdamS divide by a mean over all weights, AvaGrad by their number, AdaGC by the norm of all
gradients; LoRARite updates them in pairs; Gravity, Kron and Magma draw random numbers in sequence.
"""

USUAL_LR = (1e-7, 5e-5)
FLOAT32 = 4  # bytes
_LION_LR = (3e-8, 2e-5)
_FACTOR = (0.1, 2.0)


@dataclass(frozen=True)
class OptimizerRow:
    """The module, properties and default arguments of an optimizer.

    Attributes:
        module: The module to import; empty if it is not known yet.
        name: The class in that module.
        defaults: Default arguments.
        finds_lr: Whether it estimates the learning rate itself, multiplied by a factor of about 1.
            It then has one rate for all weights, that of the first parameter group.
        averages_weights: Whether it maintains an average of the weights itself (schedule-free).
        is_coupled: Whether the update of a weight depends on the other weights.
        is_elementwise: Whether it updates each element from its own gradients alone.
        has_8bit_states: Whether its states are quantized to 8 bits.
        is_paged: Whether its states are paged between RAM and VRAM.
        usual_lr: The lowest and highest usual learning rate for a whole U-Net.
        state_bytes: Bytes of optimizer state per trained element.
        is_factored: Whether it stores means of the rows and columns of a weight's squared gradients
            instead of one number per element (Shazeer and Stern 2018, arXiv:1804.04235);
            `state_bytes` then excludes them.
        without_effect: Arguments that it accepts and ignores -> the reason.
    """

    module: str
    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    finds_lr: bool = False
    averages_weights: bool = False
    is_coupled: bool = False
    is_elementwise: bool = False
    has_8bit_states: bool = False
    is_paged: bool = False
    usual_lr: tuple[float, float] = USUAL_LR
    state_bytes: float = 8
    is_factored: bool = False
    without_effect: Mapping[str, str] = field(default_factory=dict)

    def state_size(self, shape: Sequence[int], arguments: Mapping[str, Any]) -> float:
        """Return the bytes of optimizer state for a weight.

        Args:
            shape: The weight's shape. Adafactor treats the last two dimensions as rows and columns,
                so a 3x3 convolution has 2.7 bytes per element and a large matrix hardly any.
            arguments: The optimizer's arguments; Adafactor's `beta1` adds a mean of the gradient.
        """
        count = math.prod(shape)
        kept = self.state_bytes * count
        if not self.is_factored:
            return kept
        first_moment = count if arguments.get("beta1") is not None else 0
        squares = count // shape[-1] + count // shape[-2] if len(shape) > 1 else count
        return kept + FLOAT32 * (squares + first_moment)

    @property
    def looks_at_all_together(self) -> bool:
        """Whether the optimizer needs all weights at once, or keeps a copy of them."""
        return self.finds_lr or self.averages_weights


TORCH, _BNB, COLLECTION = "torch.optim", "bitsandbytes.optim", "pytorch_optimizer"
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
    "adamw": OptimizerRow(TORCH, "AdamW", {"fused": True}, is_elementwise=True),
    "adamw8bit": OptimizerRow(
        _BNB, "AdamW8bit", state_bytes=2.1, has_8bit_states=True, without_effect=_BNB_KINDS
    ),
    "paged_adamw": OptimizerRow(
        _BNB, "PagedAdamW", is_paged=True, is_elementwise=True, without_effect=_IN_32_BITS
    ),
    "paged_adamw8bit": OptimizerRow(
        _BNB,
        "PagedAdamW8bit",
        is_paged=True,
        state_bytes=2.1,
        has_8bit_states=True,
        without_effect=_BNB_KINDS,
    ),
    "paged_adamw32bit": OptimizerRow(
        _BNB, "PagedAdamW32bit", is_paged=True, is_elementwise=True, without_effect=_IN_32_BITS
    ),
    "lion": OptimizerRow(
        _BNB,
        "Lion",
        state_bytes=4,
        is_elementwise=True,
        usual_lr=_LION_LR,
        without_effect=_IN_32_BITS,
    ),
    "lion8bit": OptimizerRow(
        _BNB,
        "Lion8bit",
        usual_lr=_LION_LR,
        state_bytes=1.1,
        has_8bit_states=True,
        without_effect=_BNB_KINDS,
    ),
    "paged_lion8bit": OptimizerRow(
        _BNB,
        "PagedLion8bit",
        is_paged=True,
        usual_lr=_LION_LR,
        state_bytes=1.1,
        has_8bit_states=True,
        without_effect=_BNB_KINDS,
    ),
    "sgd_nesterov": OptimizerRow(
        TORCH, "SGD", {"nesterov": True, "momentum": 0.9}, state_bytes=4, is_elementwise=True
    ),
    "sgd8bit": OptimizerRow(
        _BNB,
        "SGD8bit",
        {"momentum": 0.9},
        state_bytes=1.1,
        has_8bit_states=True,
        without_effect=_BNB_SGD,
    ),
    "sgd_nesterov8bit": OptimizerRow(
        _BNB,
        "SGD8bit",
        {"momentum": 0.9},
        state_bytes=1.1,
        has_8bit_states=True,
        without_effect=_BNB_SGD,
    ),
    "adafactor": OptimizerRow(
        "transformers.optimization", "Adafactor", _FIXED_RATE, state_bytes=0, is_factored=True
    ),
    "prodigy": OptimizerRow(COLLECTION, "Prodigy", finds_lr=True, usual_lr=_FACTOR, state_bytes=16),
    "dadapt_adam": OptimizerRow(
        COLLECTION, "DAdaptAdam", finds_lr=True, usual_lr=_FACTOR, state_bytes=12
    ),
    "dadapt_adagrad": OptimizerRow(
        COLLECTION, "DAdaptAdaGrad", finds_lr=True, usual_lr=_FACTOR, state_bytes=12
    ),
    "dadapt_adan": OptimizerRow(
        COLLECTION, "DAdaptAdan", finds_lr=True, usual_lr=_FACTOR, state_bytes=20
    ),
    "dadapt_lion": OptimizerRow(COLLECTION, "DAdaptLion", finds_lr=True, usual_lr=_FACTOR),
    "dadapt_sgd": OptimizerRow(
        COLLECTION, "DAdaptSGD", finds_lr=True, usual_lr=_FACTOR, state_bytes=12
    ),
    "adamw_schedule_free": OptimizerRow(COLLECTION, "ScheduleFreeAdamW", averages_weights=True),
    "radam_schedule_free": OptimizerRow(COLLECTION, "ScheduleFreeRAdam", averages_weights=True),
    "sgd_schedule_free": OptimizerRow(
        COLLECTION,
        "ScheduleFreeSGD",
        averages_weights=True,
        state_bytes=4,
        without_effect={"eps": "nothing is divided by a second moment"},
    ),
}


def row_of(kind: str) -> OptimizerRow:
    """Return the table row of an optimizer by its name; nothing is imported.

    Args:
        kind: A name of the table, of a class, or `module.Class`.

    Returns:
        The row of the table, or one of its class; of other classes, what their libraries' names
        say (bitsandbytes: `8bit`, `Paged`; pytorch-optimizer: `DAdapt`, `ScheduleFree`).
    """
    if kind in OPTIMIZERS:
        return OPTIMIZERS[kind]
    module, _, name = kind.rpartition(".")
    plain = plain_name(name)
    alike = [row for row in OPTIMIZERS.values() if plain_name(row.name) == plain]
    as_it_is = [row for row in alike if row.module == module and not row.defaults]
    if as_it_is:
        return as_it_is[0]
    finds_lr = plain == "prodigy" or plain.startswith("dadapt")
    is_adafactor = plain == "adafactor"
    first_moment = 2 if module.startswith(COLLECTION) else 0  # of 16 bits
    return OptimizerRow(
        module,
        name,
        finds_lr=finds_lr,
        averages_weights="schedulefree" in plain,
        is_coupled=plain in COUPLED,
        is_elementwise=plain in {plain_name(each) for each in ELEMENTWISE},
        has_8bit_states=plain.endswith("8bit"),
        is_paged=plain.startswith("paged"),
        usual_lr=_FACTOR if finds_lr else _LION_LR if "lion" in plain else USUAL_LR,
        state_bytes=first_moment
        if is_adafactor
        else max((row.state_bytes for row in alike), default=8),
        is_factored=is_adafactor,
    )


def plain_name(name: str) -> str:
    """Return a name normalised for comparison: in lower case, without dashes."""
    return name.lower().replace("_", "").replace("-", "")


def not_by_chunks(kind: str, setting: str) -> str:
    """Return why an optimizer cannot update the weights in chunks.

    Args:
        kind: The name of the optimizer.
        setting: The setting that needs updates in chunks.
    """
    return (
        f"optimizer.kind {kind} needs all weights at once, which excludes {setting}. Remove "
        f"that setting, or choose another optimizer.kind"
    )


_SETTINGS_OF_RATES = (
    "method.text_encoder_lr (--learning_rate_te)",
    "method.text_encoder_lrs (--learning_rate_te1, --learning_rate_te2)",
    "method.block_lrs (--block_lr)",
)


def one_rate_only(
    kind: str, rates: Sequence[float], settings: Sequence[str] = _SETTINGS_OF_RATES
) -> str:
    """Return why an optimizer does not support different learning rates, and what to set instead.

    Args:
        kind: The name of the optimizer.
        rates: The rates.
        settings: The settings that the rates are from, if known.
    """
    *others, last = settings
    named = f"{', '.join(others)} and {last}" if others else last
    return (
        f"optimizer.kind {kind} has one learning rate for all trained parts, so that "
        f"{', '.join(f'{rate:g}' for rate in rates)} at the same time would have no effect. Remove "
        f"{named}, or choose an optimizer.kind that has rates for each part, such as adamw or "
        f"adamw_schedule_free"
    )
