"""Builds the prompts of previews from the settings."""

from __future__ import annotations

from dataclasses import replace

from impasto.config.run import RunConfig
from impasto.sampling.prompt_files import read_prompt_file
from impasto.sampling.prompts import Prompt


def build_prompts(config: RunConfig) -> tuple[Prompt, ...]:
    """Return the preview prompts of the settings, those of `previews.prompts` before the file's.

    Each has the seed of the one before it plus one, unless the file sets it.

    Raises:
        ConfigError: The prompt file is missing or malformed.
    """
    previews = config.previews
    first = Prompt(
        "",
        previews.negative_prompt,
        previews.seed,
        previews.width,
        previews.height,
        previews.steps,
        previews.guidance_scale,
        previews.sampler,
        previews.guidance_rescale,
    )
    own = [
        replace(first, text=text, seed=first.seed + number)
        for number, text in enumerate(previews.prompts)
    ]
    if previews.prompt_file is not None:
        following = replace(first, seed=first.seed + len(own))
        own += read_prompt_file(previews.prompt_file, following)
    return tuple(own)
