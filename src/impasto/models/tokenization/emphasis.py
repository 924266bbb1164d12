r"""The emphasis syntax of prompts: `(a)`, `(a:1.3)`, `[a]`, nested; `\(` is a literal bracket.

The grammar is A1111's (`modules/prompt_parser.py`, parse_prompt_attention), which sd-scripts'
weighted captions follow too. Prompt editing `[a:b:0.5]` and `<...>` are not part of it.
"""

from __future__ import annotations

import re

UP, DOWN = 1.1, 1 / 1.1
_TOKEN = re.compile(
    r"\\(?P<literal>[()\[\]\\])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?[.\d]+)\s*\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|[\\:])"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")

Fragment = tuple[str, float]


def parse_emphasis(text: str) -> list[Fragment]:
    """Split a text into fragments of one weight each, merging neighbours of equal weight.

    A bracket that is never closed extends to the end; a closing one without an opening one is text.
    """
    fragments: list[Fragment] = []
    opened: list[tuple[str, int]] = []

    def multiply(start: int, factor: float) -> None:
        fragments[start:] = [(piece, weight * factor) for piece, weight in fragments[start:]]

    for token in _TOKEN.finditer(text):
        closes = "(" if token["weight"] or token["close"] == ")" else "["
        if token["open"]:
            opened.append((token["open"], len(fragments)))
        elif (token["weight"] or token["close"]) and any(b == closes for b, _ in opened):
            factor = _factor(token["weight"], closes)
            if factor is None:
                fragments.append((token[0], 1.0))
                continue
            index = max(i for i, (bracket, _) in enumerate(opened) if bracket == closes)
            multiply(opened.pop(index)[1], factor)
        else:
            fragments.append((token["literal"] or token[0], 1.0))
    for bracket, start in opened:
        multiply(start, UP if bracket == "(" else DOWN)
    return _merged(fragments) or [("", 1.0)]


def split_at_breaks(fragments: list[Fragment]) -> list[list[Fragment]]:
    """Split fragments into groups at each BREAK in capitals."""
    groups: list[list[Fragment]] = [[]]
    for text, weight in fragments:
        first, *others = _BREAK.split(text)
        groups[-1].append((first, weight))
        groups += [[(other, weight)] for other in others]
    ends_with_break = len(groups) > 1 and not any(text for text, _ in groups[-1])
    return groups[:-1] if ends_with_break else groups


def _factor(weight: str | None, bracket: str) -> float | None:
    if weight is None:
        return UP if bracket == "(" else DOWN
    try:
        return float(weight)
    except ValueError:
        return None


def _merged(fragments: list[Fragment]) -> list[Fragment]:
    merged: list[Fragment] = []
    for text, weight in fragments:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged
