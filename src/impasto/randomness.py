"""Derives seeds from their purpose, so that no random state has to be stored.

A number drawn for (seed, epoch, bucket) or (seed, step, position) is the same in any process, on
any number of workers and after any resume. The idea of resuming by arithmetic is edm2's
(NVlabs/edm2, `training/training_loop.py`).
"""

from __future__ import annotations

import hashlib

import numpy as np

SEED_RANGE = 2**63


def derive_seed(seed: int, *keys: int | str) -> int:
    """Hash a seed and its purpose to an integer in [0, 2**63), by BLAKE2b.

    Args:
        seed: The run's seed.
        keys: The purpose of the number, for example `("noise", step, position)`.
    """
    text = "/".join([str(seed), *map(str, keys)]).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") % SEED_RANGE


def derive_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """Return a separate NumPy generator (PCG64) for `keys`."""
    return np.random.default_rng(derive_seed(seed, *keys))
