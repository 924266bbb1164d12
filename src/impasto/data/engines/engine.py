"""The interface of engines, which run a dataset's stages, and the one for this machine.

A function that has stages to run takes an `Engine` and need not know where they run. `LocalEngine`
uses threads and processes of this machine and is the default; `ray_engine.py` has the other and is
imported only if requested. In every engine results are in the order of the items, and failures
are values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from impasto.data.engines.stages import Failure, LocalExecutor, Stage, default_workers

I = TypeVar("I")  # noqa: E741 - an item
O = TypeVar("O")  # noqa: E741 - an outcome
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)

Outcomes = Iterator[list[tuple[I, O | Failure]]]
"""For each batch, its items with their results or failures."""


class Executor(Protocol[I, O]):
    """Runs one stage of preparation over batches of items."""

    def run(self, batches: Iterable[Sequence[I]]) -> Outcomes[I, O]:
        """Yield each batch's items with their results, in order."""


class ModelStage(Protocol[ItemT_contra, O]):
    """A stage with a model, for an engine whose processes each load their own copy of the model.

    The stage is sent to them, so it is small: it names the model's files and dtypes.

    Attributes:
        uses_gpu: Whether each process with the model needs a GPU.
        prepare: The stage before it, which runs in processes without the model.
    """

    @property
    def uses_gpu(self) -> bool: ...  # noqa: D102

    @property
    def prepare(self) -> Stage[ItemT_contra, Any]: ...  # noqa: D102

    def open(self) -> Callable[[Sequence[ItemT_contra], Sequence[Any]], list[O | Failure]]:
        """Load the model; called once in each process that runs it.

        Returns a function of the items and the prepared value of each, which may be a `Failure`.
        """


class Actors(Protocol):
    """Processes that each hold a model."""

    def run(
        self, stage: ModelStage[I, O], batches: Iterable[Sequence[I]], *, workers: int | None = None
    ) -> Outcomes[I, O]:
        """Prepare batches and run a model on them; results are in the order of the items.

        Args:
            stage: The stage to run.
            batches: The items.
            workers: Maximum number of batches prepared concurrently; None sets no limit.
        """


class Engine(Protocol):
    """Runs the stages of preparation, on this machine or on several."""

    @property
    def actors(self) -> Actors | None:
        """The processes that run models; None if the caller has to run its model itself."""

    def executor(
        self,
        stage: Stage[I, O],
        *,
        workers: int | None = None,
        usual: int | None = None,
        processes: bool = False,
    ) -> Executor[I, O]:
        """Return an executor for a stage.

        Args:
            stage: Picklable: an instance of a class at the top of a module.
            workers: Number of concurrent batches, as set by the user; None leaves it to the engine.
            usual: What `LocalEngine` uses for None; None means one per CPU, 8 at most.
            processes: Whether `LocalEngine` uses processes instead of threads.
        """


class LocalEngine(Generic[I]):
    """Runs stages on this machine."""

    actors: Actors | None = None

    def executor(
        self,
        stage: Stage[I, O],
        *,
        workers: int | None = None,
        usual: int | None = None,
        processes: bool = False,
    ) -> Executor[I, O]:
        """Return an executor in threads or processes; 0 workers run in the calling thread."""
        number = workers if workers is not None else (usual or default_workers())
        return LocalExecutor(stage, workers=number, processes=processes)


LOCAL: Engine = LocalEngine()
