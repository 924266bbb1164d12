"""Reads forms sent by browsers, within limits, and parses whole numbers typed into them."""

from __future__ import annotations

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request

MOST_FIELDS = 24
MOST_BYTES = 1 << 20

_DIGITS = 18


async def read_form(
    request: Request, most_fields: int = MOST_FIELDS, most_bytes: int = MOST_BYTES
) -> FormData:
    """Read the fields of a form without files.

    Args:
        request: The request with the form.
        most_fields: Maximum number of fields.
        most_bytes: Maximum size of the form in bytes, as sent.

    Raises:
        HTTPException: 413 if it is too large; 400 if it has files or too many fields.
    """
    length = request.headers.get("content-length", "")
    if length and whole_number(length, most_bytes) is None:
        raise HTTPException(
            413, f"This form is larger than {most_bytes >> 10} KiB, which is too large."
        )
    return await request.form(max_files=0, max_fields=most_fields, max_part_size=most_bytes)


def texts_of(form: FormData) -> dict[str, str]:
    """Return the text fields of a form by name; if a name occurs several times, the last one."""
    return {name: value for name, value in form.items() if isinstance(value, str)}


def whole_number(text: str, most: int, least: int = 0) -> int | None:
    """Parse a whole number in the digits 0 to 9; return None for any other text or out of range.

    Args:
        text: The text that was typed.
        most: The largest number that is accepted.
        least: The smallest number that is accepted; a minus sign is accepted only if it is below 0.
    """
    digits = text.removeprefix("-") if least < 0 else text
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS):
        return None
    number = int(text)
    return number if least <= number <= most else None
