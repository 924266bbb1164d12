"""Refused combinations of settings of memory: batch size, streamed weights, steps in backward."""

from __future__ import annotations

from impasto.config.rule import Rule

MEMORY = (
    Rule(
        ("training.batch_size", "dataset.batch_size"),
        lambda c: (
            c.training.batch_size == "auto"
            and all(entry.batch_size for entry in c.config.dataset.entries)
        ),
        lambda _: (
            "training.batch_size auto has no effect if each dataset sets its own batch_size. "
            "Remove one of them"
        ),
    ),
    Rule(
        ("training.stream_weights",),
        lambda c: c.training.stream_weights and c.facts.device == "cpu",
        lambda _: (
            "training.stream_weights keeps weights out of VRAM, and this run computes on the CPU, "
            "where it would change nothing. Remove it"
        ),
    ),
    Rule(
        (
            "training.stream_weights",
            "training.gradient_checkpointing",
            "training.checkpointed_levels",
        ),
        lambda c: (
            c.training.stream_weights
            and (
                not c.training.gradient_checkpointing or c.training.checkpointed_levels is not None
            )
        ),
        lambda _: (
            "training.stream_weights needs gradient_checkpointing of all levels: blocks that are "
            "not recomputed keep their weights on the GPU. Set gradient_checkpointing = true, "
            "without checkpointed_levels"
        ),
    ),
    Rule(
        ("training.stream_weights", "training.optimizer_in_backward"),
        lambda c: c.training.stream_weights and not c.in_backward,
        lambda _: (
            "training.stream_weights needs optimizer_in_backward: weights are updated while they "
            'are on the GPU. Set it to "exact" or "last_norm"'
        ),
    ),
    Rule(
        ("training.stream_weights", "method.kind"),
        lambda c: c.training.stream_weights and c.method.kind != "full",
        lambda _: (
            "training.stream_weights is for training the U-Net itself; beside a hypernetwork its "
            "weights stay on the GPU in 16 bits. Remove it"
        ),
    ),
    Rule(
        ("training.stream_weights", "training.channels_last"),
        lambda c: c.training.stream_weights and c.training.channels_last,
        lambda _: (
            "training.stream_weights cannot be combined with channels_last, which only helps "
            "compiled networks. Remove channels_last"
        ),
    ),
    Rule(
        ("training.stream_weights", "training.compile"),
        lambda c: c.training.stream_weights and c.training.compile != "off",
        lambda _: (
            "training.stream_weights cannot be combined with compile, whose code depends on the "
            'address of each weight. Set compile to "off"'
        ),
    ),
    Rule(
        (
            "training.stream_weights",
            "training.ema_decay",
            "training.posthoc_ema",
            "training.ema_on_cpu",
        ),
        lambda c: (
            c.training.stream_weights and c.training.averages > 0 and not c.training.ema_on_cpu
        ),
        lambda _: (
            "training.stream_weights needs ema_on_cpu: the running average takes more VRAM than "
            "streaming the weights saves. Set ema_on_cpu = true"
        ),
    ),
    Rule(
        ("training.stream_weights", "optimizer.kind"),
        lambda c: c.training.stream_weights and c.row.is_paged,
        lambda c: (
            f"training.stream_weights cannot be combined with optimizer.kind {c.kind}, whose state "
            f"CUDA moves by itself. Use {c.kind.removeprefix('paged_')} with offload_optimizer"
        ),
    ),
    Rule(
        ("training.stream_weights",),
        lambda c: c.training.stream_weights and (c.facts.processes or 1) > 1,
        lambda c: (
            f"training.stream_weights is for one process, and this run has {c.facts.processes}: "
            f"several processes shard a model with FSDP. Remove it"
        ),
    ),
    Rule(
        ("training.optimizer_in_backward", "training.gradient_accumulation_steps"),
        lambda c: c.in_backward and c.training.gradient_accumulation_steps > 1,
        lambda c: (
            "training.optimizer_in_backward frees gradients at once, and "
            f"gradient_accumulation_steps {c.training.gradient_accumulation_steps} adds them up: "
            "remove one of the two"
        ),
    ),
    Rule(
        ("training.optimizer_in_backward", "training.mixed_precision"),
        lambda c: c.training.optimizer_in_backward == "last_norm" and c.precision == "fp16",
        lambda _: (
            "training.optimizer_in_backward last_norm cannot be combined with mixed_precision "
            "fp16, whose gradients may overflow: set it to exact"
        ),
    ),
    Rule(
        ("training.optimizer_in_backward", "training.max_grad_norm"),
        lambda c: c.training.optimizer_in_backward == "last_norm" and c.training.max_grad_norm == 0,
        lambda _: (
            "training.optimizer_in_backward last_norm has nothing to limit with max_grad_norm 0: "
            "set it to exact, which is as fast then"
        ),
    ),
    Rule(
        ("training.optimizer_in_backward",),
        lambda c: c.in_backward and (c.facts.processes or 1) > 1 and not c.facts.sharding,
        lambda c: (
            f"training.optimizer_in_backward is for one process, and this run has "
            f"{c.facts.processes}: they sum their gradients, which must be kept for that. Set "
            f'it to "off" (--fused_backward_pass of sd-scripts enables it)'
        ),
    ),
)
"""Rules about `batch_size` auto, `stream_weights` and `optimizer_in_backward`."""
