"""Runs the stages of a dataset with Ray Data, on one machine or a cluster.

Batches are submitted in windows, so that a dataset of any size takes bounded memory. Ray Data
streams each window: results wait in its bounded store, which holds up earlier stages when full.
Results return to this process in order, and only it writes, so files are as with `LocalEngine`,
and each is written once even if work was repeated. Ray Data restarts workers that ended and
repeats their work without limit; `ray_work.py` finds items that end every worker.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from impasto.data.engines.engine import Actors, Executor, ModelStage, Outcomes
from impasto.data.engines.ray_cluster import open_ray, shared_ground
from impasto.data.engines.ray_work import (
    ITEMS,
    MADE,
    NUMBER,
    Attempts,
    Box,
    Ground,
    ModelWorker,
    Notebook,
    RemoteNotebook,
    run_stage,
)
from impasto.data.engines.stages import Stage
from impasto.errors import ImpastoError, MissingDependencyError
from impasto.progress import counted

I = TypeVar("I")  # noqa: E741 - an item
O = TypeVar("O")  # noqa: E741 - an outcome

_WINDOW = 1 << 17  # items
_ASK_SECONDS = 5.0
_MOST_TOGETHER = 8  # batches per task, each of which has an overhead of 20 ms
_TASKS_PER_PROCESSOR = 4  # at least, if there are enough batches


@dataclass(frozen=True)
class _Running:
    """A running Ray.

    Attributes:
        ray: The module.
        ground: What workers have to see.
        notebook: The actor that counts attempts.
    """

    ray: Any
    ground: Ground
    notebook: Any

    def attempts(self, run: int) -> Attempts:
        return Attempts(RemoteNotebook(self.notebook), run)


class RayEngine:
    """Runs stages with Ray Data; Ray is started or joined when the first stage has work.

    Args:
        address: Address of a cluster; see `open_ray`.
        folders: Folders that are read, which a cluster must see too.
        derived: The folder of derived data.
        note: Called with messages: the machines Ray runs on, and at the end how many batches were
            repeated.
    """

    def __init__(
        self,
        address: str | None,
        folders: Sequence[Path],
        derived: Path,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._address, self._folders, self._derived = address, list(folders), derived
        self._note = note or (lambda _: None)
        self._after = contextlib.ExitStack()
        self._running: _Running | None = None
        self._runs = itertools.count()
        self.actors: Actors | None = _RayActors(self)

    def executor(
        self,
        stage: Stage[I, O],
        *,
        workers: int | None = None,
        usual: int | None = None,  # noqa: ARG002 - Ray gives work to all CPUs
        processes: bool = False,  # noqa: ARG002 - its workers are processes
    ) -> Executor[I, O]:
        """Return an executor in Ray tasks; `workers` limits how many run concurrently."""
        return _RayExecutor(self, stage, workers)

    def running(self) -> _Running:
        """Return the running Ray; it is started or joined at the first call.

        Raises:
            ConfigError: A machine of the cluster does not fit.
            MissingDependencyError: Ray is not installed, or the cluster does not answer.
        """
        if self._running is None:
            ground = self._after.enter_context(shared_ground(self._folders, self._derived))
            ray = self._after.enter_context(open_ray(self._address, ground, self._note))
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            kept = (
                ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Notebook)
                .options(scheduling_strategy=here)
                .remote()
            )
            self._after.callback(ray.kill, kept)
            self._running = _Running(ray, ground, kept)
            self._note(_said_of_machines(ray))
        return self._running

    def next_run(self) -> int:
        """Return a new number for a run of a stage."""
        return next(self._runs)

    def close(self) -> None:
        """Shut down a Ray that was started here, or leave the cluster."""
        running, self._running = self._running, None
        try:
            if running is not None:
                again = _repeated(running)
                if again:
                    self._note(
                        f"Ray workers ended; {counted(again, 'batches')} had to be repeated."
                    )
        finally:
            self._after.close()


@dataclass(frozen=True)
class _RayExecutor(Generic[I, O]):
    """Runs one stage in Ray tasks."""

    engine: RayEngine
    stage: Stage[I, O]
    workers: int | None

    def run(self, batches: Iterable[Sequence[I]]) -> Outcomes[I, O]:
        def planned(dataset: Any, running: _Running, attempts: Attempts) -> Any:
            return _by_tasks(dataset, self.stage, running, attempts, self.workers, keep=False)

        return _run(self.engine, batches, planned)


@dataclass(frozen=True)
class _RayActors:
    """Runs models in Ray actors."""

    engine: RayEngine

    def run(
        self, stage: ModelStage[I, O], batches: Iterable[Sequence[I]], *, workers: int | None = None
    ) -> Outcomes[I, O]:
        def planned(dataset: Any, running: _Running, attempts: Attempts) -> Any:
            prepared = _by_tasks(dataset, stage.prepare, running, attempts, workers, keep=True)
            own = running.attempts(self.engine.next_run())
            return _by_actors(prepared, stage, running, own)

        return _run(self.engine, batches, planned)


def _by_tasks(
    dataset: Any,
    stage: Stage[Any, Any],
    running: _Running,
    attempts: Attempts,
    workers: int | None,
    *,
    keep: bool,
) -> Any:
    return dataset.map_batches(
        run_stage,
        batch_size=None,
        batch_format="numpy",
        fn_kwargs={
            "stage": stage, "ground": running.ground, "attempts": attempts, "keep": keep,
        },
        num_cpus=1,
        concurrency=workers,
    )  # fmt: skip


def _by_actors(
    dataset: Any, stage: ModelStage[Any, Any], running: _Running, attempts: Attempts
) -> Any:
    """Add the model to a plan: on each GPU, or once per machine, beside the tasks that prepare.

    Raises:
        MissingDependencyError: It needs a GPU, and the cluster has none.
    """
    ray = running.ray
    machines = sum(node["Alive"] for node in ray.nodes())
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if stage.uses_gpu and not gpus:
        raise MissingDependencyError(
            "This machine has a GPU, but no machine of the Ray cluster reports one. Start them "
            "with `ray start --num-gpus=N`."
        )
    most = gpus if stage.uses_gpu else machines
    return dataset.map_batches(
        ModelWorker,
        fn_constructor_args=(stage, attempts, most),
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=0,
        num_gpus=1 if stage.uses_gpu else 0,
    )


_Plan = Callable[[Any, _Running, Attempts], Any]


def _run(engine: RayEngine, batches: Iterable[Sequence[I]], plan: _Plan) -> Outcomes[I, Any]:
    """Run batches, one window after another; Ray is not started if there are none.

    Raises:
        ImpastoError: A worker raised it, for example because its machine sees other folders.
        MissingDependencyError: The cluster was lost.
    """
    waiting = iter(batches)
    while window := _window(waiting):
        running = engine.running()
        running.ground.touch()
        try:
            with _quiet(running.ray):
                yield from _results(window, plan, running, running.attempts(engine.next_run()))
        except running.ray.exceptions.RayTaskError:
            raise  # an error of the stage itself, with its traceback, as with `LocalEngine`
        except running.ray.exceptions.RayError as error:
            raise MissingDependencyError(_said_of_loss(error)) from error


def _window(waiting: Iterator[Sequence[I]]) -> list[Sequence[I]]:
    """Return the next batches, limited in number of items to bound memory."""
    window, items = [], 0
    for batch in waiting:
        window.append(batch)
        items += len(batch)
        if items >= _WINDOW:
            break
    return window


def _results(
    window: Sequence[Sequence[I]], plan: _Plan, running: _Running, attempts: Attempts
) -> Outcomes[I, Any]:
    ray = running.ray
    processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
    together = len(window) // (_TASKS_PER_PROCESSOR * processors)
    size = max(1, min(_MOST_TOGETHER, together))
    rows = [{NUMBER: number, ITEMS: Box(batch)} for number, batch in enumerate(window)]
    given = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size))
    dataset = plan(given, running, attempts)
    came = 0
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
        for number, made in zip(block[NUMBER].tolist(), block[MADE], strict=True):
            if isinstance(made.value, ImpastoError):
                raise made.value
            _require_next(number, came)
            came += 1
            yield list(zip(window[number], made.value, strict=True))
    _require_next(len(window), came)


def _require_next(number: int, expected: int) -> None:
    """Check that no result is missing: its images would be neither stored nor skipped.

    Raises:
        MissingDependencyError: A result is missing.
    """
    if number != expected:
        raise MissingDependencyError(
            f"Ray returned the results of batch {number} instead of batch {expected}. Completed "
            f"work is kept; run the same command again to continue."
        )


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Make Ray Data keep the order and print nothing; restore the program's settings at the end."""
    before = ray.data.DataContext.get_current()
    own = before.copy()
    own.execution_options.preserve_order = True
    own.max_errored_blocks = 0  # the calling program may let Ray drop failed blocks
    own.enable_progress_bars = own.print_on_execution_start = False
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    try:
        with ray.data.DataContext.current(own):
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _repeated(running: _Running) -> int:
    """Return how many batches were repeated; 0 if the actor that counts them is gone."""
    errors = running.ray.exceptions
    with contextlib.suppress(errors.RayError, errors.GetTimeoutError):
        return int(running.ray.get(running.notebook.repeated.remote(), timeout=_ASK_SECONDS))
    return 0


def _said_of_machines(ray: Any) -> str:
    machines = sum(node["Alive"] for node in ray.nodes())
    has = ray.cluster_resources()
    gpus = int(has.get("GPU", 0))
    also = f" and {counted(gpus, 'GPUs')}" if gpus else ""
    processors = counted(int(has.get("CPU", 0)), "CPUs")
    return f"Ray runs on {counted(machines, 'machines')} with {processors}{also}."


def _said_of_loss(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"Ray could not continue: {lines[-1][:200] if lines else type(error).__name__}. Completed "
        f"work is kept; run the same command again to continue."
    )
