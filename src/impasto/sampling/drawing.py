"""Prepares a loaded model for generating images, for `impasto sample` and the studio's worker."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import replace

import torch

from impasto.models.networks.hypernetwork import HypernetworkStack
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.text.text_conditioner import require_zeroes_empty_text
from impasto.models.tokenization.text_metadata import prompt_layout
from impasto.models.tokenization.tokens import Emphasis
from impasto.parsing import printable
from impasto.progress import counted
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler

_MOST_NAMED = 3  # truncated prompts listed in the warning


def prepare_sampler(
    base: BaseModel,
    stack: HypernetworkStack,
    device: torch.device,
    clip_skip: int | None = None,
    emphasis: Emphasis = "mean",
    *,
    zeroes_empty_text: bool | None = None,
) -> Sampler:
    """Bring a model and its hypernetworks to a device; the caller attaches the hypernetworks.

    Args:
        base: The model. Its VAE is brought to the device only while it decodes.
        stack: The hypernetworks.
        device: Device on which images are generated.
        clip_skip: CLIP layer, counted from the end; None means that stated in the file, or the
            last.
        emphasis: Effect of emphasis such as `(cat:1.2)`.
        zeroes_empty_text: Whether an empty negative prompt is zeros; None means as the model
            states.

    Raises:
        ConfigError: Zeros are requested, and the model's family always encodes the empty text.
    """
    if zeroes_empty_text:
        require_zeroes_empty_text(base, "An empty negative prompt as zeros")
    for network in (base.unet, *base.text_encoders.values()):
        network.to(device)
    for hypernetwork in stack.networks.values():
        hypernetwork.to(device).eval()
    layout = replace(prompt_layout(base.contents.metadata), emphasis=emphasis)
    drawer = replace(Sampler.of(base, clip_skip, layout), hypernetworks=stack)
    if zeroes_empty_text is None:
        return drawer
    return replace(drawer, zeroes_empty_text=zeroes_empty_text)


def with_strengths(prompt: Prompt, stack: HypernetworkStack, strength: float | None) -> Prompt:
    """Return a prompt that names every hypernetwork, so that its file records their strengths.

    Args:
        prompt: The prompt; strengths that it names are unchanged.
        stack: The hypernetworks.
        strength: Strength of hypernetworks that the prompt does not name; None means each its own.
    """
    tags = (
        f"<hypernet:{name}:{own if strength is None else strength:g}>"
        for name, own in stack.strengths.items()
        if name not in prompt.strengths
    )
    return replace(prompt, text=" ".join((prompt.text, *tags)))


def cut_warning(base: BaseModel, texts: Iterable[str], emphasis: Emphasis = "mean") -> str:
    """Return a warning about prompts that are longer than the model reads; empty if none is."""
    layout = replace(prompt_layout(base.contents.metadata), emphasis=emphasis)
    tokens = build_tokens(base, layout)[0]
    cut = [text for text in dict.fromkeys(texts) if tokens.too_long([text])]
    if not cut:
        return ""
    named = ", ".join(repr(printable(textwrap.shorten(text, 40))) for text in cut[:_MOST_NAMED])
    more = "" if len(cut) <= _MOST_NAMED else f" and {len(cut) - _MOST_NAMED} more"
    return (
        f"{counted(len(cut), 'prompts have')} over {layout.max_tokens} tokens; the rest is "
        f"ignored: {named}{more}."
    )
