"""Run Python commands as separate processes, where possible without the imports of each.

`run` and `start` replace `subprocess.run` and `subprocess.Popen` for `[sys.executable, *words]`. On
Linux they ask a warm parent (`parent.py`), which has imported the large libraries once, to fork;
elsewhere, and if an environment variable differs that an import may have read, they start the
interpreter.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
READ_WHEN_USED = (
    "ACCELERATE_", "AWS_", "FSDP_", "IMPASTO_", "MASTER_", "RAY_", "TORCHELASTIC_", "GROUP_",
    "ROLE_", "WANDB_",
)  # fmt: skip
NAMES_READ_WHEN_USED = {
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PYTEST_CURRENT_TEST",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING", "CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_CACHE_DIR",
    "PYTHONBREAKPOINT", "PYTORCH_NVML_BASED_CUDA_CHECK", "PWD", "OLDPWD", "_",
}  # fmt: skip
THREADS = "OMP_NUM_THREADS"
PYTHON, ONLY = "IMPASTO_WARM_PYTHON", "IMPASTO_WARM_ONLY"
STAND_IN = """#!/bin/sh
case "$1 $2 $3:,$IMPASTO_WARM_ONLY," in
    "-P -m impasto:,," | "-P -m impasto:"*",$4,"* | "-P -m impasto.studio.thumbnail_worker:"*)
        exec '{python}' -I -S '{worker}' '{address}' "$@" ;;
    *) exec '{python}' "$@" ;;
esac
"""
OWN = tuple(os.environ.items())  # before any test changes it
LENGTH, NUMBER = struct.Struct("!I"), struct.Struct("!i")


def run(
    *words: object,
    timeout: float = 300,
    input: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python words...` to its end, with `input` as its input; its output is captured as UTF-8.

    With `fresh` it is a new interpreter, like a user's, instead of a fork.
    """
    process = start(*words, input=input, env=env, cwd=cwd, fresh=fresh)
    try:
        output, errors = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    command = [sys.executable, *map(str, words)]
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def start(
    *words: object,
    input: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    fresh: bool = False,
    output: int | None = None,
    errors: int | None = None,
) -> Forked | subprocess.Popen[str]:
    """Start `python words...`; its output is returned by `communicate` once it has ended.

    Output that goes to the descriptors `output` or `errors` is not captured.
    """
    variables = dict(os.environ if env is None else env)
    address = None if fresh else warm_parent(variables)
    command = [*map(str, words)]
    with tempfile.TemporaryFile() as given:
        given.write(input.encode())
        given.seek(0)
        if address is not None:
            folder = str(cwd or Path.cwd())
            return Forked(address, command, variables, folder, given.fileno(), output, errors)
        return subprocess.Popen(
            [sys.executable, *command], stdin=given, cwd=cwd, env=variables, text=True,
            stdout=subprocess.PIPE if output is None else output, encoding="utf-8",
            stderr=subprocess.PIPE if errors is None else errors, errors="replace",
        )  # fmt: skip


def launched(words: Sequence[object], env: Mapping[str, str]) -> list[str]:
    """Return arguments of `torch.distributed.run` that run `python words...` in each process."""
    address = warm_parent(env)
    command = [*map(str, words)]
    if address is None:
        return command
    return ["--no-python", sys.executable, "-I", "-S", str(HERE / "worker.py"), address, *command]


def with_forks(
    variables: Mapping[str, str] | None = None, *, only: Sequence[str] = ()
) -> dict[str, str]:
    """Return the environment of a process whose own Impasto commands are forked.

    The process itself is a fresh interpreter, but its `sys.executable` is a stand-in (`worker.py`).

    Args:
        variables: Its other variables.
        only: The commands that are forked, while others are fresh interpreters, as a user's are; by
            default all are forked.
    """
    given = forking(variables, only=only)
    if PYTHON not in given:
        return given
    path = [str(HERE / "site"), *filter(None, [given.get("PYTHONPATH")])]
    return {**given, "PYTHONPATH": os.pathsep.join(path)}


def forking(
    variables: Mapping[str, str] | None = None, *, only: Sequence[str] = ()
) -> dict[str, str]:
    """Return the same as `with_forks`, for a process that is itself a fork."""
    given = dict(os.environ if variables is None else variables)
    found = stand_in(given)
    return given if found is None else {**given, PYTHON: found, ONLY: ",".join(only)}


