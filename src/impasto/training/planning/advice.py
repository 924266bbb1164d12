"""Warnings about unusual settings of a run, shown by `--plan` and before training."""

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
    "validation": "no images are held out; set validation.split or validation.image_dir for that",
    "previews": "no previews are drawn; set previews.prompts or previews.prompt_file for that",
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
    """Return warnings about unusual settings, most important first; an empty list if none apply.

    Args:
        config: The settings of the run.
        identity: The family and prediction type of the base model.
        device: The device that the run computes on.
        exposure: How many images a step has, and how often each is shown.
        weights: Number of trained weights.
        is_random: Whether the base model's weights are random: then no learning rate and no number
            of showings counts as unusual.

    Raises:
        ConfigError: The optimizer in the settings does not exist.
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
        "The base model was made by impasto init: its VAE has random weights too, and training "
        "does not change them, so its images will stay noise. Set model.vae to a trained VAE."
    ]


def _on_rates(config: RunConfig, exposure: Exposure, weights: int) -> list[str]:
    kind, rate = config.optimizer.kind, config.optimizer.lr
    (low, high), what = _usual_rates(config, exposure, weights)
    if low <= rate <= high:
        return []
    side = "above" if rate > high else "below"
    return [
        f"optimizer.lr {rate:g} is {side} the usual range for {kind} and {what} ({low:g} to "
        f"{high:.2g}).",
    ]


def _usual_rates(
    config: RunConfig, exposure: Exposure, weights: int
) -> tuple[tuple[float, float], str]:
    """Return the lowest and highest usual learning rate, and a description of the trained network.

    Small U-Nets, which are trained only for experiments, tolerate rates that depend on their size:
    for them the range is 0 to infinity. Only full-size ones have a usual rate.
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
        f"{counted(exposure.images, 'images')}. If they are shown more often, the model memorizes "
        f"them: a rising validation loss is the sign."
    ]


def _on_what_is_off(config: RunConfig) -> list[str]:
    """Warn about settings of validation or previews that have no effect because it is off.

    Return an empty list for a run that has already started.
    """
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
            f"the end of its text encoder: another layer's output is not what the U-Net was "
            f"trained with."
        )
    if identity.contradicted_by:
        found.append(
            f"The settings say that the model predicts {identity.prediction.name}, but its file "
            f"says otherwise ({identity.contradicted_by}). Trained with the wrong type, a model "
            f"forgets what it has learned: correct model.prediction_type or model.family "
            f"(--v_parameterization of sd-scripts)."
        )
    if config.noise.zero_terminal_snr and not identity.prediction.begins_in_noise:
        found.append(
            "noise.zero_terminal_snr is for models that predict velocity; this one predicts noise "
            "and learns nothing from the last timestep. Previews and the saved model have the "
            "original schedule."
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
            f"{config.optimizer.lr:g}; the text encoder forgets fast, so a half to a tenth of that "
            f"is usual."
        )
    return found


def _on_hypernetwork(config: RunConfig, identity: Identity) -> list[str]:
    """Warn about settings that users of AUTOMATIC1111's trainer report as failing.

    The numbers in the warnings are issues and pull requests of its repository.
    """
    asked = config.hypernetwork
    if asked is None:
        return []
    is_deep, is_linear = len(asked.layers) > 3, asked.activation == "linear"
    cases = [
        (
            asked.activate_output and not is_linear,
            "method.activate_output is reported to block learning, especially with relu "
            "(AUTOMATIC1111 #3698).",
        ),
        (
            asked.layer_norm,
            "method.layer_norm is reported to make training unstable, also by its author "
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
            f"as unstable, and [1, 2, 1] as better for small datasets (AUTOMATIC1111 #3505, "
            f"#3086).",
        ),
        (
            identity.family.upcast_attention and config.training.mixed_precision == "fp16",
            f"Hypernetworks on {identity.family.generation} in fp16 are reported to end in NaN "
            f"(AUTOMATIC1111 #6923); bf16 or no mixed precision is safer.",
        ),
    ]
    return [text for applies, text in cases if applies]


def _on_speed(config: RunConfig, device: torch.device) -> list[str]:
    """Warn about settings that slow a GPU down; an empty list on a CPU."""
    training = config.training
    if device.type != "cuda":
        return []
    cases = [
        (
            training.channels_last and training.compile == "off",
            "training.channels_last without training.compile is slower on a GPU: each group norm "
            "converts its input back to the usual memory layout.",
        ),
        (
            training.ema_on_cpu and training.ema_every == 1,
            "training.ema_on_cpu copies the trained weights over PCIe after every step and "
            "averages them in RAM; a fast GPU waits for that. training.ema_every = 10 does it "
            "only after every tenth step.",
        ),
    ]
    return [text for applies, text in cases if applies]
