"""Records in a model's file how its captions were laid out, so that prompts are laid out alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from impasto.models.tokenization.tokens import Emphasis, TextLayout
from impasto.parsing import parse_json

LAYOUT_KEY = "impasto.text_layout"
EMPTY_TEXT_KEY, ZEROS = "impasto.empty_text", "zeros"
"""Metadata stating that an empty prompt is zeros; without it, the empty text is encoded."""

PROMPT_TOKENS = 225


def layout_metadata(layout: TextLayout) -> dict[str, str]:
    """Return the metadata that records how a model's captions were laid out."""
    return {LAYOUT_KEY: json.dumps(asdict(layout))}


def prompt_layout(metadata: Mapping[str, str]) -> TextLayout:
    """Return the layout of prompts: that of training if the file states it, else A1111's.

    In A1111's layout a long prompt only takes as many chunks as it needs, so prompts are never cut
    at 75.
    """
    try:
        stated = parse_json(metadata.get(LAYOUT_KEY, "{}"))
        layout = TextLayout(**{**stated, "emphasis": "mean"})
    except (ValueError, TypeError):
        layout = TextLayout(emphasis="mean")
    return with_max_tokens(layout, layout.emphasis)


def with_max_tokens(layout: TextLayout, emphasis: Emphasis) -> TextLayout:
    """Return the layout of prompts for a model that was trained with a layout of captions.

    If a text takes only as many chunks as it needs, prompts may have 225 tokens. If texts always
    have full length, a longer one would be unlike anything that the model was trained on.
    """
    room = layout.max_tokens if layout.rules.fixed_length else PROMPT_TOKENS
    return replace(layout, max_tokens=room, emphasis=emphasis)
