"""Identifies code by a text: a run given parts in code must get the same again when resumed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from impasto.training.fingerprints.code_contents import contents_of
from impasto.training.fingerprints.former_code import former_hashes
from impasto.training.fingerprints.users_code import name_of

_HASHES = 3


def described(value: Any, *, learns: bool = False) -> str:
    """Return a part's name and three hashes, separated by spaces.

    The third hash covers everything that the part computes with, and is the same in each process.
    The other two are those that states of earlier versions have, the first one alone or both. The
    source of Impasto's own parts does not count: its versions document what changes a run.

    Args:
        value: The part given in code.
        learns: Whether it has the trained parameters, whose values are in states; see
            `contents_of`.
    """
    text = json.dumps(contents_of(value, learns=learns), sort_keys=True)
    whole = hashlib.sha256(text.encode()).hexdigest()[:16]
    return " ".join([name_of(value), *former_hashes(value), whole])


def is_same_code(was: str, now: str) -> bool:
    """Return whether two descriptions are of the same code, by the best hashes that both have."""
    words = was.split(), now.split()
    if all(len(each) == 1 + _HASHES for each in words):
        return all(words[0][n] == words[1][n] for n in (0, _HASHES))
    return all(one == other for one, other in zip(*words, strict=False))


def names_shown(was: str, now: str) -> str:
    """Return a clause for messages on how two descriptions of different code differ."""
    one, other = (description.partition(" ")[0] for description in (was, now))
    return f"was {one}, is {'another version of it' if one == other else other}"
