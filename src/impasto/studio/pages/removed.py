"""What a page says after something was removed for good: once, by its address."""

from __future__ import annotations

from starlette.requests import Request

from impasto.progress import counted, size_text
from impasto.studio.forms import whole_number

_MOST = 10**15


def address_after_removal(page: str, number: int, size: int) -> str:
    """The address of a page that says what was removed.

    Args:
        page: The address of the page, without a query.
        number: How many things were removed.
        size: The bytes that they took.
    """
    return f"{page}?removed={number}&freed={size}"


def removal_text(request: Request, plural: str) -> str:
    """What was removed just now and how much of the disk it gave back; empty where nothing was.

    Args:
        request: The request for the page.
        plural: What the things are called.
    """
    asked = request.query_params
    number = whole_number(asked.get("removed", ""), _MOST)
    size = whole_number(asked.get("freed", ""), _MOST)
    if number is None or size is None:
        return ""
    if not number:
        return "Nothing was removed: none of it was in the trash any more."
    what = counted(number, f"{plural} were")
    return f"{what} removed for good. That freed {size_text(size)}."
