"""The code that Ray's workers run: batches of a stage or a model, with a count of attempts at each.

If a worker ends (killed, out of memory, its machine lost), another gets its work. Items that end
every worker are found by counting: a batch that ended two is processed item by item, and an item
that alone ended two more is a `Failure`, as with processes of one machine. Imported by workers and
by `ray_engine.py`; does not import Ray.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from impasto import presence
from impasto.data.columns.table_rows import forget_stored
from impasto.data.engines.engine import ModelStage
from impasto.data.engines.stages import Failure, Stage
from impasto.errors import ConfigError, ImpastoError, OutOfMemoryError
from impasto.version import __version__

TOGETHER, ALONE = 2, 2
"""Workers that a batch, and then one of its items alone, may end before it is given up."""
OPENINGS = 3
"""Workers that loading a model may end, beyond one per worker that may be loading it now."""

NUMBER, ITEMS, MADE = "number", "items", "made"
Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Box:
    """Holds a value that Ray would otherwise convert to columns of lists and arrays."""

    value: Any


def rows_of(numbers: Sequence[int], **columns: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return a block of rows: a number each, and boxed values of any type."""
    rows = {NUMBER: np.asarray(numbers, dtype=np.int64)}
    for name, values in columns.items():
        column = np.empty(len(values), dtype=object)
        for index, value in enumerate(values):
            column[index] = Box(value)
        rows[name] = column
    return rows


@dataclass(frozen=True)
class Ground:
    """What has to be the same on every machine that runs a stage.

    Attributes:
        folders: Folders that are read or written.
        probe: A file that the first machine wrote; empty if it may not write.
        token: The content of that file.
        version: The version of Impasto.
        python: The version of Python, as `3.11`.
    """

    folders: tuple[str, ...] = ()
    probe: str = ""
    token: str = ""
    version: str = __version__
    python: str = field(default_factory=lambda: ".".join(platform.python_version_tuple()[:2]))

    def fault(self) -> str:
        """Return what differs on this machine, as a text for the user; empty if nothing does."""
        own = Ground()
        if own.version != self.version:
            return f"it has Impasto {own.version}, and the machine that asks has {self.version}"
        if own.python != self.python:
            return f"it has Python {own.python}, and the machine that asks has {self.python}"
        for folder in self.folders:
            if not presence.is_dir(Path(folder)):
                return f"the folder {folder} does not exist there"
        return "" if not self.probe else self._fault_of_probe()

    def _fault_of_probe(self) -> str:
        folder = Path(self.probe).parent
        try:
            found = Path(self.probe).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return f"{folder} is another folder there, or cannot be read ({reason})"
        return "" if found == self.token else f"{folder} is another folder there"

    def touch(self) -> None:
        """Update the probe file's time, so that no machine removes it as a killed command's."""
        if self.probe:
            with contextlib.suppress(OSError):
                os.utime(self.probe)

    def require(self) -> None:
        """Raise unless this process sees what the first one sees; checked once per process.

        Raises:
            ConfigError: Something differs.
        """
        if self in _SEEN:
            return
        fault = self.fault()
        if fault:
            raise ConfigError(said_of_node(platform.node(), fault))
        _SEEN.add(self)


_SEEN: set[Ground] = set()


def said_of_node(name: str, fault: str) -> str:
    """Return the error message for a machine of the cluster that cannot take part."""
    return (
        f"The machine {name} of the Ray cluster cannot take part: {fault}. All machines need the "
        f"same Impasto and Python, and the same folders under the same paths, as on a network disk."
    )


Key = tuple[Any, ...]
"""Identifies work: the number of the run, of the batch, and possibly the index of an item."""


class Counts(Protocol):
    """The interface of a `Notebook`, in this process or in another."""

    def begin(self, key: Key) -> int: ...  # noqa: D102
    def begin_all(self, keys: Sequence[Key]) -> bool: ...  # noqa: D102
    def end(self, *keys: Key) -> None: ...  # noqa: D102


class Notebook:
    """Counts attempts, in a process that runs no stage."""

    def __init__(self) -> None:
        self._open: Counter[Key] = Counter()
        self._again = 0

    def begin(self, key: Key) -> int:
        """Record that work begins; return how often it began since it was last completed.

        More than once means that workers ended meanwhile.
        """
        self._open[key] += 1
        self._again += self._open[key] > 1
        return self._open[key]

    def begin_all(self, keys: Sequence[Key]) -> bool:
        """Record that all of this work begins, and return True.

        If any of it began before without being completed, record nothing and return False.
        """
        if any(key in self._open for key in keys):
            return False
        for key in keys:
            self.begin(key)
        return True

    def repeated(self) -> int:
        """Return how often work was repeated because its worker had ended."""
        return self._again

    def end(self, *keys: Key) -> None:
        """Record that work is completed."""
        for key in keys:
            self._open.pop(key, None)


