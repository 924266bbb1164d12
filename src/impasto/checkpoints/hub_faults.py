"""Turns failures of the Hugging Face Hub or the network into a ModelError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from impasto.errors import ModelError

_LONGEST_REASON = 120


@contextlib.contextmanager
def hub_faults(sentence_of: Callable[[str], str]) -> Iterator[None]:
    """Turn failures of requests to the Hub into a ModelError with a message of the caller's.

    Args:
        sentence_of: Returns the message for a short reason such as `HTTPError: 404 ...`.

    Raises:
        ModelError: The Hub, the network or the disk failed, or the Hub has no such model.
    """
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    try:
        yield
    except (OSError, ValueError, HTTPError, OfflineModeIsEnabled) as error:
        reason = str(error).strip().split("\n")[0][:_LONGEST_REASON]
        raise ModelError(sentence_of(f"{type(error).__name__}: {reason}")) from error


def is_unreachable(fault: ModelError) -> bool:
    """Return whether an error of `hub_faults` means that the Hub did not answer or is unreachable.

    That is false if the Hub refused the request, or in offline mode.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    cause = fault.__cause__
    return isinstance(cause, HTTPError) and not isinstance(cause, HfHubHTTPError)
