"""A process that has imported what all commands import, and forks a child for each command.

Started by `running.py` with a listening socket and a pipe; it ends when the pipe is closed. Before
anything else runs in the child, it takes over the command's arguments, folder, environment,
standard streams and signal handlers, as a fresh interpreter would have them.

A fork is safe as long as this process has one thread and has never run a parallel operation: OpenMP
and PyTorch create their thread pools at the first such operation.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import logging
import os
import pkgutil
import random
import resource
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import types
import warnings
import weakref
from pathlib import Path
from typing import NoReturn

LENGTH = struct.Struct("!I")
PYTHON = "IMPASTO_WARM_PYTHON"  # as in running.py
LIBRARIES = ("numpy", "torch", "accelerate", "transformers", "diffusers")
LATE = ("impasto.__main__", "impasto.annotate.onnx_tagger")  # the second starts a thread
CLASSES = {
    "diffusers": ("UNet2DConditionModel", "AutoencoderKL"),
    "transformers": ("CLIPTextModel", "CLIPTokenizer"),
}
DEFAULTS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def import_all() -> None:
    """Import in the command line's order, which configures the C library and others first.

    Also create what a process caches and all commands share: the tokenizer, the pages' templates,
    and the import of pandas, where installed, by pyarrow's first array.
    """
    from impasto.allocation import tune_allocation
    from impasto.cli.quiet import quiet_libraries

    with warnings.catch_warnings():
        tune_allocation()
        quiet_libraries()
        importlib.import_module("impasto.cli.imports").leave_out_quantizers()
        for name in LIBRARIES:
            module = importlib.import_module(name)
            for late in CLASSES.get(name, ()):
                getattr(module, late)
        package = importlib.import_module("impasto")
        for found in pkgutil.walk_packages(package.__path__, "impasto."):
            if found.name not in LATE:
                importlib.import_module(found.name)
        tokenizers = importlib.import_module("impasto.models.networks.tokenizers")
        tokenizers.tokenizer_of(
            {}, importlib.import_module("impasto.models.tokenization.vocabulary").EOS
        )
        importlib.import_module("pyarrow").array([])
        templates = importlib.import_module("impasto.report.page").templates()
        for name in templates.list_templates(["j2"]):
            templates.get_template(name)
    for finalizer in tuple(weakref.finalize._registry):
        finalizer.atexit = False  # PyTorch's operator libraries, which are never unloaded


class Command:
    """The command that a child runs.

    Attributes:
        words: Arguments of Python's own command line: `-m module`, perhaps after `-P`, `-c
            program`,
            or a file, and the program's arguments.
    """

    def __init__(self, request: dict, streams: list[int]) -> None:
        self.words: list[str] = request["words"]
        self.folder: str = request["folder"]
        self.variables: dict[str, str] = request["variables"]
        self.largest_file = request.get("largest_file")
        self.streams = streams

    def take_place(self) -> None:
        """Set up this process as if it had just been started with these arguments."""
        signal.set_wakeup_fd(-1)
        for number in DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if self.largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, tuple(self.largest_file))
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.variables)
        for number, stream in enumerate(self.streams):
            os.dup2(stream, number)
            os.close(stream)
        _open_streams()
        sys.executable = self.variables.get(PYTHON, sys.executable)
        random.seed()
        sys.modules["numpy"].random.seed()
        gc.enable()

    def run(self) -> None:
        """Run the program as `__main__`; an exception or exit of the program is passed on."""
        first, *rest = self.words
        is_safe = first == "-P"
        if is_safe:
            first, *rest = rest
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__builtins__ = __builtins__
        sys.orig_argv = [sys.executable, *self.words]
        if first == "-m":
            sys.path[:1] = [] if is_safe else [self.folder]
            sys.argv = ["-m", *rest[1:]]
            runpy._run_module_as_main(rest[0])
            return
        if first == "-c":
            sys.path[0] = ""
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
            return
        sys.path[0] = str(Path(first).resolve().parent)
        sys.argv = [first, *rest]
        main.__file__ = first
        exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)


def _open_streams() -> None:
    """Open the standard streams as `Py_Initialize` does."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, f"__{name}__")
        words = {"encoding": old.encoding, "errors": old.errors}
        if number and os.environ.get("PYTHONUNBUFFERED"):
            raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115
            stream = io.TextIOWrapper(raw, **words, write_through=True)
        else:
            lines = number == 2 or os.isatty(number)
            mode = "w" if number else "r"
            size = 1 if lines else -1
            stream = open(number, mode, buffering=size, closefd=False, **words)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for reference in logging._handlerList:
        handler = reference()
        if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler):
            handler.stream = sys.stderr


class Parent:
    """Takes commands from the socket until the pipe is closed.

    Args:
        listening: The socket.
        pipe: A pipe whose other end the process that started this one holds.
    """

    def __init__(self, listening: socket.socket, pipe: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ, self._accept)
        self._selector.register(pipe, selectors.EVENT_READ, self._end)
        self._woken, waking = socket.socketpair()
        for end in (self._woken, waking):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._reap)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in pytest is meant for the commands
        self._waking = waking
        self._listening, self._pipe = listening, pipe
        self._children: dict[int, socket.socket] = {}
        self._ends = False

    def next_command(self) -> Command | None:
        """Serve requests; return the command in each child, and None in the parent at the end."""
        while not self._ends:
            for key, _ in self._selector.select():
                command = key.data(key.fileobj)
                if command is not None:
                    return command
        for process in self._children:
            os.kill(process, signal.SIGKILL)
        return None

    def _accept(self, listening: socket.socket) -> Command | None:
        connection, _ = listening.accept()
        command = _received(connection)
        if command is None:
            connection.close()
            return None
        process = os.fork()
        if process == 0:
            self._forget(connection)
            return command
        for stream in command.streams:
            os.close(stream)
        self._children[process] = connection
        self._selector.register(connection, selectors.EVENT_READ, self._left_alone)
        _tell(connection, process)
        return None

    def _forget(self, connection: socket.socket) -> None:
        """Close the parent's files in a child."""
        self._selector.close()
        for ours in (*self._children.values(), connection, self._listening):
            ours.close()
        signal.set_wakeup_fd(-1)
        self._woken.close()
        self._waking.close()
        os.close(self._pipe)

    def _left_alone(self, connection: socket.socket) -> None:
        """Kill the command of a client that has closed its connection."""
        for process, asked in list(self._children.items()):
            if asked is connection:
                os.kill(process, signal.SIGKILL)
        self._selector.unregister(connection)

    def _reap(self, woken: socket.socket) -> None:
        woken.recv(4096)
        for process in list(self._children):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                connection = self._children.pop(process)
                _tell(connection, os.waitstatus_to_exitcode(status))
                if connection.fileno() in self._selector.get_map():
                    self._selector.unregister(connection)
                connection.close()

    def _end(self, _: object) -> None:
        self._ends = True


def _received(connection: socket.socket) -> Command | None:
    """Receive a request, its length with the streams first; None if it is incomplete."""
    head, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    if len(head) < LENGTH.size or len(streams) < 3:
        return None
    left, parts = LENGTH.unpack(head)[0], []
    while left:
        part = connection.recv(min(left, 1 << 16))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return Command(json.loads(b"".join(parts)), list(streams))


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the client no longer waits for it
        connection.sendall(struct.pack("!i", number))


def serve() -> Command | None:
    """Import, report that it is complete, and serve; return the command in a child, else None."""
    listening = socket.socket(fileno=int(sys.argv[1]))
    pipe = int(sys.argv[2])
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's OpenBLAS starts threads at import
    os.fsync = os.fstat  # as in conftest.py
    gc.disable()  # until a child starts: a collection would copy memory pages in each child
    import_all()
    threads = len(os.listdir("/proc/self/task"))
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)  # as in conftest.py
    sys.stdout.write(json.dumps({"threads": threads, "variables": dict(os.environ)}))
    sys.stdout.flush()
    os.dup2(0, 1)  # closes the pipe that running.py reads
    if threads > 1:
        return None
    return Parent(listening, pipe).next_command()


def end_with(stop: BaseException | None) -> NoReturn:
    """End as the interpreter does: threads, exit functions and streams, and then the exit code.

    The interpreter would also delete every module, copying the pages shared with the parent, for a
    second; the system frees the memory at once.
    """
    code = 0
    if isinstance(stop, SystemExit):
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if stop.code is not None and not isinstance(stop.code, int):
            sys.stderr.write(f"{stop.code}\n")
    elif stop is not None:
        code = 1
        sys.excepthook(type(stop), stop, stop.__traceback__)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):  # closed, or without a reader
            stream.flush()
    if isinstance(stop, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def run_as_main(command: Command) -> NoReturn:
    """Take over a command, run it, and exit as it does."""
    stop = None
    try:
        command.take_place()
        command.run()
    except BaseException as raised:
        stop = raised
    end_with(stop)


if __name__ == "__main__":
    COMMAND = serve()
    if COMMAND is not None:
        run_as_main(COMMAND)
