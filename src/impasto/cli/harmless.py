"""Text of somebody else's, made harmless before it is shown: names, captions, metadata, messages.

A terminal obeys control characters: they move the cursor, change the window's title, hide lines,
and some terminals run more. Everything that is printed goes through here; colours are added after.
"""

from __future__ import annotations

import json
import re
from typing import Any

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line end, DEL, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line ends, and marks that reorder a line
    "\ud800-\udfff]"  # halves of surrogate pairs: bytes of a name that are not UTF-8
)


def harmless(text: str) -> str:
    r"""Write out the characters of a text that terminals obey: `\x1b`, `\u202e`."""
    return _CONTROL.sub(lambda match: _written_out(ord(match[0])), text)


def escape(text: str) -> str:
    """Make a text harmless that is printed with markup: its own markup is printed as it stands."""
    from rich.markup import escape as without_markup

    return without_markup(harmless(text))


def json_text(value: Any) -> str:
    """JSON to be printed: other letters as they are, control characters as JSON escapes them."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _written_out(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # how Python reads a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
