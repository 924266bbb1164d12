"""What a run refuses of how it computes: precision, float8, kernels, CUDA graphs."""

from __future__ import annotations

from impasto.config.rule import Rule

PRECISION = (
    Rule(
        ("training.weight_dtype", "training.mixed_precision"),
        lambda c: (
            c.training.weight_dtype != "fp32"
            and c.training.mixed_precision not in (c.training.weight_dtype, "auto")
        ),
        lambda c: (
            f"training.weight_dtype {c.training.weight_dtype} needs mixed_precision "
            f"{c.training.weight_dtype}; it is {c.training.mixed_precision}"
        ),
    ),
    Rule(
        ("training.rounding", "training.weight_dtype"),
        lambda c: c.training.weight_dtype == "fp32" and c.training.rounding is not None,
        lambda _: "training.rounding has no effect on weights in fp32",
    ),
    Rule(
        ("training.weight_copies", "training.weight_dtype"),
        lambda c: c.training.weight_copies and c.training.weight_dtype != "fp32",
        lambda c: (
            f"training.weight_copies has no effect on weights in {c.training.weight_dtype}, which "
            f"need no copies"
        ),
    ),
    Rule(
        ("training.weight_copies", "training.mixed_precision"),
        lambda c: c.training.weight_copies and c.precision == "no",
        lambda c: (
            "training.weight_copies has no effect on products in float32, "
            + (
                "which this device computes. Take it out, or set training.mixed_precision to bf16"
                if c.training.mixed_precision == "auto"
                else "and training.mixed_precision no computes in float32. Take it out"
            )
        ),
    ),
    Rule(
        ("training.weight_copies", "training.optimizer_in_backward"),
        lambda c: c.training.weight_copies and c.in_backward,
        lambda _: (
            "training.weight_copies does not go with optimizer_in_backward, which frees each "
            "gradient at once: copies keep theirs to the end of the backward pass. Take one of the "
            "two out"
        ),
    ),
    Rule(
        ("training.weight_copies", "method.kind"),
        lambda c: c.training.weight_copies and c.method.kind != "full",
        lambda _: (
            "training.weight_copies has no effect on a hypernetwork, which leaves the U-Net's "
            "weights as they are: they are in 16 bits already. Take it out"
        ),
    ),
    Rule(
        ("training.weight_copies",),
        lambda c: (
            c.training.weight_copies and (c.facts.processes or 1) > 1 and not c.facts.sharding
        ),
        lambda c: (
            f"training.weight_copies is for one process, and this run has {c.facts.processes}, "
            f"which exchange the gradients of the weights themselves. Take it out"
        ),
    ),
)
"""Number formats and 16-bit copies of weights."""


FLOAT8 = (
    Rule(
        ("training.float8", "training.mixed_precision"),
        lambda c: c.training.float8 and c.precision not in ("bf16", "auto"),
        lambda c: (
            f"training.float8 needs mixed_precision bf16, in which everything else is computed; "
            f"this run computes in {'float32' if c.precision == 'no' else c.precision}"
        ),
    ),
    Rule(
        ("training.float8", "method.kind"),
        lambda c: c.training.float8 and c.method.kind != "full",
        lambda _: (
            "training.float8 is for training the U-Net itself, and not for a hypernetwork, which "
            "learns how frozen layers answer. Take it out"
        ),
    ),
    Rule(
        ("training.float8", "training.stream_weights"),
        lambda c: c.training.float8 and c.training.stream_weights,
        lambda _: (
            "training.float8 does not go with stream_weights: it needs compile, which does not. "
            "Take one of the two out"
        ),
    ),
    Rule(
        ("training.float8", "training.compile"),
        lambda c: (
            c.training.float8 and c.training.compile == "off" and c.facts.sharding in ("", None)
        ),
        lambda _: (
            "training.float8 needs compile: scaling and rounding by kernels of their own takes "
            'longer than float8 saves. Set compile to "blocks" or "full", or float8 to false'
        ),
    ),
)
"""Float8 products."""


