"""What goes with what: one table of the combinations of settings that a run refuses.

A row is a combination, by the settings that it names, and the sentence that a person reads. The
table is asked with what is known: when settings are loaded, of the settings alone; by `--plan` and
when a run is built, of its device and processes too; by the ladder of settings that take less
memory and by the advice after out-of-memory, before they offer a change. What is not known yet
(`None` in `Facts`) refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from impasto.config.cases import SETTINGS_ALONE, Case, Facts
from impasto.errors import ConfigError
from impasto.optimizer_table import ELEMENTWISE, one_rate_only

if TYPE_CHECKING:
    from impasto.config.run import RunConfig

FORMATS = {
    "full": ("safetensors", "ckpt", "diffusers"),
    "hypernetwork": ("a1111", "portable", "novelai", "safetensors"),
}
"""What the results of each method can be written as; the first is the usual one."""


@dataclass(frozen=True)
class Rule:
    """A combination of settings that is refused.

    Attributes:
        settings: Those that it is about, by section and field.
        applies: Whether a case is one of it.
        sentence: What a person reads, without a full stop.
    """

    settings: tuple[str, ...]
    applies: Callable[[Case], bool]
    sentence: Callable[[Case], str]


def _shards(
    settings: tuple[str, ...], applies: Callable[[Case], bool], words: Callable[[Case], str]
) -> Rule:
    """A row about a model that is sharded over processes."""
    return Rule(
        settings,
        lambda c: bool(c.facts.sharding) and applies(c),
        lambda c: (
            f"accelerate is configured for {c.facts.sharding}, which does not go with {words(c)}"
        ),
    )


RULES = (
    # precision and weights
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
    # compiling and kernels
    Rule(
        ("training.cuda_graphs",),
        lambda c: c.training.cuda_graphs and c.facts.device == "cpu",
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
        lambda c: c.training.cuda_graphs and c.training.compile == "off",
        lambda _: "training.cuda_graphs has no effect without compile",
    ),
    Rule(
        ("training.cuda_graphs", "training.gradient_accumulation_steps"),
        lambda c: c.training.cuda_graphs and c.training.gradient_accumulation_steps > 1,
        lambda c: (
            "training.cuda_graphs does not go with gradient_accumulation_steps "
            f"{c.training.gradient_accumulation_steps}: a recorded pass writes its gradients over "
            "those of the one before. Take one of the two out"
        ),
    ),
    Rule(
        ("training.cuda_graphs", "training.compile", "training.gradient_checkpointing"),
        lambda c: (
            c.training.cuda_graphs
            and c.training.compile == "blocks"
            and c.training.gradient_checkpointing
        ),
        lambda _: (
            "training.cuda_graphs does not go with compile blocks and gradient_checkpointing: "
            "blocks that are computed again in the backward pass write over what was recorded. "
            "Take one of them out, or set compile to full"
        ),
    ),
    Rule(
        ("training.deterministic", "training.attention"),
        lambda c: c.training.deterministic and c.training.attention == "xformers",
        lambda _: (
            "training.deterministic does not go with attention xformers, whose backward pass adds "
            "up in any order: take sdpa"
        ),
    ),
    Rule(
        ("training.checkpointed_levels", "training.gradient_checkpointing"),
        lambda c: (
            c.training.checkpointed_levels is not None and not c.training.gradient_checkpointing
        ),
        lambda _: "training.checkpointed_levels has no effect without gradient_checkpointing",
    ),
    # loss and noise
    Rule(
        ("loss.v_loss_as_noise_loss",),
        lambda c: c.config.loss.v_loss_as_noise_loss and c.facts.predicts_velocity is False,
        lambda _: (
            "loss.v_loss_as_noise_loss is for velocity models, and this one predicts noise. Take "
            "it out"
        ),
    ),
    Rule(
        ("loss.noise_loss_like_v",),
        lambda c: c.config.loss.noise_loss_like_v is not None and c.facts.predicts_velocity is True,
        lambda _: (
            "loss.noise_loss_like_v is for models that predict noise, and this one predicts "
            "velocity. Take it out"
        ),
    ),
    Rule(
        ("noise.zero_terminal_snr", "loss.debiased", "loss.noise_loss_like_v"),
        lambda c: (
            c.config.noise.zero_terminal_snr
            and c.facts.predicts_velocity is False
            and (c.config.loss.debiased or c.config.loss.noise_loss_like_v is not None)
        ),
        lambda _: (
            "noise.zero_terminal_snr makes the weights of loss.debiased and loss.noise_loss_like_v "
            "infinite where nothing is left of the image. Take one of them out"
        ),
    ),
    # optimizer
    Rule(
        (
            "optimizer.kind",
            "method.text_encoder_lr",
            "method.text_encoder_lrs",
            "method.block_lrs",
        ),
        lambda c: len(c.rates) > 1 and c.row.finds_lr,
        lambda c: one_rate_only(c.kind, c.rates),
    ),
    Rule(
        (
            "optimizer.kind",
            "training.weight_dtype",
            "training.optimizer_in_backward",
            "training.offload_optimizer",
        ),
        lambda c: bool(c.goes_by_chunks) and c.row.looks_at_all_together,
        lambda c: (
            f"optimizer.kind {c.kind} looks at all weights together and does not go with "
            f"{c.goes_by_chunks}. Take that setting out, or take another optimizer.kind"
        ),
    ),
    Rule(
        ("optimizer.kind", "training.ema_decay"),
        lambda c: c.training.ema_decay is not None and c.row.averages_weights,
        lambda c: (
            f"training.ema_decay and optimizer.kind {c.kind} both average the weights. Take one of "
            f"them out"
        ),
    ),
    Rule(
        ("training.offload_optimizer", "optimizer.kind"),
        lambda c: c.training.offload_optimizer and c.row.is_paged,
        lambda c: (
            f"training.offload_optimizer has no effect on optimizer.kind {c.kind}, whose state "
            f"CUDA moves to RAM by itself. Take it out"
        ),
    ),
    Rule(
        ("training.offload_optimizer",),
        lambda c: c.training.offload_optimizer and c.facts.device == "cpu",
        lambda _: (
            "training.offload_optimizer moves the optimizer's state out of VRAM, and this run "
            "computes on the CPU, where it would change nothing. Take it out"
        ),
    ),
    # streaming
    Rule(
        ("training.stream_weights",),
        lambda c: c.training.stream_weights and c.facts.device == "cpu",
        lambda _: (
            "training.stream_weights keeps weights out of VRAM, and this run computes on the CPU, "
            "where it would change nothing. Take it out"
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
            "training.stream_weights needs gradient_checkpointing of all levels: what is not "
            "computed again keeps its weights on the GPU. Set gradient_checkpointing = true, "
            "without checkpointed_levels"
        ),
    ),
    Rule(
        ("training.stream_weights", "training.optimizer_in_backward"),
        lambda c: c.training.stream_weights and not c.in_backward,
        lambda _: (
            "training.stream_weights needs optimizer_in_backward: weights are stepped while they "
            'are on the GPU. Set it to "exact" or "last_norm"'
        ),
    ),
    Rule(
        ("training.stream_weights", "method.kind"),
        lambda c: c.training.stream_weights and c.method.kind != "full",
        lambda _: (
            "training.stream_weights is for training the U-Net itself; beside a hypernetwork its "
            "weights stay on the GPU in 16 bits. Take it out"
        ),
    ),
    Rule(
        ("training.stream_weights", "training.channels_last"),
        lambda c: c.training.stream_weights and c.training.channels_last,
        lambda _: (
            "training.stream_weights does not go with channels_last, which helps compiled networks "
            "alone. Take channels_last out"
        ),
    ),
    Rule(
        ("training.stream_weights", "training.compile"),
        lambda c: c.training.stream_weights and c.training.compile != "off",
        lambda _: (
            "training.stream_weights does not go with compile, whose code keeps the place of each "
            'weight. Set compile to "off"'
        ),
    ),
    Rule(
        ("training.stream_weights", "training.ema_decay", "training.ema_on_cpu"),
        lambda c: (
            c.training.stream_weights
            and c.training.ema_decay is not None
            and not c.training.ema_on_cpu
        ),
        lambda _: (
            "training.stream_weights needs ema_on_cpu: the running average takes more VRAM than "
            "the weights that are taken out of it. Set ema_on_cpu = true"
        ),
    ),
    Rule(
        ("training.stream_weights", "optimizer.kind"),
        lambda c: c.training.stream_weights and c.row.is_paged,
        lambda c: (
            f"training.stream_weights does not go with optimizer.kind {c.kind}, whose state CUDA "
            f"moves by itself. Take {c.kind.removeprefix('paged_')} with offload_optimizer"
        ),
    ),
    Rule(
        ("training.stream_weights",),
        lambda c: c.training.stream_weights and (c.facts.processes or 1) > 1,
        lambda c: (
            f"training.stream_weights is for one process, and this run has {c.facts.processes}: "
            f"several share a model by FSDP. Take it out"
        ),
    ),
    Rule(
        ("training.optimizer_in_backward", "training.gradient_accumulation_steps"),
        lambda c: c.in_backward and c.training.gradient_accumulation_steps > 1,
        lambda c: (
            "training.optimizer_in_backward frees gradients at once, and "
            f"gradient_accumulation_steps {c.training.gradient_accumulation_steps} adds them up: "
            "take one of the two out"
        ),
    ),
    Rule(
        ("training.optimizer_in_backward", "training.mixed_precision"),
        lambda c: c.training.optimizer_in_backward == "last_norm" and c.precision == "fp16",
        lambda _: (
            "training.optimizer_in_backward last_norm does not go with mixed_precision fp16, whose "
            "gradients may overflow: take exact"
        ),
    ),
    Rule(
        ("training.optimizer_in_backward", "training.max_grad_norm"),
        lambda c: c.training.optimizer_in_backward == "last_norm" and c.training.max_grad_norm == 0,
        lambda _: (
            "training.optimizer_in_backward last_norm has nothing to limit with max_grad_norm 0: "
            "take exact, which costs nothing then"
        ),
    ),
    Rule(
        ("training.optimizer_in_backward",),
        lambda c: c.in_backward and (c.facts.processes or 1) > 1 and not c.facts.sharding,
        lambda c: (
            f"training.optimizer_in_backward is for one process, and this run has "
            f"{c.facts.processes}: they add up their gradients, which have to be kept for it. Set "
            f'it to "off" (--fused_backward_pass of sd-scripts asks for it)'
        ),
    ),
    # running average
    Rule(
        ("training.ema_decay", "training.ema_power", "training.ema_on_cpu", "training.ema_every"),
        lambda c: c.training.ema_decay is None and bool(c.ema_settings),
        lambda c: f"no effect without ema_decay: {c.ema_settings}",
    ),
    Rule(
        ("saving.average", "training.ema_decay"),
        lambda c: c.config.saving.average != "instead" and c.training.ema_decay is None,
        lambda _: "saving.average has no effect without training.ema_decay",
    ),
    # text encoder
    Rule(
        ("method.text_encoder_from_step", "training.max_steps", "training.max_epochs"),
        lambda c: c.never_learns,
        lambda c: (
            f"method.text_encoder_from_step {c.text_encoder_begins} is not before "
            + (
                f"training.max_steps {c.steps}"
                if c.training.max_steps
                else f"the end of training.max_epochs {c.training.max_epochs}, after {c.steps} "
                "steps"
            )
            + ": the text encoder would never learn"
        ),
    ),
    Rule(
        ("training.cache_text_to_disk", "method.train_text_encoder"),
        lambda c: c.training.cache_text_to_disk and c.config.trains_text_encoder,
        lambda _: (
            "training.cache_text_to_disk and method.train_text_encoder contradict each other: what "
            "a learning text encoder says changes with each step. Take one of them out"
        ),
    ),
    Rule(
        ("training.text_from_npz", "method.train_text_encoder"),
        lambda c: c.training.text_from_npz and c.config.trains_text_encoder,
        lambda _: (
            "training.text_from_npz and method.train_text_encoder contradict each other: what a "
            "learning text encoder says changes with each step. Take one of them out"
        ),
    ),
    Rule(
        ("training.text_from_npz", "method.templates", "method.template_file"),
        lambda c: (
            c.training.text_from_npz
            and c.config.hypernetwork is not None
            and bool(c.config.hypernetwork.templates or c.config.hypernetwork.template_file)
        ),
        lambda _: (
            "training.text_from_npz does not go with caption templates, which put other words "
            "around a caption each time. Take one of the two out"
        ),
    ),
    Rule(
        ("training.text_from_npz", "model.max_tokens", "model.token_join"),
        lambda c: (
            c.training.text_from_npz
            and c.config.model.max_tokens > 75
            and c.config.model.token_join == "kohya"
        ),
        lambda c: (
            f"training.text_from_npz has no effect with model.max_tokens "
            f"{c.config.model.max_tokens} and model.token_join kohya, which encode every caption "
            f"as {c.config.model.max_tokens // 75} chunks, and files of one chunk are used. Set "
            f"max_tokens to 75 or token_join to a1111, or take text_from_npz out"
        ),
    ),
    # held-out images
    Rule(
        ("saving.best_model", "validation.split", "validation.image_dir"),
        lambda c: c.config.saving.best_model and not c.holds_out,
        lambda _: (
            "saving.best_model needs held-out images: set validation.split or validation.image_dir"
        ),
    ),
    Rule(
        ("validation.image_dir", "dataset.validation_split"),
        lambda c: c.split_twice,
        lambda _: (
            "validation.image_dir and validation_split of a dataset contradict each other: take "
            "one of them out"
        ),
    ),
    # what is written
    Rule(
        ("saving.format", "method.kind"),
        lambda c: c.config.saving.format not in (None, *FORMATS[c.method.kind]),
        lambda c: (
            f"saving.format {c.config.saving.format} is not one of method.kind {c.method.kind}, "
            f"which has {', '.join(FORMATS[c.method.kind])}"
        ),
    ),
    Rule(
        ("method.kind", "saving.unet_dtype", "saving.text_encoder_dtype", "saving.vae_dtype"),
        lambda c: c.method.kind == "hypernetwork" and bool(c.config.saving.part_dtypes),
        lambda c: (
            f"saving.{next(iter(c.config.saving.part_dtypes))}_dtype has no effect on a "
            f"hypernetwork"
        ),
    ),
    Rule(
        ("method.kind", "saving.export_dtype"),
        lambda c: c.method.kind == "hypernetwork" and c.config.export_precision == "bf16",
        lambda _: "saving.export_dtype of a hypernetwork is fp32 or fp16",
    ),
    # a model that is sharded over processes
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
"""Every combination that is refused, of settings and of what is known beside them."""


def conflicts(config: RunConfig, facts: Facts = SETTINGS_ALONE) -> Iterator[str]:
    """The sentences of the rows that settings are a case of, without full stops."""
    case = Case(config, facts)
    return (rule.sentence(case) for rule in RULES if rule.applies(case))


def goes_together(config: RunConfig, facts: Facts = SETTINGS_ALONE) -> bool:
    """Whether no row of the table refuses these settings."""
    return next(conflicts(config, facts), None) is None


def require_compatible(config: RunConfig, facts: Facts) -> None:
    """Make sure that settings go together.

    Raises:
        ConfigError: They do not; with the sentence of the first row that refuses them.
    """
    sentence = next(conflicts(config, facts), None)
    if sentence is not None:
        raise ConfigError(f"{sentence}.")
