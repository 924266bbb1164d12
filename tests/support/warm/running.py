"""Runs commands of Python as processes of their own, where it can be without the imports of each.

`run` and `start` are what `subprocess.run` and `subprocess.Popen` are for
`[sys.executable, *words]`. On Linux they ask a warm parent (`parent.py`), which has imported the
large libraries once, to fork; elsewhere, and where a variable of the environment may have been
read by an import, they start the interpreter.
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
OWN = tuple(os.environ.items())  # as it is before any test changes it
LENGTH, NUMBER = struct.Struct("!I"), struct.Struct("!i")


def run(
    *words: object,
    timeout: float = 300,
    input: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python words...` to its end on some input; its output is captured as UTF-8.

    With `fresh` it is an interpreter that begins from nothing, as a user's does.
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
    """Start `python words...`; what it writes is had by `communicate`, when it has ended.

    But for what is to go to a descriptor of `output` or `errors`.
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
    """What `torch.distributed.run` is given to run `python words...` in each of its processes."""
    address = warm_parent(env)
    command = [*map(str, words)]
    if address is None:
        return command
    return ["--no-python", sys.executable, "-I", "-S", str(HERE / "worker.py"), address, *command]


def with_forks(
    variables: Mapping[str, str] | None = None, *, only: Sequence[str] = ()
) -> dict[str, str]:
    """Variables of a process whose own commands of Impasto are forked, as those of a studio are.

    The process is an interpreter as ever; what it takes for the path of its interpreter, and
    starts, is a stand-in (`worker.py`).

    Args:
        variables: What it has besides.
        only: The commands that are forked, where the others are interpreters as a user's are; none
            stands for all.
    """
    given = forking(variables, only=only)
    if PYTHON not in given:
        return given
    path = [str(HERE / "site"), *filter(None, [given.get("PYTHONPATH")])]
    return {**given, "PYTHONPATH": os.pathsep.join(path)}


def forking(
    variables: Mapping[str, str] | None = None, *, only: Sequence[str] = ()
) -> dict[str, str]:
    """The same as `with_forks` for a process that is a fork itself."""
    given = dict(os.environ if variables is None else variables)
    found = stand_in(given)
    return given if found is None else {**given, PYTHON: found, ONLY: ",".join(only)}


def stand_in(variables: Mapping[str, str] | None = None) -> str | None:
    """A path that stands in for the interpreter's: commands of Impasto that it is given are forked.

    None where they cannot be.
    """
    address = warm_parent(os.environ if variables is None else variables)
    return None if address is None else str(Path(address).with_name("python"))


def warm_parent(variables: Mapping[str, str]) -> str | None:
    """Where a parent listens that has these variables; None where there can be none."""
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
    """Whether a fork of a process with PyTorch is as good as another process.

    macOS's own libraries refuse to work in one, and so does CUDA once it has been looked at.
    """
    return sys.platform == "linux" and not Path("/dev/nvidia0").exists()


@dataclass(frozen=True)
class Started:
    """A warm parent.

    Attributes:
        address: The name of its socket.
        variables: Its environment after the imports, which set some of what the command line sets.
    """

    address: str
    variables: Mapping[str, str]


@functools.cache
def _started(own: tuple[tuple[str, str], ...]) -> Started:
    """Start a parent with an environment, once; it ends with this process."""
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
    """A command in a fork of the warm parent, with what tests use of `subprocess.Popen`.

    Attributes:
        pid: Its process number: signals go to it directly.
        returncode: As `Popen` has it, once the process has ended.
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
        """The exit code, or None while it runs."""
        try:
            return self.wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if self.returncode is None:
            self._connection.settimeout(None if timeout is None else max(timeout, 1e-6))
            try:
                self.returncode = self._number()
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote."""
        self.wait(timeout)
        texts = []
        for stream in (self._output, self._errors):
            with stream as file:
                file.seek(0)
                texts.append(file.read().decode("utf-8", errors="replace"))
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def request(
    connection: socket.socket,
    words: Sequence[str],
    variables: Mapping[str, str],
    folder: str,
    streams: Sequence[int],
) -> None:
    """Ask for a command; `worker.py` says it in the same way."""
    content = {"words": list(words), "variables": dict(variables), "folder": folder}
    data = json.dumps(content).encode()
    socket.send_fds(connection, [LENGTH.pack(len(data))], list(streams))
    connection.sendall(data)