KERNELS = (
    Rule(
        ("training.cuda_graphs",),
        lambda c: c.training.cuda_graphs != "off" and c.facts.device == "cpu",
        lambda _: "training.cuda_graphs is for GPUs, and this run has none. Take it out",
    ),
    Rule(
        ("training.attention",),
        lambda c: c.training.attention == "xformers" and c.facts.device == "cpu",
        lambda _: (
            "training.attention xformers computes on NVIDIA and AMD GPUs only, and this run has "
            "none. Set it to sdpa"
        ),
    ),
    Rule(
        ("training.cuda_graphs", "training.compile"),
        lambda c: c.training.cuda_graphs == "network" and c.training.compile == "off",
        lambda _: (
            "training.cuda_graphs network has no effect without compile. Set compile too, or "
            "cuda_graphs to step"
        ),
    ),
    Rule(
        ("training.cuda_graphs", "training.gradient_accumulation_steps"),
        lambda c: (
            c.training.cuda_graphs == "network" and c.training.gradient_accumulation_steps > 1
        ),
        lambda c: (
            "training.cuda_graphs network does not go with gradient_accumulation_steps "
            f"{c.training.gradient_accumulation_steps}: a recorded pass writes its gradients over "
            "those of the one before. Take one of the two out, or set cuda_graphs to step"
        ),
    ),
    Rule(
        ("training.cuda_graphs", "training.compile", "training.gradient_checkpointing"),
        lambda c: (
            c.training.cuda_graphs == "network"
            and c.training.compile == "blocks"
            and c.training.gradient_checkpointing
        ),
        lambda _: (
            "training.cuda_graphs network does not go with compile blocks and "
            "gradient_checkpointing: blocks that are computed again in the backward pass write "
            "over what was recorded. Take one of them out, set compile to full, or cuda_graphs to "
            "step"
        ),
    ),
    Rule(
        ("training.deterministic", "training.attention"),
        lambda c: c.training.deterministic and c.training.attention == "xformers",
        lambda _: (
            "training.deterministic does not go with attention xformers, whose backward pass adds "
            "up in no fixed order: take sdpa"
        ),
    ),
    Rule(
        ("training.checkpointed_levels", "training.gradient_checkpointing"),
        lambda c: (
            c.training.checkpointed_levels is not None and not c.training.gradient_checkpointing
        ),
        lambda _: "training.checkpointed_levels has no effect without gradient_checkpointing",
    ),
)
"""Compiling, CUDA graphs, attention."""


STEP_GRAPHS = (
    Rule(
        ("training.cuda_graphs", "optimizer.kind", "optimizer.arguments"),
        lambda c: c.graphs_steps and not c.is_fused_adamw,
        lambda c: (
            "training.cuda_graphs step needs an optimizer that steps on the GPU alone, which is "
            f"optimizer.kind adamw, fused; it is {c.kind}"
            + (" with fused = false" if c.kind == "adamw" else "")
            + ". Change it, or set cuda_graphs to off"
        ),
    ),
    Rule(
        (
            "training.cuda_graphs",
            "training.weight_dtype",
            "training.optimizer_in_backward",
            "training.offload_optimizer",
            "training.stream_weights",
        ),
        lambda c: c.graphs_steps and bool(c.goes_by_chunks),
        lambda c: (
            f"training.cuda_graphs step does not go with {c.goes_by_chunks}, in which the host "
            f"steps the weights part by part. Take that setting out, or set cuda_graphs to "
            f"off"
        ),
    ),
    Rule(
        ("training.cuda_graphs", "training.mixed_precision"),
        lambda c: c.graphs_steps and c.precision == "fp16",
        lambda _: (
            "training.cuda_graphs step does not go with mixed_precision fp16, whose scale the host "
            "adjusts. Set mixed_precision to bf16, or cuda_graphs to off"
        ),
    ),
    Rule(
        ("training.cuda_graphs", "method.train_text_encoder"),
        lambda c: c.graphs_steps and c.config.trains_text_encoder,
        lambda _: (
            "training.cuda_graphs step does not go with method.train_text_encoder, which works on "
            "token ids of the host in every step. Set one of the two to off"
        ),
    ),
    Rule(
        ("training.cuda_graphs",),
        lambda c: c.graphs_steps and ((c.facts.processes or 1) > 1 or bool(c.facts.sharding)),
        lambda c: (
            f"training.cuda_graphs step is for one process, and this run has "
            f"{c.facts.processes or 'several'}, which exchange gradients in every step. Set it to "
            f"off"
        ),
    ),
    Rule(
        ("training.cuda_graphs", "training.gradient_checkpointing", "method.dropout"),
        lambda c: (
            c.graphs_steps
            and c.training.gradient_checkpointing
            and c.config.hypernetwork is not None
            and any(c.config.hypernetwork.dropout)
        ),
        lambda _: (
            "training.cuda_graphs step does not go with gradient_checkpointing and "
            "method.dropout, whose random numbers would have to be drawn again identically. Take "
            "one of the three out"
        ),
    ),
)
"""What whole steps as CUDA graphs do not go with: all that the host does within a step."""
