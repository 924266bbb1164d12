"""Ports of this machine: open a socket at a free port, or name the process that uses a port."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import sys
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import psutil

from impasto.errors import RunError

TRIED = 20
"""How many ports are tried if none is given."""


def listen_at(address: str, port: int | None, first: int) -> socket.socket:
    """Open a socket that listens at an address of this machine.

    Args:
        address: The IP address.
        port: The port; None tries `TRIED` ports from `first` on and uses the first free one.
        first: The first port to try without `port`.

    Raises:
        RunError: The port is taken (the message names the process and the next free port), or the
            address does not belong to this machine.
    """
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise RunError(
            f"--listen {address} is not an address. Give an IP address of this machine, such as "
            f"127.0.0.1, or 0.0.0.0 for all."
        ) from error
    tried = range(first, first + TRIED) if port is None else range(port, port + 1)
    refusals: list[int] = []
    for number in tried:
        found = _bound(address, number)
        if isinstance(found, socket.socket):
            return found
        refusals.append(found)
    free = _next_free(address, tried.stop)
    instead = "No port after it is free." if free is None else f"{free} is free: --port {free}."
    raise RunError(f"{_why(tried, refusals[0])} {instead}")


def holder_of(port: int) -> str:
    """Return the end of a sentence that names the process at a port, or says why it is unknown.

    Systems show users only their own processes, and some show them to administrators only.
    """
    found = _listeners(port)
    if found is None:
        return "by a program that only administrators can see"
    pids = sorted({pid for pid in found if pid is not None})
    if pids:
        return f"by {' and '.join(map(_process_text, pids))}"
    if found:
        return "by a program of another user, which only administrators can see"
    return "by a program that cannot be seen from here, such as one outside of this container"


def _listeners(port: int) -> list[int | None] | None:
    """Return the process ids that listen at a port, each None if hidden; None if not permitted."""
    try:
        found = [(c, c.pid) for c in psutil.net_connections("tcp")]
    except (psutil.Error, OSError, RuntimeError):  # macOS permits this to administrators only
        own: list[int | None] = [pid for c, pid in _of_own_processes() if _is_at(c, port)]
        return own or None
    return [pid for c, pid in found if _is_at(c, port)]


def _of_own_processes() -> Iterator[tuple[Any, int]]:
    """Yield connection and process id of each process that this user may inspect."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError, RuntimeError):
            for connection in process.net_connections("tcp"):
                yield connection, process.pid


def _is_at(connection: Any, port: int) -> bool:
    is_listening = connection.status == psutil.CONN_LISTEN and connection.laddr
    return bool(is_listening and connection.laddr.port == port)


def _process_text(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        name, arguments = process.name(), process.cmdline()
    except (psutil.Error, OSError):
        return f"process {pid}"
    is_studio = "studio" in arguments and any(
        "impasto" in PurePath(argument).name for argument in arguments
    )
    return f"{'another Impasto studio' if is_studio else name} (process {pid})"


def _why(tried: range, refusal: int) -> str:
    port = tried.start
    if refusal == errno.EACCES and not _listeners(port):
        return f"This user may not open port {port}: the system reserves it."
    if len(tried) == 1:
        return f"Port {port} is taken {holder_of(port)}."
    return f"Ports {port} to {tried.stop - 1} are taken, the first {holder_of(port)}."


def _next_free(address: str, begin: int) -> int | None:
    for number in range(begin, 65536):
        found = _bound(address, number)
        if isinstance(found, socket.socket):
            found.close()
            return number
    return None


def _bound(address: str, port: int) -> socket.socket | int:
    """Return a listening socket, or the error number if the port is taken or not permitted.

    Raises:
        RunError: The address does not belong to this machine.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    # With the protocol set, asyncio uses TCP_NODELAY: small responses are not delayed by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if sys.platform == "win32":  # or another program could open the same port too
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:  # so that the port can be reused right after another studio
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return error.errno
        if error.errno == errno.EADDRNOTAVAIL:
            raise RunError(f"--listen {address} is not an address of this machine.") from error
        raise
    return listener
