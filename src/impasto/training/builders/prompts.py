"""The prompts of previews that the settings ask for."""

from __future__ import annotations

from dataclasses import replace

from impasto.config.run import RunConfig
from impasto.sampling.prompt_files import read_prompt_file
from impasto.sampling.prompts import Prompt


def build_prompts(config: RunConfig) -> tuple[Prompt, ...]:
    """The previews that the settings ask for; their seeds rise by one.

    Raises:
        ConfigError: The file of prompts is missing or malformed.
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
