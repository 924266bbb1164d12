"""The message after items were removed permanently, passed to a page in its address."""

from __future__ import annotations

from starlette.requests import Request

from impasto.progress import counted, size_text
from impasto.studio.forms import whole_number

_MOST = 10**15


def address_after_removal(page: str, number: int, size: int) -> str:
    """Return the address of a page that reports what was removed.

    Args:
        page: The address of the page, without a query.
        number: Number of items that were removed.
        size: Their size in bytes.
    """
    return f"{page}?removed={number}&freed={size}"


def removal_text(request: Request, plural: str) -> str:
    """Return a sentence on what was just removed and the space it freed, or "" without a report.

    Args:
        request: The request for the page.
        plural: The plural noun for the items.
    """
    asked = request.query_params
    number = whole_number(asked.get("removed", ""), _MOST)
    size = whole_number(asked.get("freed", ""), _MOST)
    if number is None or size is None:
        return ""
    if not number:
        return "Nothing was removed: these items were no longer in the trash."
    what = counted(number, f"{plural} were")
    return f"{what} removed for good. That freed {size_text(size)}."
