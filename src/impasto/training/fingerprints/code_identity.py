"""Code as a text: what a run that is given parts in code has to have again when it is resumed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from impasto.training.fingerprints.code_contents import contents_of
from impasto.training.fingerprints.former_code import former_hashes
from impasto.training.fingerprints.users_code import name_of

_HASHES = 3


def described(value: Any, *, learns: bool = False) -> str:
    """A part's name and three hashes.

    The third is the same in each process, and of all that the part computes by. The others are
    what states of earlier versions have, the first one alone or both. Of a part of Impasto's own
    the source does not count: its versions say what changes a run.

    Args:
        value: The part.
        learns: Whether it is what learns, whose values are in states; see `contents_of`.
    """
    text = json.dumps(contents_of(value, learns=learns), sort_keys=True)
    whole = hashlib.sha256(text.encode()).hexdigest()[:16]
    return " ".join([name_of(value), *former_hashes(value), whole])


def is_same_code(was: str, now: str) -> bool:
    """Whether two parts are the same by the most that both of their descriptions say."""
    words = was.split(), now.split()
    if all(len(each) == 1 + _HASHES for each in words):
        return all(words[0][n] == words[1][n] for n in (0, _HASHES))
    return all(one == other for one, other in zip(*words, strict=False))


def names_shown(was: str, now: str) -> str:
    """What differs between two descriptions that are not of the same code, for people."""
    one, other = (description.partition(" ")[0] for description in (was, now))
    return f"was {one}, is {'another version of it' if one == other else other}"
