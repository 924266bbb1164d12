"""What a run refuses of a model that is sharded over processes."""

from __future__ import annotations

from collections.abc import Callable

from impasto.config.cases import Case
from impasto.config.rule import Rule
from impasto.optimizer_table import ELEMENTWISE


def _shards(
    settings: tuple[str, ...], applies: Callable[[Case], bool], text: Callable[[Case], str]
) -> Rule:
    """A row about a model that is sharded over processes."""
    return Rule(
        settings,
        lambda c: bool(c.facts.sharding) and applies(c),
        lambda c: (
            f"accelerate is configured for {c.facts.sharding}, which does not go with {text(c)}"
        ),
    )


SHARDING = (
    Rule(
        (),
        lambda c: bool(c.facts.sharding) and c.facts.processes == 1,
        lambda _: (
            "accelerate is configured to shard the model over processes, and there is one. Start "
            "several (accelerate launch --num_processes), or run `accelerate config` and choose "
            "neither FSDP nor DeepSpeed"
        ),
    ),
    _shards(
        ("method.kind",),
        lambda c: c.method.kind != "full",
        lambda _: (
            'method.kind = "hypernetwork", of which there is little to shard: run `accelerate '
            "config` and choose no FSDP or DeepSpeed"
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
        lambda _: "training.offload_optimizer: take it out",
    ),
    _shards(
        ("training.float8",),
        lambda c: c.training.float8,
        lambda _: "training.float8: take it out",
    ),
    _shards(
        ("training.compile",),
        lambda c: c.training.compile != "off",
        lambda _: 'training.compile: set it to "off"',
    ),
    _shards(
        ("training.channels_last",),
        lambda c: c.training.channels_last,
        lambda _: "training.channels_last: take it out",
    ),
    _shards(
        ("training.weight_copies",),
        lambda c: c.training.weight_copies,
        lambda _: "training.weight_copies: take it out",
    ),
    _shards(
        ("optimizer.kind",),
        lambda c: not c.row.is_elementwise,
        lambda c: (
            f'optimizer.kind = "{c.kind}", which looks at more than one number at a time: take one '
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
            "method.text_encoder_from_step or text_encoder_until_step, since it goes on with "
            "weights that have no gradient: take them out, or choose FSDP"
        ),
    ),
)
"""FSDP and DeepSpeed, as accelerate is configured for them."""
