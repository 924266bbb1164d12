"""The token by which the processes of a Ray that is started here know each other.

Without one Ray writes its own to `~/.ray/auth_token`, by which `ray start` and `ray.init` then ask
for it on all clusters of this user.
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
    f"A cluster that asks for a token (ray start does where ~/.ray/auth_token is) is joined with "
    f"{MODE}=token and the same token in ~/.ray/auth_token or {_TOKEN}, and one that does not with "
    f"{MODE}=disabled"
)
"""What a person is told where a cluster cannot be joined."""


@contextlib.contextmanager
def own_token() -> Iterator[None]:
    """Have a Ray that is started within this take a token of its own, and leave no trace of it.

    Ray is told by the environment; it reads it again at the end, so that this process can join a
    cluster afterwards.
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
    """Have Ray forget what the environment said; the mode first, which says if there is a token."""
    raylet = importlib.import_module("ray._raylet")
    with contextlib.suppress(AttributeError):  # of versions without tokens
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
