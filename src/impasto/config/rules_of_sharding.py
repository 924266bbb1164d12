"""Refused combinations of settings with a model that is sharded over processes."""

from __future__ import annotations

from collections.abc import Callable

from impasto.config.cases import Case
from impasto.config.rule import Rule
from impasto.optimizer_table import ELEMENTWISE


def _shards(
    settings: tuple[str, ...], applies: Callable[[Case], bool], text: Callable[[Case], str]
) -> Rule:
    """Return a rule that applies if the model is sharded over processes."""
    return Rule(
        settings,
        lambda c: bool(c.facts.sharding) and applies(c),
        lambda c: (
            f"accelerate is configured for {c.facts.sharding}, which cannot be combined with "
            f"{text(c)}"
        ),
    )


SHARDING = (
    Rule(
        (),
        lambda c: bool(c.facts.sharding) and c.facts.processes == 1,
        lambda _: (
            "accelerate is configured to shard the model over processes, and this run has only "
            "one. Start several (accelerate launch --num_processes), or run `accelerate config` "
            "and choose neither FSDP nor DeepSpeed"
        ),
    ),
    _shards(
        ("method.kind",),
        lambda c: c.method.kind != "full",
        lambda _: (
            'method.kind = "hypernetwork", which is too small to shard: run `accelerate '
            "config` and choose neither FSDP nor DeepSpeed"
        ),
    ),
    _shards(
        ("training.weight_dtype",),
        lambda c: c.training.weight_dtype != "fp32",
        lambda c: f'training.weight_dtype = "{c.training.weight_dtype}": set it to "fp32"',
    ),
    _shards(
        ("training.optimizer_in_backward",),
        lambda c: c.in_backward,
        lambda _: 'training.optimizer_in_backward: set it to "off"',
    ),
    _shards(
        ("training.offload_optimizer",),
        lambda c: c.training.offload_optimizer,
        lambda _: "training.offload_optimizer: remove it",
    ),
    _shards(
        ("training.float8",),
        lambda c: c.training.float8,
        lambda _: "training.float8: remove it",
    ),
    _shards(
        ("training.compile",),
        lambda c: c.training.compile != "off",
        lambda _: 'training.compile: set it to "off"',
    ),
    _shards(
        ("training.channels_last",),
        lambda c: c.training.channels_last,
        lambda _: "training.channels_last: remove it",
    ),
    _shards(
        ("training.weight_copies",),
        lambda c: c.training.weight_copies,
        lambda _: "training.weight_copies: remove it",
    ),
    _shards(
        ("optimizer.kind",),
        lambda c: not c.row.is_elementwise,
        lambda c: (
            f'optimizer.kind = "{c.kind}", whose update of a number depends on others: use one '
            f"of {', '.join(sorted(ELEMENTWISE))}"
        ),
    ),
    _shards(
        ("training.mixed_precision",),
        lambda c: c.facts.sharding == "DeepSpeed" and c.precision == "fp16",
        lambda _: 'training.mixed_precision = "fp16": set it to "bf16" or "no", or choose FSDP',
    ),
    _shards(
        ("method.text_encoder_from_step", "method.text_encoder_until_step"),
        lambda c: c.facts.sharding == "DeepSpeed" and c.text_encoder_pauses,
        lambda _: (
            "method.text_encoder_from_step or text_encoder_until_step, since it also updates "
            "weights that have no gradient: remove them, or choose FSDP"
        ),
    ),
)
"""Rules about FSDP and DeepSpeed, as accelerate is configured for them."""
