"""Connects to Ray: one started on this machine and ended again, or an existing cluster.

Ray is imported only when it is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from impasto import files, ram, storage_errors
from impasto.cpus import usable_cpus
from impasto.data.engines import ray_tokens
from impasto.data.engines.ray_folder import ray_folder
from impasto.data.engines.ray_inside import looking_often, printing_nothing
from impasto.data.engines.ray_work import Ground, said_of_node
from impasto.errors import ConfigError, MissingDependencyError
from impasto.invocation import missing_extra
from impasto.remote_paths import copies_folder, is_remote
from impasto.temporary_names import partial_name

ADDRESS = "RAY_ADDRESS"
"""The environment variable with the address of a cluster, as for Ray's own commands."""
_ANSWER_SECONDS = 10.0
_JOIN_SECONDS, _INTERRUPTED_SECONDS = 60.0, 30.0
_WATCH_SECONDS, _MISSED = 5.0, 3
_PATH = "PYTHONPATH"
_CHECK_SECONDS = 120.0
_STORE_BYTES = 2 << 30
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # otherwise Ray reports each use to its developers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def import_ray() -> Any:
    """Return the `ray` module, with Ray Data imported.

    Raises:
        MissingDependencyError: It is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise missing_extra(
            "ray",
            f"dataset.executor is ray, and Ray Data is not installed ({error}).",
            "Or set dataset.executor to local.",
        ) from error
    return ray


@contextlib.contextmanager
def open_ray(address: str | None, ground: Ground, note: Callable[[str], None]) -> Iterator[Any]:
    """Provide Ray until the context exits.

    An already initialized Ray of this process is used and left running; otherwise the cluster at
    the address is joined, or Ray is started on this machine and ended again.

    Args:
        address: `host:port` of a cluster, or `auto` for the one on this machine; None uses the
            environment's `RAY_ADDRESS`, or else starts Ray on this machine.
        ground: What has to be the same on all machines.
        note: Called with a message when the cluster's head is lost.

    Raises:
        ConfigError: The address is invalid, or a machine does not see the same folders or has
            another version of Impasto or Python.
        MissingDependencyError: Ray is not installed, or the cluster does not answer.
    """
    ray = import_ray()
    if ray.is_initialized():  # by the calling program, which also ends it
        _require_same_ground(ray, ground)
        yield ray
        return
    named = address or os.environ.get(ADDRESS) or None
    with contextlib.ExitStack() as after:
        after.enter_context(printing_nothing())
        after.enter_context(looking_often())
        keeper = _Keeper(ray, note)
        if named is None:
            _start(keeper, after)
        else:
            _join(keeper, named, after)
            _require_same_ground(ray, ground)
        yield ray


def _start(keeper: _Keeper, after: contextlib.ExitStack) -> None:
    """Start Ray on this machine: no dashboard, no logs, a bounded store, a temporary folder."""
    folder = after.enter_context(ray_folder())
    after.enter_context(ray_tokens.own_token())
    after.callback(keeper.end)
    with _silent_stderr(), _handed_on_path():
        failed = keeper.init(
            None,
            num_cpus=usable_cpus(),
            include_dashboard=False,
            object_store_memory=min(_STORE_BYTES, ram.total_bytes() // 5),
            _temp_dir=str(folder),
        )
    if failed is not None:
        raise MissingDependencyError(
            f"Ray could not be started on this machine: {_first_line(failed)}. Set "
            f"dataset.executor to local, or join a cluster with dataset.ray_address."
        ) from failed


class _Keeper:
    """Calls `ray.init` on a thread that lives until the end, and monitors the head.

    A separate thread, since a Ctrl-C during `ray.init` would leave processes behind that nothing
    ends, and since `ray.init` waits for ever if another service than Ray answers at the address.
    The thread stays: on Linux, Ray's processes end with the thread that started them
    (`PR_SET_PDEATHSIG`).

    Args:
        ray: The module.
        note: Called with a message when the head stops answering.
    """

    def __init__(self, ray: Any, note: Callable[[str], None]) -> None:
        self._ray, self._note = ray, note
        self._begun, self._ended = threading.Event(), threading.Event()
        self._failed: BaseException | None = None

    def init(self, within_s: float | None, **options: Any) -> BaseException | None:
        """Call `ray.init`; return the error if it failed, or None.

        Args:
            within_s: Seconds to wait for it; None waits for ever.
            options: Arguments of `ray.init`.
        """
        threading.Thread(target=self._work, kwargs=options, daemon=True).start()
        try:
            in_time = self._begun.wait(within_s)
        except BaseException:  # Ctrl-C: the caller ends the processes that `init` has started
            self._begun.wait(_INTERRUPTED_SECONDS)
            raise
        return self._failed if in_time else TimeoutError(f"no answer in {within_s:.0f} s")

    def end(self) -> None:
        """Shut Ray down, and then end the thread."""
        self._ray.shutdown()
        self._ended.set()

    def _work(self, **options: Any) -> None:
        try:
            self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            head = self._ray.get_runtime_context().gcs_address
        except BaseException as error:  # `init` returns it to its caller's thread
            self._failed = error
            return
        finally:
            self._begun.set()
        self._watch(head)

    def _watch(self, head: str) -> None:
        """Report when the head is lost: Ray ends the process without a message, a minute later."""
        missed = 0
        while not self._ended.wait(_WATCH_SECONDS):
            missed = 0 if _answers(head) else missed + 1
            if missed == _MISSED and not self._ended.is_set():
                self._note(
                    f"The Ray head at {head} no longer answers. Unless it returns, Ray ends this "
                    f"command within a minute or two. Completed work is kept; run the same command "
                    f"again to continue."
                )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


@contextlib.contextmanager
def _handed_on_path() -> Iterator[None]:
    """Make new processes search modules where this process does, as `spawn` does."""
    before = os.environ.get(_PATH)
    os.environ[_PATH] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PATH]
        else:
            os.environ[_PATH] = before


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard output to file descriptor 2: Ray prints a line about its log level there."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _join(keeper: _Keeper, address: str, after: contextlib.ExitStack) -> None:
    """Join a cluster.

    Raises:
        ConfigError: The address is invalid.
        MissingDependencyError: Nothing answers there, or it cannot be joined from this machine.
    """
    if address != "auto":
        _require_answer(address)
    after.callback(keeper.end)
    failed = keeper.init(_JOIN_SECONDS, address=address)
    if failed is not None:
        raise MissingDependencyError(
            f"The Ray cluster {address} cannot be joined from this machine: {_first_line(failed)}. "
            f"Impasto has to run on a machine of the cluster (`ray start --address={address}` adds "
            f"this one to it), with the same versions of Ray and Python. "
            f"{ray_tokens.SAID}."
        ) from failed


def _require_answer(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or "/" in host:
        raise ConfigError(
            f"{address!r} is not the address of a Ray cluster; expected host:port, as in "
            f"192.168.1.5:6379, or auto for the one that runs on this machine."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MissingDependencyError(
            f"The Ray cluster {address} does not answer ({reason}). Start it with `ray start "
            f"--head`, correct the address (dataset.ray_address, --ray-address or {ADDRESS}), or "
            f"remove it to start Ray on this machine."
        ) from error


@contextlib.contextmanager
def shared_ground(folders: list[Path], derived: Path) -> Iterator[Ground]:
    """Provide what all machines must see, with a probe file in the folder of derived data.

    Folders in an object store, and their copies on this machine, are left out, since other machines
    need not have them.

    Args:
        folders: Folders that are read.
        derived: The folder of derived data.

    Raises:
        StorageError: The folder of derived data cannot be written.
    """
    names = tuple(str(folder.absolute()) for folder in folders if not is_remote(folder))
    is_apart = is_remote(derived) or derived.is_relative_to(copies_folder())
    if is_apart or not files.writes_caches():
        yield Ground(names)
        return
    token = uuid.uuid4().hex
    probe = partial_name(derived.absolute() / "seen-by-ray")  # after a kill a later scan removes it
    try:
        with storage_errors.reported(derived):
            derived.mkdir(parents=True, exist_ok=True)
            probe.write_text(token, encoding="utf-8")
        yield Ground(names, str(probe), token)
    finally:
        probe.unlink(missing_ok=True)


def _require_same_ground(ray: Any, ground: Ground) -> None:
    """Check on each machine of a cluster that it sees the same folders and has the same versions.

    Raises:
        ConfigError: A machine differs, or does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asking = ray.remote(num_cpus=0, max_retries=1, num_returns="streaming")(_faults_here)
    waiting = []
    for node in ray.nodes():
        if node["Alive"]:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = node.get("NodeManagerHostname") or node["NodeManagerAddress"]
            waiting.append((asking.options(scheduling_strategy=place).remote(ground), name))
    for answers, name in waiting:
        try:
            if ray.wait([answers], timeout=_CHECK_SECONDS)[0]:
                fault = ray.get(next(answers), timeout=_CHECK_SECONDS)
            else:
                fault = f"it did not answer in {_CHECK_SECONDS:.0f} s. {ray_tokens.SAID}"
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            fault = f"Impasto does not run there ({lines[-1].strip()[:160] if lines else error})"
        if fault:
            raise ConfigError(said_of_node(name, fault))


def _faults_here(ground: Ground) -> Iterator[str]:
    """Yield what differs here, as a result of work: Ray refuses those without the right token."""
    yield ground.fault()
