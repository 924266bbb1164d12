"""Where the processes of a run put what they say in PyTorch's store: new keys after each error."""

from __future__ import annotations

import itertools
import os


class StoreKeys:
    """Where in the store the processes put what they say, until an error ends what they do.

    Each process counts its own exchanges, and all of them make the same ones in the same order.
    After an error, which all of them end with, they may have come to different ones, so whoever
    tries again, in the same process, counts anew under other keys.

    Attributes:
        barriers: How many barriers this process has begun; where an error ended an exchange, some
            have begun one that others have not.
        is_even: Whether all have begun as many.
    """

    def __init__(self) -> None:
        self.barriers, self.is_even = 0, True
        self._failed = 0
        self._rounds = itertools.count()

    def of(self, name: str) -> str:
        """The key of something, other than that of all attempts before."""
        return f"impasto/{_restarts()}-{self._failed}/{name}"

    def next_round(self) -> str:
        """The beginning of the keys of an exchange."""
        return self.of(f"round-{next(self._rounds)}")

    def renew(self) -> None:
        """Begin anew: an error has ended what all processes did."""
        self._failed += 1
        self._rounds = itertools.count()
        self.is_even = False


def _restarts() -> str:
    """How often torchrun has started these processes again, with the same store.

    On several machines each launcher counts its own restarts, so the processes cannot agree on it.
    """
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_one_machine else "0"
