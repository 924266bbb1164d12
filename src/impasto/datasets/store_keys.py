"""Keys under which the processes of a run exchange messages through PyTorch's store.

New keys are used after each error.
"""

from __future__ import annotations

import itertools
import os


class StoreKeys:
    """Keys in PyTorch's store under which processes exchange texts; new ones after each error.

    Each process counts its own exchanges, and all of them make the same ones in the same order.
    After an error, which all of them end with, their counts may differ, so a caller that tries
    again in the same process counts from zero under other keys.

    Attributes:
        barriers: How many barriers this process has started; if an error ended an exchange, some
            processes may have started one that others have not.
        is_even: Whether all processes have started the same number.
    """

    def __init__(self) -> None:
        self.barriers, self.is_even = 0, True
        self._failed = 0
        self._rounds = itertools.count()

    def of(self, name: str) -> str:
        """Return the store key for `name`, distinct from the keys of all earlier attempts."""
        return f"impasto/{_restarts()}-{self._failed}/{name}"

    def next_round(self) -> str:
        """Return the key prefix for the next exchange."""
        return self.of(f"round-{next(self._rounds)}")

    def renew(self) -> None:
        """Use new keys from now on, after an error has ended the work of all processes."""
        self._failed += 1
        self._rounds = itertools.count()
        self.is_even = False


def _restarts() -> str:
    """Return how often torchrun has restarted these processes with the same store.

    On several machines each launcher counts its own restarts, so the processes cannot agree on a
    number, and "0" is returned.
    """
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_one_machine else "0"
