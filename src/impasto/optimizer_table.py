"""The optimizers that are known by name: where each is, and what it can do. Imports no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


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
    "adamw": OptimizerRow(TORCH, "AdamW", {"fused": True}),
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
    "sgd_nesterov": OptimizerRow(TORCH, "SGD", {"nesterov": True, "momentum": 0.9}, state_bytes=4),
    "sgd8bit": OptimizerRow(
        _BNB, "SGD8bit", {"momentum": 0.9}, state_bytes=1.1, without_effect=_BNB_SGD
    ),
    "sgd_nesterov8bit": OptimizerRow(
        _BNB, "SGD8bit", {"momentum": 0.9}, state_bytes=1.1, without_effect=_BNB_SGD
    ),
    "adafactor": OptimizerRow("transformers.optimization", "Adafactor", _FIXED_RATE, state_bytes=1),
    "prodigy": OptimizerRow(COLLECTION, "Prodigy", finds_lr=True, state_bytes=16),
    "dadapt_adam": OptimizerRow(COLLECTION, "DAdaptAdam", finds_lr=True, state_bytes=12),
    "dadapt_adagrad": OptimizerRow(COLLECTION, "DAdaptAdaGrad", finds_lr=True, state_bytes=12),
    "dadapt_adan": OptimizerRow(COLLECTION, "DAdaptAdan", finds_lr=True, state_bytes=20),
    "dadapt_lion": OptimizerRow(COLLECTION, "DAdaptLion", finds_lr=True),
    "dadapt_sgd": OptimizerRow(COLLECTION, "DAdaptSGD", finds_lr=True, state_bytes=12),
    "adamw_schedule_free": OptimizerRow(COLLECTION, "ScheduleFreeAdamW"),
    "radam_schedule_free": OptimizerRow(COLLECTION, "ScheduleFreeRAdam"),
    "sgd_schedule_free": OptimizerRow(
        COLLECTION,
        "ScheduleFreeSGD",
        state_bytes=4,
        without_effect={"eps": "nothing is divided by a second moment"},
    ),
}


def finds_one_rate(kind: str) -> bool:
    """Whether an optimizer finds one rate for all that it trains: Prodigy and D-Adaptation.

    Their step follows from the rate of the first group alone.
    """
    name = kind.rpartition(".")[2].lower().replace("_", "").replace("-", "")
    return name == "prodigy" or name.startswith("dadapt")


def one_rate_only(kind: str, rates: Sequence[float]) -> str:
    """Why different rates are refused, and what to set."""
    return (
        f"optimizer.kind {kind} has one learning rate for all that it trains, so that "
        f"{', '.join(f'{rate:g}' for rate in rates)} side by side would have no effect. Take "
        f"method.text_encoder_lr (--learning_rate_te) and method.block_lrs out, or choose an "
        f"optimizer.kind that has rates for each part, such as adamw or adamw_schedule_free"
    )
