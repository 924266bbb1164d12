"""How a model was taught to read text, in its file, so that samples read it the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from impasto.models.tokenization.tokens import Emphasis, TextLayout
from impasto.parsing import parse_json

LAYOUT_KEY = "impasto.text_layout"
EMPTY_TEXT_KEY, ZEROS = "impasto.empty_text", "zeros"
"""How a file says that an empty prompt is zeros; without it, the empty text is encoded."""

PROMPT_TOKENS = 225


def layout_metadata(layout: TextLayout) -> dict[str, str]:
    """The metadata of a file that says how its captions were laid out."""
    return {LAYOUT_KEY: json.dumps(asdict(layout))}


def prompt_layout(metadata: Mapping[str, str]) -> TextLayout:
    """How prompts are read: as in training where the file says so, else as A1111 does.

    In A1111's way long prompts need no more room than they take, so they are never cut at 75.
    """
    try:
        stated = parse_json(metadata.get(LAYOUT_KEY, "{}"))
        layout = TextLayout(**{**stated, "emphasis": "mean"})
    except (ValueError, TypeError):
        layout = TextLayout(emphasis="mean")
    return with_max_tokens(layout, layout.emphasis)


def with_max_tokens(layout: TextLayout, emphasis: Emphasis) -> TextLayout:
    """The way in which prompts are read by a model that was taught to read captions so.

    Where only as many chunks are read as a text needs, prompts have room for 225 tokens. Where
    texts are always read at full length, more would be something the model has never seen.
    """
    room = layout.max_tokens if layout.rules.fixed_length else PROMPT_TOKENS
    return replace(layout, max_tokens=room, emphasis=emphasis)
