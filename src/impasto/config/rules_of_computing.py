"""Refused combinations of settings of computation: precision, float8, kernels, CUDA graphs."""

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
            f"{c.training.weight_dtype}; found {c.training.mixed_precision}"
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
                "in which this device computes. Remove it, or set training.mixed_precision to bf16"
                if c.training.mixed_precision == "auto"
                else "in which training.mixed_precision no computes. Remove it"
            )
        ),
    ),
    Rule(
        ("training.weight_copies", "training.optimizer_in_backward"),
        lambda c: c.training.weight_copies and c.in_backward,
        lambda _: (
            "training.weight_copies cannot be combined with optimizer_in_backward, which frees "
            "each gradient at once: copies keep theirs to the end of the backward pass. Remove one "
            "of the two"
        ),
    ),
    Rule(
        ("training.weight_copies", "method.kind"),
        lambda c: c.training.weight_copies and c.method.kind != "full",
        lambda _: (
            "training.weight_copies has no effect with a hypernetwork, for which the U-Net's "
            "weights are frozen and in 16 bits already. Remove it"
        ),
    ),
    Rule(
        ("training.weight_copies",),
        lambda c: (
            c.training.weight_copies and (c.facts.processes or 1) > 1 and not c.facts.sharding
        ),
        lambda c: (
            f"training.weight_copies is for one process, and this run has {c.facts.processes}, "
            f"which exchange the gradients of the weights themselves. Remove it"
        ),
    ),
)
"""Rules about number formats and 16-bit copies of weights."""


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
            "learns from the outputs of frozen layers. Remove it"
        ),
    ),
    Rule(
        ("training.float8", "training.stream_weights"),
        lambda c: c.training.float8 and c.training.stream_weights,
        lambda _: (
            "training.float8 cannot be combined with stream_weights: it needs compile, which "
            "cannot either. Remove one of the two"
        ),
    ),
    Rule(
        ("training.float8", "training.compile"),
        lambda c: (
            c.training.float8 and c.training.compile == "off" and c.facts.sharding in ("", None)
        ),
        lambda _: (
            "training.float8 needs compile: scaling and rounding in separate kernels take "
            'longer than float8 saves. Set compile to "blocks" or "full", or float8 to false'
        ),
    ),
)
"""Rules about float8 products."""


KERNELS = (
    Rule(
        ("training.cuda_graphs",),
        lambda c: c.training.cuda_graphs != "off" and c.facts.device == "cpu",
        lambda _: "training.cuda_graphs is for GPUs, and this run has none. Remove it",
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
            "training.cuda_graphs network cannot be combined with gradient_accumulation_steps "
            f"{c.training.gradient_accumulation_steps}: a recorded pass writes its gradients over "
            "those of the one before. Remove one of the two, or set cuda_graphs to step"
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
            "training.cuda_graphs network cannot be combined with compile blocks and "
            "gradient_checkpointing: blocks that are computed again in the backward pass write "
            "over what was recorded. Remove one of them, set compile to full, or cuda_graphs to "
            "step"
        ),
    ),
    Rule(
        ("training.deterministic", "training.attention"),
        lambda c: c.training.deterministic and c.training.attention == "xformers",
        lambda _: (
            "training.deterministic cannot be combined with attention xformers, whose backward "
            "pass adds up in no fixed order: set attention to sdpa"
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
"""Rules about compiling, CUDA graphs and attention."""


STEP_GRAPHS = (
    Rule(
        ("training.cuda_graphs", "optimizer.kind", "optimizer.arguments"),
        lambda c: c.graphs_steps and not c.is_fused_adamw,
        lambda c: (
            "training.cuda_graphs step needs an optimizer that runs entirely on the GPU, which is "
            f"optimizer.kind adamw, fused; found {c.kind}"
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
            f"training.cuda_graphs step cannot be combined with {c.goes_by_chunks}, with which the "
            "CPU starts the update of the weights part by part. Remove that setting, or set "
            "cuda_graphs to off"
        ),
    ),
    Rule(
        ("training.cuda_graphs", "training.mixed_precision"),
        lambda c: c.graphs_steps and c.precision == "fp16",
        lambda _: (
            "training.cuda_graphs step cannot be combined with mixed_precision fp16, whose loss "
            "scale the CPU adjusts. Set mixed_precision to bf16, or cuda_graphs to off"
        ),
    ),
    Rule(
        ("training.cuda_graphs", "method.train_text_encoder"),
        lambda c: c.graphs_steps and c.config.trains_text_encoder,
        lambda _: (
            "training.cuda_graphs step cannot be combined with method.train_text_encoder, which "
            "reads token ids from the CPU in every step. Set one of the two to off"
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
            "training.cuda_graphs step cannot be combined with gradient_checkpointing and "
            "method.dropout, whose random numbers would have to be drawn again identically. Remove "
            "one of the three"
        ),
    ),
)
"""Rules about whole steps as CUDA graphs, which exclude any work of the CPU within a step."""
