"""What is unusual about a run's settings, in sentences; shown by `--plan` and before training."""

from __future__ import annotations

import math

import torch

from impasto.config.cases import SETTINGS_ALONE, Case
from impasto.config.run import RunConfig
from impasto.models.reading.identity import Identity
from impasto.optimizer_table import USUAL_LR
from impasto.progress import counted
from impasto.training.optim.optimizers import find_row
from impasto.training.planning.exposure import FULL_SIZE, Exposure, highest_usual_lr

USUAL_HYPERNETWORK_LR = (1e-7, 5e-5)
_NO_NESTEROV = (
    "optimizer.kind sgd_nesterov8bit: bitsandbytes' SGD has ordinary momentum only, here as in "
    "sd-scripts."
)
_SWITCHED_OFF = {
    "validation": "no images are held out; validation.split or validation.image_dir holds some out",
    "previews": "no previews are drawn; previews.prompts or previews.prompt_file has some drawn",
}


def advice_on(
    config: RunConfig,
    identity: Identity,
    device: torch.device,
    exposure: Exposure,
    weights: int,
    *,
    is_random: bool = False,
) -> list[str]:
    """Warnings, the weightiest first; nothing where all is usual.

    Args:
        config: The settings.
        identity: Of the base model.
        device: What the run computes on.
        exposure: How many images a step has, and how often each comes.
        weights: How many numbers learn.
        is_random: Whether the base model's weights are random: then no rate and no number of looks
            is unusual.

    Raises:
        ConfigError: There is no such optimizer.
    """
    return [
        *([_NO_NESTEROV] if config.optimizer.kind == "sgd_nesterov8bit" else []),
        *(_on_random_weights(config) if is_random else _on_rates(config, exposure, weights)),
        *([] if is_random else _on_looks(config, exposure)),
        *_on_what_is_off(config),
        *_on_model(config, identity),
        *_on_text(config),
        *_on_hypernetwork(config, identity),
        *_on_speed(config, device),
    ]


def _on_random_weights(config: RunConfig) -> list[str]:
    if config.model.vae is not None:
        return []
    return [
        "The model is as impasto init has made it: its VAE is random too, and training does not "
        "change that, so it will never draw anything. Set model.vae to a trained one."
    ]


def _on_rates(config: RunConfig, exposure: Exposure, weights: int) -> list[str]:
    kind, rate = config.optimizer.kind, config.optimizer.lr
    (low, high), what = _usual_rates(config, exposure, weights)
    if low <= rate <= high:
        return []
    side = "above" if rate > high else "below"
    return [
        f"optimizer.lr {rate:g} is {side} what is usual for {kind} and {what} ({low:g} to "
        f"{high:.2g}).",
    ]


def _usual_rates(
    config: RunConfig, exposure: Exposure, weights: int
) -> tuple[tuple[float, float], str]:
    """The lowest and the highest rate that are usual, and for what; infinite where none is known.

    Nobody trains small U-Nets but to try something out, and what they bear follows from their
    size: only full-size ones have a usual rate.
    """
    row = find_row(config.optimizer.kind)
    low, high = row.usual_lr
    if row.finds_lr:
        return (low, high), "a whole U-Net"
    if config.method.kind == "hypernetwork":
        bounds = USUAL_HYPERNETWORK_LR if row.usual_lr == USUAL_LR else row.usual_lr
        return bounds, "a hypernetwork"
    if weights < FULL_SIZE:
        return (0.0, math.inf), "a small U-Net"
    most = highest_usual_lr(high, exposure.per_step)
    number = f"{exposure.per_step:.3g}"
    return (low, most), f"a whole U-Net at {number} image{'s' * (number != '1')} a step"


def _on_looks(config: RunConfig, exposure: Exposure) -> list[str]:
    low, high = exposure.usual_looks
    if config.method.kind == "hypernetwork" or exposure.looks <= high:
        return []
    return [
        f"Each image is shown {exposure.looks:,.0f} times; {low} to {high} is usual for "
        f"{counted(exposure.images, 'images')}. Shown more often they are learnt by heart: the "
        f"validation loss tells when."
    ]


def _on_what_is_off(config: RunConfig) -> list[str]:
    """Settings of validation and previews that are off; a run that was begun keeps what it has."""
    idle = {} if config.is_begun else Case(config, SETTINGS_ALONE).idle_settings
    return [
        f"{' and '.join(f'{section}.{name}' for name in names)} {'have' if names[1:] else 'has'} "
        f"no effect: {_SWITCHED_OFF[section]}."
        for section, names in idle.items()
    ]


def _on_model(config: RunConfig, identity: Identity) -> list[str]:
    found = []
    family = identity.family
    layer, own = config.model.clip_skip, family.text_encoders[0].text.layer
    if layer not in (None, own) and not family.takes_any_layer:
        found.append(
            f"model.clip_skip is {layer}, but {family.generation} was trained at layer {own} from "
            f"the end of its text encoder: words mean something else at another one."
        )
    if identity.contradicted_by:
        found.append(
            f"The settings say that the model predicts {identity.prediction.name}, against what it "
            f"says itself ({identity.contradicted_by}). Trained like this, it forgets what it "
            f"knows: set model.prediction_type or model.family (--v_parameterization of "
            f"sd-scripts) to what it is."
        )
    if config.noise.zero_terminal_snr and not identity.prediction.begins_in_noise:
        found.append(
            "noise.zero_terminal_snr is for models that predict velocity; this one predicts noise "
            "and learns nothing from the last step. Previews and the model that is saved have the "
            "schedule as it was."
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
