"""The options for the precision in which each part of a model is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

    from impasto.checkpoints.keymap import ComponentKind

DTYPE = click.Choice(["fp32", "fp16", "bf16"])

F = TypeVar("F", bound=Callable[..., Any])


def precision_options(usual: str) -> Callable[[F], F]:
    """Add `--dtype`, `--unet-dtype`, `--text-encoder-dtype` and `--vae-dtype`.

    Args:
        usual: The default precision, in words for the help text.
    """
    options = (
        click.option("--dtype", type=DTYPE, help=f"Precision of all parts; default: {usual}."),
        click.option("--unet-dtype", type=DTYPE, help="Precision of the U-Net."),
        click.option("--text-encoder-dtype", type=DTYPE, help="Precision of the text encoder."),
        click.option("--vae-dtype", type=DTYPE, help="Precision of the VAE."),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def asked_dtypes(options: Mapping[str, Any]) -> Mapping[ComponentKind, torch.dtype]:
    """Return the requested precision of each kind of network; its own option overrides --dtype."""
    from impasto.models import families
    from impasto.models.writing.saving import DTYPES

    named = {
        setting: options[f"{setting}_dtype"] or options["dtype"] for setting in families.BY_SETTING
    }
    return families.by_kind({setting: DTYPES[name] for setting, name in named.items() if name})
