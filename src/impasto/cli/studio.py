"""`impasto studio`: serve the studio, a web interface in the browser."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import logging
import os
import socket
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from impasto.cli.listing import existing_folders
from impasto.cli.local_paths import KEPT_FOLDER, LISTED_RUNS, READ

if TYPE_CHECKING:
    import threading
    from types import FrameType

    import uvicorn

    from impasto.cli.console import Console
    from impasto.studio.core import Studio
    from impasto.studio.folders import Folders

DEFAULT_PORT = 7870
LOOPBACK = "127.0.0.1"
DEMO_FOLDER, QUEUE = "impasto-studio", "queue"
_PACKAGES = ("starlette", "uvicorn", "python_multipart")


@click.command()
@click.option(
    "--runs", "run_folders", multiple=True, metavar="DIR", type=LISTED_RUNS,
    help="A folder with runs, searched up to three levels deep; repeatable. Default: the current "
    "folder.",
)  # fmt: skip
@click.option(
    "--data", "data_folders", multiple=True, metavar="DIR", type=READ,
    help="A folder of images, or one that contains such folders; repeatable. Default: the current "
    "folder.",
)  # fmt: skip
@click.option(
    "--models", "model_folders", multiple=True, metavar="DIR", type=READ,
    help="A folder with models; repeatable. Default: the current folder.",
)  # fmt: skip
@click.option(
    "--queue", "queue_folder", default=Path(QUEUE), show_default=True, metavar="DIR",
    type=KEPT_FOLDER,
    help="The folder of the queue; it is created when needed.",
)  # fmt: skip
@click.option(
    "--port", type=click.IntRange(1, 65535), default=None,
    help=f"The port to serve at; default: the first free port from {DEFAULT_PORT} on.",
)  # fmt: skip
@click.option(
    "--listen", metavar="ADDRESS", default=LOOPBACK, show_default=True,
    help="The IP address of this machine to serve at; 0.0.0.0 means all. With an address other "
    "than the default, other machines can use the studio through the printed URL, unencrypted.",
)  # fmt: skip
@click.option(
    "--demo", "with_demo", is_flag=True,
    help=f"Create the folder {DEMO_FOLDER} for runs, data and models, with copies of the demo's "
    f"images and model, and work there; existing files are not changed.",
)  # fmt: skip
@click.option("--open", "opens", is_flag=True, help="Open the studio in the browser.")
def studio(
    run_folders: tuple[Path, ...],
    data_folders: tuple[Path, ...],
    model_folders: tuple[Path, ...],
    queue_folder: Path,
    port: int | None,
    listen: str,
    *,
    with_demo: bool,
    opens: bool,
) -> None:
    """Serve the studio, a web interface in the browser.

    Without --listen, only this machine can reach it, at the printed URL. Stopping the studio stops
    no training, and a new studio finds all runs.
    """
    from impasto.allocation import use_one_arena
    from impasto.cli.console import Console
    from impasto.invocation import missing_extra

    use_one_arena()
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise missing_extra("studio", "The studio needs packages that are not installed.")
    from impasto.cli.ports import listen_at
    from impasto.studio.folders import Folders

    console = Console()
    begun = _begin_with_demo(Path(DEMO_FOLDER), console) if with_demo else {}
    folders = Folders(
        _existing((*run_folders, *begun.get("runs", ())), "--runs", "runs"),
        _existing((*data_folders, *begun.get("data", ())), "--data", "images"),
        _existing((*model_folders, *begun.get("models", ())), "--models", "models"),
    )
    if begun and queue_folder == Path(QUEUE):
        queue_folder = Path(DEMO_FOLDER) / QUEUE
    listening = listen_at(listen, port, DEFAULT_PORT)
    listens: list[tuple[str, object]] = [("--port", port)] if port is not None else []
    listens += [("--listen", listen)] if listen != LOOPBACK else []
    _serve(folders, queue_folder.absolute(), listening, listens, console, opens=opens)


def _begin_with_demo(folder: Path, console: Console) -> dict[str, tuple[Path, ...]]:
    """Create a folder with copies of the demo's images and model, and return its subfolders.

    The files are copied because users edit captions and crops here, and the package may be
    read-only.

    Raises:
        StorageError: The folder cannot be written.
    """
    import shutil

    from impasto import files, storage_errors
    from impasto.demo.recipe import BASE_MODEL, FOLDER, PICTURES

    folders: dict[str, tuple[Path, ...]] = {
        name: (folder / name,) for name in ("runs", "data", "models")
    }
    copies = {folder / "data" / "demo": PICTURES, folder / "models" / "demo-base": BASE_MODEL}
    with storage_errors.reported(folder):
        for name in folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        if not (folder / "NOTICE.txt").exists():
            shutil.copyfile(FOLDER / "NOTICE.txt", folder / "NOTICE.txt")
        missing = {target: source for target, source in copies.items() if not target.exists()}
        with console.stage("Copying the demo's images and model", len(missing), "folders") as done:
            for target, source in missing.items():
                with files.replace_folder(target) as partial:
                    shutil.copytree(
                        source, partial, copy_function=shutil.copyfile, dirs_exist_ok=True
                    )
                done(1)
    return folders


def _existing(given: tuple[Path, ...], option: str, what: str) -> tuple[Path, ...]:
    """Return the folders of an option, or the current folder, as absolute paths.

    Raises:
        RunError: A folder does not exist.
    """
    folders = [folder.absolute() for folder in given or (Path(),)]
    return existing_folders(folders, f" Give folders with {what} in them to {option}.")


def _serve(
    folders: Folders,
    queue: Path,
    listening: socket.socket,
    listens: Sequence[tuple[str, object]],
    console: Console,
    *,
    opens: bool,
) -> None:
    import uvicorn

    from impasto.studio.app import create_app
    from impasto.studio.core import Studio
    from impasto.studio.folders import HOME, require_own
    from impasto.studio.guard import Access, hosts_of

    require_own(folders.runs[0] / HOME, folders.runs[0])
    with listening as listener:
        address, port = listener.getsockname()[:2]
        access = Access(port, hosts_of(address))
        studio = Studio(folders, folders.runs[0] / HOME, queue, listens=listens)
        app = create_app(studio, access)
        console.note(f"The studio shows the runs in {', '.join(map(str, folders.runs))}. Open:")
        console.note(access.address)
        console.note("The address is a key: anyone who has it can use the studio. Ctrl-C ends it.")
        if not ipaddress.ip_address(address).is_loopback:
            console.note(
                "Warning: other machines can reach the studio. Anyone who has the address can read "
                "and change files in these folders and start programs here, and the connection is "
                "not encrypted. On a shared network, use SSH instead: ssh -L "
                f"{port}:127.0.0.1:{port} MACHINE, with the studio at {LOOPBACK}."
            )
        config = uvicorn.Config(app, log_level="error", access_log=False)
        config.timeout_graceful_shutdown = 3
        with _opened(access.address, folders.runs[0]) if opens else contextlib.nullcontext():
            try:
                _server(config, studio.closing).run(sockets=[listener])
            finally:
                console.note(_farewell(studio))


def _farewell(studio: Studio) -> str:
    """Return the message that the studio has ended, with the runs and queue that continue."""
    from impasto.invocation import command
    from impasto.parsing import printable
    from impasto.runs.queue_devices import runners_of

    runs = [found.run.path for found in studio.folders.all_runs() if found.state.is_alive]
    names = ", ".join(printable(path.name) for path in runs)
    going = [f"{names} {'is' if len(runs) == 1 else 'are'} being trained"] if runs else []
    if runners_of(studio.queue):
        going.append("the queue is running")
    if not going:
        return "The studio has ended."
    return (
        f"The studio has ended. {'; '.join(going)}, and this continues; a new studio shows it. "
        f"{command('runs', *studio.folders.runs)} lists runs. To stop them, press Ctrl-C where "
        f"they run, or use the buttons on their pages."
    )


def _server(config: uvicorn.Config, closing: threading.Event) -> uvicorn.Server:
    """Create a server that sets `closing` on exit, so that open pages do not delay it."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            closing.set()
            logging.getLogger("uvicorn.error").addFilter(_is_no_cut_off_request)
            super().handle_exit(sig, frame)

    return Server(config)


