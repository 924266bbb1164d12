"""The token by which the processes of a Ray started by Impasto authenticate each other.

Without one, Ray writes its own to `~/.ray/auth_token`, which makes `ray start` and `ray.init`
require it on all clusters of this user.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
from collections.abc import Iterator

MODE = "RAY_AUTH_MODE"
_TOKEN, _PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"

SAID = (
    f"To join a cluster that requires a token (as one started by ray start does if "
    f"~/.ray/auth_token exists), set {MODE}=token and put the same token into ~/.ray/auth_token or "
    f"{_TOKEN}; for one that requires none, set {MODE}=disabled"
)
"""Advice for the user if a cluster cannot be joined."""


@contextlib.contextmanager
def own_token() -> Iterator[None]:
    """Make a Ray started within this context use a separate token, without a trace afterwards.

    The token is passed in the environment; Ray reads that again at the end, so that this process
    can join a cluster afterwards.
    """
    names = (MODE, _TOKEN, _PATH)
    before = {name: os.environ.get(name) for name in names}
    if before[_TOKEN] is None:
        os.environ[_TOKEN] = secrets.token_hex(32)
        os.environ.pop(_PATH, None)
    _read_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_again()


def _read_again() -> None:
    """Make Ray read the environment again; the mode first, which states whether a token is used."""
    raylet = importlib.import_module("ray._raylet")
    with contextlib.suppress(AttributeError):  # in versions of Ray without tokens
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