def stand_in(variables: Mapping[str, str] | None = None) -> str | None:
    """Return a stand-in's path for the interpreter's: it forks Impasto commands given to it.

    None where forks are not possible.
    """
    address = warm_parent(os.environ if variables is None else variables)
    return None if address is None else str(Path(address).with_name("python"))


def warm_parent(variables: Mapping[str, str]) -> str | None:
    """Return the address of a parent with these environment variables, or None if it has others."""
    if not is_possible():
        return None
    threads = variables.get(THREADS)
    own = dict(OWN)
    if threads == "1":
        own[THREADS] = threads
    parent = _started(tuple(sorted(own.items())))
    names = {*own, *variables}
    honoured = all(
        variables.get(name) in (own.get(name), parent.variables.get(name))
        for name in names
        if name not in NAMES_READ_WHEN_USED and not name.startswith(READ_WHEN_USED)
    )
    return parent.address if honoured else None


def is_possible() -> bool:
    """Return whether a fork of a process with PyTorch behaves like a new process.

    macOS's own libraries refuse to work in a fork, and so does CUDA once it has been queried.
    """
    return sys.platform == "linux" and not Path("/dev/nvidia0").exists()


@dataclass(frozen=True)
class Started:
    """A warm parent.

    Attributes:
        address: The path of its socket.
        variables: Its environment after the imports, which set some variables as the command line
            does.
    """

    address: str
    variables: Mapping[str, str]


@functools.cache
def _started(own: tuple[tuple[str, str], ...]) -> Started:
    """Start a parent with an environment, once per environment; it ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    address = str(Path(folder.name) / "socket")
    stand_in = Path(folder.name) / "python"
    worker = HERE / "worker.py"
    text = STAND_IN.format(python=sys.executable, worker=worker, address=address)
    stand_in.write_text(text, encoding="utf-8")
    stand_in.chmod(0o755)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    theirs, ours = os.pipe()
    process = subprocess.Popen(
        [sys.executable, str(HERE / "parent.py"), str(listening.fileno()), str(theirs)],
        pass_fds=(listening.fileno(), theirs), env=dict(own), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    listening.close()
    os.close(theirs)

    def end() -> None:
        os.close(ours)
        process.wait()
        folder.cleanup()

    atexit.register(end)
    with process.stdout as said:
        told = json.loads(said.read() or "{}")
    if told.get("threads") != 1:
        raise RuntimeError(f"the warm parent of commands cannot fork: {told.get('threads')}")
    return Started(address, told["variables"])


class Forked:
    """A command in a fork of the warm parent, with those methods of `Popen` that tests use.

    Attributes:
        pid: Its process id: signals are sent to it directly.
        returncode: The exit code as in `Popen`, once the process has ended.
    """

    def __init__(
        self,
        address: str,
        words: Sequence[str],
        variables: Mapping[str, str],
        folder: str,
        given: int,
        output: int | None = None,
        errors: int | None = None,
    ) -> None:
        self.args = [sys.executable, *words]
        self.returncode: int | None = None
        self._output, self._errors = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        own = (self._output.fileno(), self._errors.fileno())
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        streams = [
            given,
            own[0] if output is None else output,
            own[1] if errors is None else errors,
        ]
        request(self._connection, words, variables, folder, streams)
        self.pid = self._number()

    def _number(self) -> int:
        data = self._connection.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(data) < NUMBER.size:
            raise RuntimeError("the warm parent of commands has ended")
        return NUMBER.unpack(data)[0]

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        try:
            return self.wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return its exit code."""
        if self.returncode is None:
            self._connection.settimeout(None if timeout is None else max(timeout, 1e-6))
            try:
                self.returncode = self._number()
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of the process, and return its output and its errors."""
        self.wait(timeout)
        texts = []
        for stream in (self._output, self._errors):
            with stream as file:
                file.seek(0)
                texts.append(file.read().decode("utf-8", errors="replace"))
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def request(
    connection: socket.socket,
    words: Sequence[str],
    variables: Mapping[str, str],
    folder: str,
    streams: Sequence[int],
) -> None:
    """Request a command from the parent; `worker.py` sends the same message."""
    content = {"words": list(words), "variables": dict(variables), "folder": folder}
    data = json.dumps(content).encode()
    socket.send_fds(connection, [LENGTH.pack(len(data))], list(streams))
    connection.sendall(data)
