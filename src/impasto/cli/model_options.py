"""The options of every verb that opens a model."""

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
    vae = click.option("--vae", help="Another VAE: a Diffusers folder or id, a file, or a model.")
    return options_without_vae(vae(command))


def options_without_vae(command: F) -> F:
    """Add `--family`, `--prediction-type`, `--weights` and `--variant`, where no VAE is used."""
    options = (
        click.option(
            "--family",
            type=click.Choice(FAMILY_KEYS),
            help="What the model is, where its files do not tell.",
        ),
        click.option(
            "--prediction-type",
            type=click.Choice(["epsilon", "v_prediction"]),
            help="What its U-Net predicts, where its files do not tell.",
        ),
        click.option(
            "--weights",
            type=click.Choice(["auto", "plain", "ema"]),
            default="auto",
            show_default=True,
            help="Which weights of a model that also has averaged (EMA) ones; auto is plain, and "
            "of a Diffusers folder its main file.",
        ),
        click.option("--variant", help="Which files of a Diffusers folder, such as fp16."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_options(values: dict[str, Any]) -> OpenOptions:
    """What the user said with them; takes them out of `values`."""
    from impasto.models.reading.opening import OpenOptions

    names = ("family", "prediction_type", "weights", "variant")
    return OpenOptions(**{name: values.pop(name) for name in names}, vae=values.pop("vae", None))
