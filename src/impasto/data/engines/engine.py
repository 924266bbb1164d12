"""What runs the stages of a dataset: this machine's threads and processes, or another engine.

A function that has stages to run takes an `Engine`, and knows nothing else of where they run.
`LocalEngine` is the usual one; `ray_engine.py` has the other, and is imported where it is asked
for. Whatever the engine, results come in the order of the items, and failures are values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from impasto.data.engines.stages import Failure, LocalExecutor, Stage, default_workers

I = TypeVar("I")  # noqa: E741 - an item
O = TypeVar("O")  # noqa: E741 - an outcome
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)

Outcomes = Iterator[list[tuple[I, O | Failure]]]
"""Of each batch its items with what became of them."""


class Executor(Protocol[I, O]):
    """Runs one stage of preparation over batches of items."""

    def run(self, batches: Iterable[Sequence[I]]) -> Outcomes[I, O]:
        """Yield each batch's items with what became of them, in their order."""


class ModelStage(Protocol[ItemT_contra, O]):
    """A stage with a model, for an engine whose processes each make the model for themselves.

    It is sent to them, so it is small: it names the model's files and types.

    Attributes:
        uses_gpu: Whether each process that has the model needs a GPU.
        prepare: Runs ahead, in processes without the model.
    """

    @property
    def uses_gpu(self) -> bool: ...  # noqa: D102

    @property
    def prepare(self) -> Stage[ItemT_contra, Any]: ...  # noqa: D102

    def open(self) -> Callable[[Sequence[ItemT_contra], Sequence[Any]], list[O | Failure]]:
        """Make the model; called once in each process that is to have it.

        What it gives takes items and what was prepared of each, which may be a `Failure`.
        """


class Actors(Protocol):
    """Processes that keep a model."""

    def run(
        self, stage: ModelStage[I, O], batches: Iterable[Sequence[I]], *, workers: int | None = None
    ) -> Outcomes[I, O]:
        """Prepare batches, and have models work on them; results in the order of the items.

        Args:
            stage: What is done.
            batches: The items.
            workers: Batches that are prepared at once, at most; None sets no limit of its own.
        """


class Engine(Protocol):
    """Runs the stages of preparation: on this machine, or on several."""

    @property
    def actors(self) -> Actors | None:
        """What runs models in separate processes; None where the caller runs its own."""

    def executor(
        self,
        stage: Stage[I, O],
        *,
        workers: int | None = None,
        usual: int | None = None,
        processes: bool = False,
    ) -> Executor[I, O]:
        """What runs a stage.

        Args:
            stage: Picklable: an instance of a class at the top of a module.
            workers: Batches at once, as a person asked for; None leaves it to the engine.
            usual: What `LocalEngine` takes for None; None means one for each processor.
            processes: Whether its workers are processes, where that is the engine's choice.
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
        """Run a stage in threads or processes; 0 workers run it in the calling thread."""
        number = workers if workers is not None else (usual or default_workers())
        return LocalExecutor(stage, workers=number, processes=processes)


LOCAL: Engine = LocalEngine()
