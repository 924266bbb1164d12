"""What goes wrong with the Hugging Face Hub or on the way to it, as a ModelError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from impasto.errors import ModelError

_LONGEST_REASON = 120


@contextlib.contextmanager
def hub_faults(sentence_of: Callable[[str], str]) -> Iterator[None]:
    """Have what is asked of the Hub fail with a sentence of our own.

    Args:
        sentence_of: Makes the sentence of a short reason, as `HTTPError: 404 ...`.

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
    """Whether what `hub_faults` raised is that there is no way to the Hub, or no answer in time.

    An answer that refuses what is asked for, or a Hub that is not to be asked, is none of these.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    cause = fault.__cause__
    return isinstance(cause, HTTPError) and not isinstance(cause, HfHubHTTPError)
