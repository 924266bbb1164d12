"""Ports of this machine: a socket at a free one, and who has one that is taken."""

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
"""How many ports are tried where none is asked for."""


def listen_at(address: str, port: int | None, first: int) -> socket.socket:
    """A socket that listens at an address of this machine.

    Args:
        address: The IP address.
        port: The port that is asked for; None for the first free one of `TRIED`.
        first: Where these begin.

    Raises:
        RunError: The port is taken, with who has it and the next free one; or the address is none
            of this machine.
    """
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise RunError(
            f"--listen {address} is no address. Give one of this machine, such as 127.0.0.1, or "
            f"0.0.0.0 for all."
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
    """Who listens at a port, as the end of a sentence: a process by name and number, or why not.

    Systems tell a user of his own processes alone, and some tell administrators only.
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
    """The processes that listen at a port, None for one without a number; None if not told."""
    try:
        found = [(c, c.pid) for c in psutil.net_connections("tcp")]
    except (psutil.Error, OSError, RuntimeError):  # macOS tells administrators alone
        own: list[int | None] = [pid for c, pid in _of_own_processes() if _is_at(c, port)]
        return own or None
    return [pid for c, pid in found if _is_at(c, port)]


def _of_own_processes() -> Iterator[tuple[Any, int]]:
    """The connections of the processes that the system tells this user about."""
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
    """A socket that listens; the error number where the port is taken, or not for this user.

    Raises:
        RunError: The address is none of this machine.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    # Told that it is TCP, asyncio sends small answers at once (TCP_NODELAY), and not 40 ms later.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if sys.platform == "win32":  # or another program may have the same port at the same time
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:  # at once after another studio
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return error.errno
        if error.errno == errno.EADDRNOTAVAIL:
            raise RunError(f"--listen {address} is no address of this machine.") from error
        raise
    return listener
