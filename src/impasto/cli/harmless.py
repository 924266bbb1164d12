"""Escapes control characters in untrusted text before it is printed: names, captions, metadata.

A terminal obeys control characters: they move the cursor, change the window's title, hide lines,
and in some terminals run commands. All printed text goes through here; colours are added after.
"""

from __future__ import annotations

import json
import re
from typing import Any

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line end, DEL, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line ends, and marks that reorder a line
    "\ud800-\udfff]"  # lone surrogates: bytes of a file name that are not UTF-8
)


def harmless(text: str) -> str:
    r"""Return a text with its terminal control characters escaped, as `\x1b` or `\u202e`."""
    return _CONTROL.sub(lambda match: _written_out(ord(match[0])), text)


def escape(text: str) -> str:
    """Escape a text for printing with rich markup: control characters, and markup inside it."""
    from rich.markup import escape as without_markup

    return without_markup(harmless(text))


def json_text(value: Any) -> str:
    """Format a value as JSON for printing: non-ASCII letters stay, control codes are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _written_out(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # how Python reads a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
