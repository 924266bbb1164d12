"""Refused combinations of settings of the optimizer, and of averages of the weights."""

from __future__ import annotations

from impasto.config.rule import Rule
from impasto.optimizer_table import not_by_chunks, one_rate_only

OPTIMIZER = (
    Rule(
        (
            "optimizer.kind",
            "method.text_encoder_lr",
            "method.text_encoder_lrs",
            "method.block_lrs",
        ),
        lambda c: len(c.rates) > 1 and c.row.finds_lr,
        lambda c: one_rate_only(c.kind, c.rates, c.settings_of_rates),
    ),
    Rule(
        (
            "optimizer.kind",
            "training.weight_dtype",
            "training.optimizer_in_backward",
            "training.offload_optimizer",
        ),
        lambda c: bool(c.goes_by_chunks) and c.row.looks_at_all_together,
        lambda c: not_by_chunks(c.kind, c.goes_by_chunks),
    ),
    Rule(
        (
            "optimizer.kind",
            "training.weight_dtype",
            "training.optimizer_in_backward",
            "training.offload_optimizer",
        ),
        lambda c: bool(c.goes_by_chunks) and c.row.is_coupled,
        lambda c: not_by_chunks(c.kind, c.goes_by_chunks),
        of_new_runs=True,
    ),
    Rule(
        ("optimizer.kind", "training.ema_decay", "training.posthoc_ema"),
        lambda c: c.training.averages > 0 and c.row.averages_weights,
        lambda c: (
            f"training.{'ema_decay' if c.training.ema_decay is not None else 'posthoc_ema'} and "
            f"optimizer.kind {c.kind} both average the weights. Remove one of them"
        ),
    ),
    Rule(
        (
            "optimizer.start_decay",
            "optimizer.kind",
            "training.weight_dtype",
            "training.optimizer_in_backward",
            "training.offload_optimizer",
            "training.cuda_graphs",
        ),
        lambda c: c.config.optimizer.start_decay > 0 and bool(c.stands_against_pull),
        lambda c: (
            f"optimizer.start_decay needs weights in float32 that are updated all together and "
            f"in place, and cannot be combined with {c.stands_against_pull}. Remove one of them"
        ),
    ),
    Rule(
        ("optimizer.start_decay", "optimizer.lr", "method.block_lrs", "method.text_encoder_lr"),
        lambda c: c.config.optimizer.start_decay * max(c.rates, default=0) >= 1,
        lambda c: (
            f"optimizer.start_decay {c.config.optimizer.start_decay:g} times the learning rate "
            f"{max(c.rates):g} is 1 or more, so that each step would undo everything that was "
            f"learned. Make it smaller"
        ),
    ),
    Rule(
        ("schedule.warmup_steps", "schedule.decay_steps", "training.max_steps"),
        lambda c: c.steps is not None and c.config.schedule.least_steps(c.steps) > c.steps,
        lambda c: (
            f"schedule.warmup_steps {c.config.schedule.warmup_steps} and schedule.decay_steps "
            f"{c.config.schedule.decay_steps} add up to more than the {c.steps} steps of the "
            f"run. Make them smaller, or the run longer"
        ),
        of_new_runs=True,
    ),
    Rule(
        ("optimizer.arguments", "optimizer.kind", "optimizer.weight_decay"),
        lambda c: c.kind.lower().endswith("prodigy") and c.adds_decay_to_gradients,
        lambda c: (
            f"optimizer.arguments weight_decouple = false: {c.kind} would add the decay to the "
            f"gradient after its last use, so that weight_decay would have no effect. Remove it: "
            f"the weights then decay as with AdamW"
        ),
        of_new_runs=True,
    ),
    Rule(
        ("training.offload_optimizer", "optimizer.kind"),
        lambda c: c.training.offload_optimizer and c.row.is_paged,
        lambda c: (
            f"training.offload_optimizer has no effect on optimizer.kind {c.kind}, whose state "
            f"CUDA moves to RAM by itself. Remove it"
        ),
    ),
    Rule(
        ("training.offload_optimizer",),
        lambda c: c.training.offload_optimizer and c.facts.device == "cpu",
        lambda _: (
            "training.offload_optimizer moves the optimizer's state out of VRAM, and this run "
            "computes on the CPU, where it would change nothing. Remove it"
        ),
    ),
)
"""Rules about optimizers, and where their updates and states are."""


AVERAGE = (
    Rule(
        (
            "training.ema_decay",
            "training.ema_power",
            "training.ema_on_cpu",
            "training.ema_every",
            "training.posthoc_ema",
        ),
        lambda c: c.training.ema_decay is None and bool(c.ema_settings),
        lambda c: f"no effect without ema_decay: {c.ema_settings}",
    ),
    Rule(
        ("saving.average", "training.ema_decay"),
        lambda c: c.config.saving.average != "instead" and c.training.ema_decay is None,
        lambda _: "saving.average has no effect without training.ema_decay",
    ),
    Rule(
        ("training.posthoc_ema", "saving.posthoc_every_steps", "saving.posthoc_dtype"),
        lambda c: bool(c.posthoc_setting) and not c.training.posthoc_ema,
        lambda c: f"saving.{c.posthoc_setting} has no effect without training.posthoc_ema",
    ),
    Rule(
        ("training.posthoc_ema", "method.kind"),
        lambda c: c.training.posthoc_ema and c.method.kind != "full",
        lambda _: (
            "training.posthoc_ema is for method.kind full: impasto ema makes whole models. Remove "
            "it, or average a hypernetwork with training.ema_decay"
        ),
    ),
    Rule(
        (
            "training.ema_decay",
            "training.posthoc_ema",
            "training.ema_every",
            "training.max_steps",
        ),
        lambda c: (
            c.training.averages > 0 and c.steps is not None and c.steps < c.training.ema_every
        ),
        lambda c: (
            f"training.ema_every {c.training.ema_every} is more than the {c.steps} steps of the "
            f"run, so that training.{'posthoc_ema' if c.training.posthoc_ema else 'ema_decay'} "
            f"would never be updated. Make it smaller"
        ),
        of_new_runs=True,
    ),
    Rule(
        ("training.posthoc_ema", "training.ema_every", "saving.posthoc_every_steps"),
        lambda c: (
            c.training.posthoc_ema
            and c.config.saving.posthoc_every_steps is not None
            and c.config.saving.posthoc_every_steps % c.training.ema_every != 0
        ),
        lambda c: (
            f"saving.posthoc_every_steps {c.config.saving.posthoc_every_steps} is not a multiple "
            f"of training.ema_every {c.training.ema_every}: the averages would be stored without "
            "the last weights. Make it a multiple"
        ),
    ),
)
"""Rules about running averages of the weights."""
