"""Makes a model as loaded ready to draw, for `impasto sample` and for the worker of the studio."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from impasto.errors import ConfigError
from impasto.models.hypernetwork import HypernetworkStack
from impasto.models.loading import BaseModel, build_tokens
from impasto.models.text_metadata import prompt_layout
from impasto.models.tokens import Emphasis
from impasto.progress import counted
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler


def prepare_sampler(
    base: BaseModel,
    stack: HypernetworkStack,
    device: torch.device,
    clip_skip: int | None = None,
    emphasis: Emphasis = "mean",
    *,
    zeroes_empty: bool | None = None,
) -> Sampler:
    """Bring a model and its hypernetworks to a device; attaching them is left to the caller.

    Args:
        base: The model. Its VAE comes to the device only while it decodes.
        stack: The hypernetworks.
        device: Where it draws.
        clip_skip: CLIP's layer from the end; None means what the file says, or the last.
        emphasis: What `(cat:1.2)` does.
        zeroes_empty: Whether an empty negative prompt is zeros; None means what the model says.

    Raises:
        ConfigError: It is asked to be zeros, and the model's family knows no such thing.
    """
    if zeroes_empty and base.family.pipeline.zeroes_empty_text is None:
        raise ConfigError(
            f"An empty negative prompt as zeros has no effect: {base.contents.name} is "
            f"{base.family.name}, which always encodes the empty text. Take it out."
        )
    for network in (base.unet, *base.text_encoders.values()):
        network.to(device)
    for hypernetwork in stack.networks.values():
        hypernetwork.to(device).eval()
    layout = replace(prompt_layout(base.contents.metadata), emphasis=emphasis)
    drawer = replace(Sampler.of(base, clip_skip, layout), hypernetworks=stack)
    return drawer if zeroes_empty is None else replace(drawer, zeroes_empty_negative=zeroes_empty)


def with_strengths(prompt: Prompt, stack: HypernetworkStack, strength: float | None) -> Prompt:
    """A prompt that names every hypernetwork, so that its file tells what it was drawn with.

    Args:
        prompt: The prompt; strengths that it names stay.
        stack: The hypernetworks.
        strength: Of those that the prompt does not name; None means each its own.
    """
    tags = (
        f"<hypernet:{name}:{own if strength is None else strength:g}>"
        for name, own in stack.strengths.items()
        if name not in prompt.strengths
    )
    return replace(prompt, text=" ".join((prompt.text, *tags)))


def cut_warning(base: BaseModel, texts: Iterable[str], emphasis: Emphasis = "mean") -> str:
    """A sentence about prompts that are longer than the model reads; empty if none is."""
    layout = replace(prompt_layout(base.contents.metadata), emphasis=emphasis)
    cut = build_tokens(base, layout)[0].too_long(sorted(set(texts)))
    if not cut:
        return ""
    return (
        f"{counted(cut, 'prompts have')} over {layout.max_tokens} tokens; what is beyond is not "
        f"seen."
    )