def _is_no_cut_off_request(record: logging.LogRecord) -> bool:
    """Return whether a log record is not about requests that are cut off by the shutdown."""
    error = record.exc_info[1] if record.exc_info else None
    is_shutdown = "graceful shutdown" in record.getMessage()
    return not (isinstance(error, asyncio.CancelledError) or is_shutdown)


@contextlib.contextmanager
def _opened(address: str, runs: Path) -> Iterator[None]:
    """Open an address in the browser without showing it in the list of processes.

    The arguments of a program can be read by every user of the machine, so the browser is given a
    private file that redirects to the address.
    """
    page = f'<meta http-equiv="refresh" content="0;url={address}"><a href="{address}">Open</a>'
    with _private_folder(runs) as folder:
        file = Path(folder) / "studio.html"
        file.write_text(page, encoding="utf-8")
        webbrowser.open(file.as_uri())
        yield


def _private_folder(runs: Path) -> tempfile.TemporaryDirectory[str]:
    """Create a temporary folder, inside a folder of runs, that only this user can read.

    Browsers installed as snaps, such as Ubuntu's Firefox, can access neither /tmp nor hidden files
    directly in the home folder. On disks without permissions and on Windows, the system's
    temporary folder is used.
    """
    from impasto.studio.folders import HOME

    if os.name == "posix":
        with contextlib.suppress(OSError, RuntimeError):
            own = runs if runs == Path.home() else runs / HOME
            own.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(prefix="studio-", dir=own)
            if not Path(made.name).stat().st_mode & 0o077:
                return made
            made.cleanup()
    return tempfile.TemporaryDirectory(prefix="impasto-")
