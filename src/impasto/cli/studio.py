"""`impasto studio`: the window to work through, in a browser."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import threading
    from types import FrameType

    import uvicorn

    from impasto.cli.console import Console
    from impasto.studio.folders import Folders

DEFAULT_PORT = 7870
_TRIED_PORTS = 20
_PACKAGES = ("starlette", "uvicorn", "python_multipart")


@click.command()
@click.option(
    "--runs", "run_folders", multiple=True, metavar="DIR", type=click.Path(path_type=Path),
    help="A folder with runs in it, up to three levels deep; repeatable. The current folder if "
    "none is given.",
)  # fmt: skip
@click.option(
    "--data", "data_folders", multiple=True, metavar="DIR", type=click.Path(path_type=Path),
    help="A folder of images, or with such folders in it; repeatable. The current folder if none "
    "is given.",
)  # fmt: skip
@click.option(
    "--models", "model_folders", multiple=True, metavar="DIR", type=click.Path(path_type=Path),
    help="A folder with models in it; repeatable. The current folder if none is given.",
)  # fmt: skip
@click.option(
    "--queue", "queue_folder", default=Path("queue"), show_default=True, metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of the queue, which need not be there yet.",
)  # fmt: skip
@click.option(
    "--port", type=click.IntRange(1, 65535), default=None,
    help=f"The port of this machine; without it the first free one from {DEFAULT_PORT} on.",
)  # fmt: skip
@click.option("--open", "opens", is_flag=True, help="Open it in the browser at once.")
def studio(
    run_folders: tuple[Path, ...],
    data_folders: tuple[Path, ...],
    model_folders: tuple[Path, ...],
    queue_folder: Path,
    port: int | None,
    *,
    opens: bool,
) -> None:
    """Serve the studio, a page for the browser that shows runs and what they can be asked.

    It can be reached from this machine alone, by the address that it prints. Ending it ends no
    training, and starting it again finds all runs.
    """
    from impasto.cli.console import Console
    from impasto.invocation import missing_extra

    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise missing_extra("studio", "The studio needs packages that are not installed.")
    from impasto.studio.folders import Folders

    folders = Folders(
        _existing(run_folders, "--runs", "runs"),
        _existing(data_folders, "--data", "images"),
        _existing(model_folders, "--models", "models"),
    )
    _serve(folders, queue_folder.absolute(), port, Console(), opens=opens)


def _existing(given: tuple[Path, ...], option: str, what: str) -> list[Path]:
    """The folders that an option gives, or the current one.

    Raises:
        RunError: One is not there.
    """
    from impasto.errors import RunError

    folders = [folder.absolute() for folder in given or (Path(),)]
    for folder in folders:
        if not folder.is_dir():
            raise RunError(
                f"{folder} is not a folder. Give folders with {what} in them to {option}."
            )
    return folders


def _serve(
    folders: Folders, queue: Path, port: int | None, console: Console, *, opens: bool
) -> None:
    import uvicorn

    from impasto.studio.app import create_app
    from impasto.studio.core import HOME, Studio
    from impasto.studio.guard import Access

    with _listening(port) as listener:
        access = Access(listener.getsockname()[1])
        studio = Studio(folders, folders.runs[0] / HOME, queue=queue)
        app = create_app(studio, access)
        console.note(f"The studio shows the runs in {', '.join(map(str, folders.runs))}. Open:")
        console.note(access.address)
        console.note("The address is a key: whoever has it can use the studio. Ctrl-C ends it.")
        config = uvicorn.Config(app, log_level="error", access_log=False)
        config.timeout_graceful_shutdown = 3
        with _opened(access.address) if opens else contextlib.nullcontext():
            _server(config, studio.closing).run(sockets=[listener])


def _server(config: uvicorn.Config, closing: threading.Event) -> uvicorn.Server:
    """A server that says when it ends, so that pages that are open do not hold it up."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            closing.set()
            super().handle_exit(sig, frame)

    return Server(config)


@contextlib.contextmanager
def _opened(address: str) -> Iterator[None]:
    """Open an address in the browser without a word of it in the list of processes.

    What a program is started with can be read by every user of the machine; a file need not be.
    """
    page = f'<meta http-equiv="refresh" content="0;url={address}"><a href="{address}">Open</a>'
    with tempfile.TemporaryDirectory(prefix="impasto-") as folder:  # of this user alone
        file = Path(folder) / "studio.html"
        file.write_text(page, encoding="utf-8")
        webbrowser.open(file.as_uri())
        yield


def _listening(port: int | None) -> socket.socket:
    """A socket of the loopback: at the port that was asked for, or the first free one.

    Raises:
        RunError: The port is taken; with the next free one.
    """
    from impasto.errors import RunError

    tried = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + _TRIED_PORTS)
    for number in tried:
        found = _bound(number)
        if found is not None:
            return found
    free = next((n for n in range((port or DEFAULT_PORT) + 1, 65536) if _is_free(n)), None)
    instead = "" if free is None else f" {free} is free: --port {free}."
    raise RunError(
        f"Port {port or DEFAULT_PORT} is taken by another program, or not to be had.{instead}"
    )


def _bound(port: int) -> socket.socket | None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform == "win32":  # or another program may have the same port at the same time
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:  # at once after another studio
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise
    return listener


def _is_free(port: int) -> bool:
    found = _bound(port)
    if found is not None:
        found.close()
    return found is not None
