"""The options of every command that opens a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from impasto.family_keys import FAMILY_KEYS

if TYPE_CHECKING:
    from impasto.models.reading.opening import OpenOptions

F = TypeVar("F", bound=Callable[..., Any])


def model_options(command: F) -> F:
    """Add `--family`, `--prediction-type`, `--weights`, `--variant` and `--vae`."""
    vae = click.option(
        "--vae",
        help="Use this VAE instead: a VAE file, a Diffusers folder or Hub id, or that of a model.",
    )
    return options_without_vae(vae(command))


def options_without_vae(command: F) -> F:
    """Add `--family`, `--prediction-type`, `--weights` and `--variant`, but not `--vae`."""
    options = (
        click.option(
            "--family",
            type=click.Choice(FAMILY_KEYS),
            help="The model's family, if it cannot be detected from its files.",
        ),
        click.option(
            "--prediction-type",
            type=click.Choice(["epsilon", "v_prediction"]),
            help="What the U-Net predicts, if it cannot be detected from the model's files.",
        ),
        click.option(
            "--weights",
            type=click.Choice(["auto", "plain", "ema"]),
            default="auto",
            show_default=True,
            help="Which weights to use if the model also contains averaged (EMA) weights: the "
            "plain or the EMA ones. auto: the plain ones, or the main file of a Diffusers folder.",
        ),
        click.option(
            "--variant", help="Which variant of the files in a Diffusers folder, such as fp16."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_options(values: dict[str, Any]) -> OpenOptions:
    """Build the settings for opening a model from these options, removing them from `values`."""
    from impasto.models.reading.opening import OpenOptions

    names = ("family", "prediction_type", "weights", "variant")
    return OpenOptions(**{name: values.pop(name) for name in names}, vae=values.pop("vae", None))
