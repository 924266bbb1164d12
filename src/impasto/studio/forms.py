"""Forms as browsers send them: read within limits, and what may be typed into their fields."""

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
    """The fields of a form; it may have no files.

    Args:
        request: The request that it was sent with.
        most_fields: Fields that it may have.
        most_bytes: Bytes that it may have, as they are sent.

    Raises:
        HTTPException: It is too large: 413; it has files or too many fields: 400.
    """
    length = request.headers.get("content-length", "")
    if length and whole_number(length, most_bytes) is None:
        raise HTTPException(413, f"That is more than {most_bytes >> 10} KiB, which is too large.")
    return await request.form(max_files=0, max_fields=most_fields, max_part_size=most_bytes)


def texts_of(form: FormData) -> dict[str, str]:
    """The text fields of a form; of a name that is there several times, the last."""
    return {name: value for name, value in form.items() if isinstance(value, str)}


def whole_number(text: str, most: int, least: int = 0) -> int | None:
    """A whole number in the digits 0 to 9; None for anything else, and beyond the limits.

    Args:
        text: What was typed.
        most: The largest number that is taken.
        least: The smallest; a minus sign is taken only below 0.
    """
    digits = text.removeprefix("-") if least < 0 else text
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS):
        return None
    number = int(text)
    return number if least <= number <= most else None