@dataclass(frozen=True)
class RemoteNotebook:
    """A `Notebook` in a separate actor, as workers use it.

    Attributes:
        actor: Ray's handle of the actor.
    """

    actor: Any

    def begin(self, key: Key) -> int:
        """Record that work begins; return how often it began since it was last completed."""
        import ray

        return int(ray.get(self.actor.begin.remote(key)))

    def begin_all(self, keys: Sequence[Key]) -> bool:
        """Record that all of this work begins; return False if any of it began before."""
        import ray

        return bool(ray.get(self.actor.begin_all.remote(keys)))

    def end(self, *keys: Key) -> None:
        """Record that work is completed, without waiting for the actor."""
        self.actor.end.remote(*keys)


@dataclass(frozen=True)
class Attempts:
    """Counts the attempts of one run of a stage, for a worker.

    Attributes:
        notebook: The notebook, in another process.
        run: The number of the run.
    """

    notebook: Counts
    run: int

    def count(self, *key: Any) -> int:
        """Record that work begins; return how often it has begun without being completed."""
        return self.notebook.begin((self.run, *key))

    def done(self, *key: Any) -> None:
        """Record that work is completed."""
        self.notebook.end((self.run, *key))

    @contextlib.contextmanager
    def together(self, numbers: Sequence[int]) -> Iterator[bool]:
        """Record in one request that batches begin, and in another that they are completed.

        Yields whether they were recorded: False if a worker has ended while working on one of them,
        so that each has to be counted.
        """
        keys = [(self.run, number) for number in numbers]
        is_noted = self.notebook.begin_all(keys)
        yield is_noted
        if is_noted:
            self.notebook.end(*keys)

    def outcomes(
        self, number: int, size: int, work: Callable[[slice], list[Any]]
    ) -> list[Any | Failure]:
        """Process a batch, or its items one by one if the batch has ended workers before.

        Args:
            number: The number of the batch.
            size: Number of items in it.
            work: Returns the outcomes of a slice of the items.
        """
        if self.count(number) <= TOGETHER:
            found = work(slice(0, size))
            self.done(number)
            return found
        found = []
        for index in range(size):
            if self.count(number, index) > ALONE:
                reason = "working on it ended the process (out of memory?)"
                found.append(Failure(reason, is_transient=True))
            else:
                found += work(slice(index, index + 1))
            self.done(number, index)
        self.done(number)
        return found


def run_stage(
    rows: Rows, stage: Stage[Any, Any], ground: Ground, attempts: Attempts, *, keep: bool
) -> Iterator[Rows]:
    """Run a stage on batches, one row each, and yield a row of results per batch.

    Args:
        rows: `NUMBER` and `ITEMS`.
        stage: The stage to run.
        ground: What has to be the same on this machine.
        attempts: Counts the attempts.
        keep: Whether the items are passed to the next stage with the results.
    """
    forget_stored()  # a worker outlives the scan it was started for
    numbers = rows[NUMBER].tolist()
    with attempts.together(numbers) as are_noted:
        for number, box in zip(numbers, rows[ITEMS], strict=True):
            items = box.value

            def work(part: slice, items: Sequence[Any] = items) -> list[Any]:
                return stage(items[part])

            try:
                ground.require()
                made: Any = (
                    stage(items) if are_noted else attempts.outcomes(number, len(items), work)
                )
            except ImpastoError as error:
                made = error
            yield rows_of([number], **({ITEMS: [items]} if keep else {}), **{MADE: [made]})


class ModelWorker:
    """Holds a model, and runs it on prepared batches.

    Args:
        stage: Loads the model.
        attempts: Counts the attempts.
        most: Maximum number of such workers.
    """

    def __init__(self, stage: ModelStage[Any, Any], attempts: Attempts, most: int) -> None:
        self._stage, self._attempts, self._most = stage, attempts, most
        self._model: Callable[[Sequence[Any], Sequence[Any]], list[Any]] | None = None

    def __call__(self, rows: Rows) -> Iterator[Rows]:
        """Process batches, one row each: `NUMBER`, `ITEMS` and, in `MADE`, the prepared values."""
        columns = zip(rows[NUMBER].tolist(), rows[ITEMS], rows[MADE], strict=True)
        for number, items, prepared in columns:
            made: Any = prepared.value
            if not isinstance(made, ImpastoError):
                try:
                    made = self._outcomes(number, items.value, made)
                except ImpastoError as error:
                    made = error
            yield rows_of([number], **{MADE: [made]})

    def _outcomes(self, number: int, items: Sequence[Any], made: Sequence[Any]) -> list[Any]:
        model = self._opened()
        return self._attempts.outcomes(
            number, len(items), lambda part: model(items[part], made[part])
        )

    def _opened(self) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
        if self._model is None:
            tried = self._attempts.count("open")
            if tried > OPENINGS + self._most:
                raise OutOfMemoryError(
                    f"Loading the model ended the process {tried - 1} times, the last time on the "
                    f"machine {platform.node()}. It has too little memory, or the system ends the "
                    f"processes."
                )
            self._model = self._stage.open()
            self._attempts.done("open")
        return self._model
