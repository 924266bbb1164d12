"""Chooses how the processes of a run hold what they train: by accelerate and the settings."""

from __future__ import annotations

from accelerate import Accelerator

from impasto.config.run import RunConfig
from impasto.errors import ConfigError
from impasto.training.devices import asks_for
from impasto.training.optim.optimizers import find_row
from impasto.training.parallel.accelerate_config import reshard_after_forward
from impasto.training.parallel.strategy import DataParallelStrategy, ParallelStrategy

EACH_NUMBER_ALONE = {
    "Adadelta", "Adam", "Adamax", "AdamW", "ASGD", "Lion", "NAdam", "PagedAdamW",
    "PagedAdamW32bit", "RAdam", "RMSprop", "Rprop", "SGD",
}  # fmt: skip
"""Optimizers that change each number by its own gradients, so that any share of a tensor will do.

Those with 8-bit states share a scale among neighbours; Adafactor, Muon and the like look at rows
and columns; Prodigy, D-Adaptation and schedule-free ones at all weights together."""


def build_strategy(config: RunConfig, accelerator: Accelerator) -> ParallelStrategy:
    """How the processes of this run hold what they train.

    Raises:
        ConfigError: A setting does not go with what accelerate is configured for.
    """
    if accelerator.num_processes == 1:
        if asks_for("FSDP") or asks_for("DEEPSPEED"):
            raise ConfigError(
                "accelerate is configured to share the model out over processes, and there is "
                "one. Start several (accelerate launch --num_processes), or run `accelerate "
                "config` and choose neither FSDP nor DeepSpeed."
            )
        return DataParallelStrategy(accelerator)
    if asks_for("FSDP"):
        from impasto.training.parallel.fsdp import FsdpStrategy

        require_shardable(config, "FSDP")
        return FsdpStrategy(accelerator, reshard_after_forward=reshard_after_forward())
    if asks_for("DEEPSPEED"):
        from impasto.training.parallel.deepspeed import DeepSpeedStrategy, deepspeed_config

        require_shardable(config, "DeepSpeed")
        training = config.training
        settings = deepspeed_config(
            accelerator,
            max_grad_norm=training.max_grad_norm,
            accumulation=training.gradient_accumulation_steps,
        )
        return DeepSpeedStrategy(accelerator, settings)
    return DataParallelStrategy(accelerator)


def require_shardable(config: RunConfig, how: str) -> None:
    """Make sure that the settings go with a model that is shared out.

    Raises:
        ConfigError: One does not; with what to set.
    """
    training, kind = config.training, config.optimizer.kind
    names = ", ".join(sorted(EACH_NUMBER_ALONE))
    problems: dict[str, bool] = {
        'method.kind = "hypernetwork", of which there is little to share: run `accelerate config` '
        "and choose no FSDP or DeepSpeed": config.method.kind != "full",
        f'training.weights = "{training.weights}": set it to "fp32"': training.weights != "fp32",
        'training.optimizer_in_backward: set it to "off"': training.optimizer_in_backward != "off",
        "training.offload_optimizer: take it out": training.offload_optimizer,
        'training.compile: set it to "off"': training.compile != "off",
        "training.channels_last: take it out": training.channels_last,
        "training.weight_copies: take it out": training.weight_copies,
        f'optimizer.kind = "{kind}", which looks at more than one number at a time: take one of '
        f"{names}": find_row(kind).name not in EACH_NUMBER_ALONE,
        'training.mixed_precision = "fp16": set it to "bf16" or "no", or choose FSDP':
            how == "DeepSpeed" and training.mixed_precision == "fp16",
        "method.text_encoder_from_step or text_encoder_until_step, since it goes on with weights "
        "that have no gradient: take them out, or choose FSDP":
            how == "DeepSpeed"
            and (config.method.text_encoder_from_step > 0
                 or config.method.text_encoder_until_step is not None),
    }  # fmt: skip
    for words, is_there in problems.items():
        if is_there:
            raise ConfigError(
                f"accelerate is configured for {how}, which does not go with {words}."
            )
