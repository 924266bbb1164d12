"""`impasto studio`: the window to work through, in a browser."""

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
    help="A folder with runs in it, up to three levels deep; repeatable. The current folder if "
    "none is given.",
)  # fmt: skip
@click.option(
    "--data", "data_folders", multiple=True, metavar="DIR", type=READ,
    help="A folder of images, or with such folders in it; repeatable. The current folder if none "
    "is given.",
)  # fmt: skip
@click.option(
    "--models", "model_folders", multiple=True, metavar="DIR", type=READ,
    help="A folder with models in it; repeatable. The current folder if none is given.",
)  # fmt: skip
@click.option(
    "--queue", "queue_folder", default=Path(QUEUE), show_default=True, metavar="DIR",
    type=KEPT_FOLDER,
    help="The folder of the queue, which need not be there yet.",
)  # fmt: skip
@click.option(
    "--port", type=click.IntRange(1, 65535), default=None,
    help=f"The port of this machine; without it the first free one from {DEFAULT_PORT} on.",
)  # fmt: skip
@click.option(
    "--listen", metavar="ADDRESS", default=LOOPBACK, show_default=True,
    help="The address of this machine to serve at; 0.0.0.0 means all of them. Then other machines "
    "can use the studio too, with the printed address, unencrypted.",
)  # fmt: skip
@click.option(
    "--demo", "with_demo", is_flag=True,
    help=f"Work in the folder {DEMO_FOLDER} with runs, data and models of its own, among them the "
    f"images and the model of the demo; files that are already there stay as they are.",
)  # fmt: skip
@click.option("--open", "opens", is_flag=True, help="Open it in the browser at once.")
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
    """Serve the studio, a window in the browser to work through.

    Unless --listen says otherwise, only this machine can reach it, at the address that it prints.
    Stopping it stops no training, and starting it again finds all runs.
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
    """Make a folder to begin in, with copies of the demo's images and model; returns its folders.

    Copies, since images get other captions and crops here and the package may be read-only.

    Raises:
        StorageError: It cannot be written.
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
    """The folders that an option gives, or the current one, as whole paths.

    Raises:
        RunError: One is not there.
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
        console.note("The address is a key: whoever has it can use the studio. Ctrl-C ends it.")
        if not ipaddress.ip_address(address).is_loopback:
            console.note(
                "Warning: other machines reach it too. Whoever has the address can read and change "
                "what is in these folders and start programs here, and what is sent can be read on "
                "the way. On a network that is not yours alone, use SSH instead: ssh -L "
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
    """The message that the studio has ended, with what goes on without it."""
    from impasto.invocation import command
    from impasto.parsing import printable
    from impasto.runs.queue_devices import runners_of

    runs = [found.run.path for found in studio.folders.all_runs() if found.state.is_alive]
    names = ", ".join(printable(path.name) for path in runs)
    going = [f"{names} {'is' if len(runs) == 1 else 'are'} being trained"] if runs else []
    if runners_of(studio.queue):
        going.append("the queue is being worked on")
    if not going:
        return "The studio has ended."
    return (
        f"The studio has ended. {'; '.join(going)}, and that goes on; a new studio shows it. "
        f"{command('runs', *studio.folders.runs)} lists runs; Ctrl-C where they run, or the "
        f"buttons of their pages, stop them."
    )


def _server(config: uvicorn.Config, closing: threading.Event) -> uvicorn.Server:
    """A server that says when it ends, so that pages that are open do not hold it up."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            closing.set()
            logging.getLogger("uvicorn.error").addFilter(_is_no_cut_off_request)
            super().handle_exit(sig, frame)

    return Server(config)


def _is_no_cut_off_request(record: logging.LogRecord) -> bool:
    """Whether a line of the log is about something else than requests that the end cuts off."""
    error = record.exc_info[1] if record.exc_info else None
    is_shutdown = "graceful shutdown" in record.getMessage()
    return not (isinstance(error, asyncio.CancelledError) or is_shutdown)


@contextlib.contextmanager
def _opened(address: str, runs: Path) -> Iterator[None]:
    """Open an address in the browser without a word of it in the list of processes.

    What a program is started with can be read by every user of the machine; a file need not be.
    """
    page = f'<meta http-equiv="refresh" content="0;url={address}"><a href="{address}">Open</a>'
    with _private_folder(runs) as folder:
        file = Path(folder) / "studio.html"
        file.write_text(page, encoding="utf-8")
        webbrowser.open(file.as_uri())
        yield


def _private_folder(runs: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder that this user alone can read, below a folder of runs, until it is left.

    Browsers that are snaps, as Ubuntu's Firefox is, see neither /tmp nor what is hidden in the home
    folder itself. Where disks have no permissions, or on Windows, it is the system's own.
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
