"""What is unusual about a run's settings, in sentences; shown by `--plan` and before training."""

from __future__ import annotations

import torch

from impasto.config.run import RunConfig
from impasto.diffusion.prediction import VELOCITY
from impasto.models.identity import Identity
from impasto.optimizer_table import USUAL_LR
from impasto.training.optim.optimizers import find_row

USUAL_HYPERNETWORK_LR = (1e-7, 5e-5)
_NO_NESTEROV = (
    "optimizer.kind sgd_nesterov8bit: bitsandbytes' SGD has ordinary momentum only, here as in "
    "sd-scripts."
)


def advice_on(config: RunConfig, identity: Identity, device: torch.device) -> list[str]:
    """Warnings, the weightiest first; nothing where all is usual.

    Args:
        config: The settings.
        identity: Of the base model.
        device: What the run computes on.

    Raises:
        ConfigError: There is no such optimizer.
    """
    return [
        *_on_rates(config),
        *_on_model(config, identity),
        *_on_text(config),
        *_on_hypernetwork(config, identity),
        *_on_speed(config, device),
    ]


def _on_rates(config: RunConfig) -> list[str]:
    optimizer = config.optimizer
    row = find_row(optimizer.kind)
    nesterov = [_NO_NESTEROV] if optimizer.kind == "sgd_nesterov8bit" else []
    low, high = row.usual_lr
    what = "a whole U-Net"
    if config.method.kind == "hypernetwork":
        low, high = USUAL_HYPERNETWORK_LR
        what = "a hypernetwork"
    if row.usual_lr != USUAL_LR:
        low, high = row.usual_lr
    if low <= optimizer.lr <= high:
        return nesterov
    side = "above" if optimizer.lr > high else "below"
    return [
        f"optimizer.lr {optimizer.lr:g} is {side} what is usual for {optimizer.kind} and {what} "
        f"({low:g} to {high:g}).",
        *nesterov,
    ]


def _on_model(config: RunConfig, identity: Identity) -> list[str]:
    found = []
    family = identity.family
    if config.model.clip_skip is not None and not family.takes_any_layer:
        found.append(
            f"model.clip_skip is set for {family.generation}, of which the penultimate layer of "
            f"the text encoder is taken already."
        )
    if identity.contradicted_by:
        found.append(
            f"The settings say that the model predicts {identity.prediction.name}, against what it "
            f"says itself ({identity.contradicted_by}). Trained so, it unlearns what it knows: set "
            f"model.prediction_type or model.family (--v_parameterization of sd-scripts) as it is."
        )
    if config.noise.zero_terminal_snr and identity.prediction is not VELOCITY:
        found.append(
            "noise.zero_terminal_snr is for models that predict velocity; this one predicts noise "
            "and learns nothing from the last step."
        )
    return found


def _on_text(config: RunConfig) -> list[str]:
    method, found = config.method, list[str]()
    if method.kind != "full" or not method.train_text_encoder:
        return found
    rates = {
        "lr": method.text_encoder_lr or 0,
        "lrs": max(method.text_encoder_lrs.values(), default=0),
    }
    setting, rate = max(rates.items(), key=lambda pair: pair[1])
    if rate > config.optimizer.lr:
        found.append(
            f"method.text_encoder_{setting} {rate:g} is above the U-Net's "
            f"{config.optimizer.lr:g}; the text encoder forgets fast, so a half to a tenth is "
            f"usual."
        )
    return found


def _on_hypernetwork(config: RunConfig, identity: Identity) -> list[str]:
    """What users of AUTOMATIC1111's trainer report as failing; its threads and pull requests."""
    asked = config.hypernetwork
    if asked is None:
        return []
    is_deep, is_linear = len(asked.layers) > 3, asked.activation == "linear"
    cases = [
        (
            asked.activate_output and not is_linear,
            "method.activate_output is reported to block learning, with relu above all "
            "(AUTOMATIC1111 #3698).",
        ),
        (
            asked.layer_norm,
            "method.layer_norm is reported to make training unstable, by its author too "
            "(AUTOMATIC1111 #3086).",
        ),
        (
            is_deep and bool(asked.dropout),
            "Dropout in a deep hypernetwork is reported to learn nothing (AUTOMATIC1111 #3414, "
            "#3518).",
        ),
        (
            is_deep and not is_linear,
            f"Hypernetworks of {len(asked.layers) - 1} layers with {asked.activation} are reported "
            f"as erratic, and [1, 2, 1] as better for small sets (AUTOMATIC1111 #3505, #3086).",
        ),
        (
            identity.family.upcast_attention and config.training.mixed_precision == "fp16",
            f"Hypernetworks on {identity.family.generation} in fp16 are reported to end in NaN "
            f"(AUTOMATIC1111 #6923); bf16 or no mixed precision is safer.",
        ),
    ]
    return [text for applies, text in cases if applies]


def _on_speed(config: RunConfig, device: torch.device) -> list[str]:
    """Advice about settings that make a GPU wait."""
    training = config.training
    if device.type != "cuda":
        return []
    cases = [
        (
            training.channels_last and training.compile == "off",
            "training.channels_last without training.compile makes a GPU slower: each group norm "
            "puts its input back into the usual order.",
        ),
        (
            training.ema_on_cpu and training.ema_every == 1,
            "training.ema_on_cpu takes what learns over PCIe after every step, and mixes it in "
            "RAM; a fast GPU waits for that. training.ema_every = 10 does so "
            "after every tenth.",
        ),
    ]
    return [text for applies, text in cases if applies]
