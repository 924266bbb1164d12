"""What the workers of Ray run: batches of a stage or a model, with a count of attempts at each.

A worker that ends (killed, out of memory, its machine lost) has its work given to another. What
ends every worker is found by counting: a batch that ended two is worked on item by item, and an
item that ended two more by itself is a `Failure`, as it is with processes of one machine.
Imported by workers and by `ray_engine.py`; imports no Ray.
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
"""Workers that a batch, and then one of its items, may end before it is given up."""
OPENINGS = 3
"""Workers that opening a model may end, beyond one for each that may be opening it."""

NUMBER, ITEMS, MADE = "number", "items", "made"
Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Box:
    """Holds a value, which Ray takes as it is: it would make columns of lists and arrays."""

    value: Any


def rows_of(numbers: Sequence[int], **columns: Sequence[Any]) -> dict[str, np.ndarray]:
    """A block of rows: a number each, and boxes of anything."""
    rows = {NUMBER: np.asarray(numbers, dtype=np.int64)}
    for name, values in columns.items():
        column = np.empty(len(values), dtype=object)
        for index, value in enumerate(values):
            column[index] = Box(value)
        rows[name] = column
    return rows


@dataclass(frozen=True)
class Ground:
    """What has to be the same wherever a stage runs.

    Attributes:
        folders: Folders that are read or written.
        probe: A file that the first machine wrote; empty where nothing may be written.
        token: What is in it.
        version: Of Impasto.
        python: Its version, as `3.11`.
    """

    folders: tuple[str, ...] = ()
    probe: str = ""
    token: str = ""
    version: str = __version__
    python: str = field(default_factory=lambda: ".".join(platform.python_version_tuple()[:2]))

    def fault(self) -> str:
        """What is different here, in words; empty where nothing is."""
        own = Ground()
        if own.version != self.version:
            return f"it has Impasto {own.version}, and the machine that asks has {self.version}"
        if own.python != self.python:
            return f"it has Python {own.python}, and the machine that asks has {self.python}"
        for folder in self.folders:
            if not presence.is_dir(Path(folder)):
                return f"the folder {folder} is not there"
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
        """Have no other machine take the file for one that a killed command left a day ago."""
        if self.probe:
            with contextlib.suppress(OSError):
                os.utime(self.probe)

    def require(self) -> None:
        """Make sure that this process sees what the first one sees; looked at once.

        Raises:
            ConfigError: It does not.
        """
        if self in _SEEN:
            return
        fault = self.fault()
        if fault:
            raise ConfigError(said_of_node(platform.node(), fault))
        _SEEN.add(self)


_SEEN: set[Ground] = set()


def said_of_node(name: str, fault: str) -> str:
    """Why a machine of the cluster cannot take part, for people."""
    return (
        f"The machine {name} of the Ray cluster cannot take part: {fault}. All machines need the "
        f"same Impasto and Python, and the same folders under the same paths, as on a network disk."
    )


Key = tuple[Any, ...]
"""What work is known by: its run, the number of a batch, and perhaps the index of an item."""


class Counts(Protocol):
    """A `Notebook`, here or in another process."""

    def begin(self, key: Key) -> int: ...  # noqa: D102
    def begin_all(self, keys: Sequence[Key]) -> bool: ...  # noqa: D102
    def end(self, *keys: Key) -> None: ...  # noqa: D102


class Notebook:
    """Counts attempts, in a process that no stage runs in."""

    def __init__(self) -> None:
        self._open: Counter[Key] = Counter()
        self._again = 0

    def begin(self, key: Key) -> int:
        """Note that work begins; returns how often it began since it was last done.

        More than once means that workers ended meanwhile.
        """
        self._open[key] += 1
        self._again += self._open[key] > 1
        return self._open[key]

    def begin_all(self, keys: Sequence[Key]) -> bool:
        """Note that all of some work begins, unless some of it began before and is not done."""
        if any(key in self._open for key in keys):
            return False
        for key in keys:
            self.begin(key)
        return True

    def repeated(self) -> int:
        """How often work began again since its worker had ended."""
        return self._again

    def end(self, *keys: Key) -> None:
        """Note that work is done."""
        for key in keys:
            self._open.pop(key, None)


@dataclass(frozen=True)
class FarNotebook:
    """A `Notebook` in an actor of its own, as workers use it.

    Attributes:
        actor: Ray's handle of it.
    """

    actor: Any

    def begin(self, key: Key) -> int:
        """Note that work begins; returns how often it began since it was last done."""
        import ray

        return int(ray.get(self.actor.begin.remote(key)))

    def begin_all(self, keys: Sequence[Key]) -> bool:
        """Note that all of some work begins, unless some of it began before and is not done."""
        import ray

        return bool(ray.get(self.actor.begin_all.remote(keys)))

    def end(self, *keys: Key) -> None:
        """Have work noted as done, without waiting for it."""
        self.actor.end.remote(*keys)


@dataclass(frozen=True)
class Attempts:
    """The notebook as a worker uses it.

    Attributes:
        notebook: Of the other process.
        run: Which run of a stage this is.
    """

    notebook: Counts
    run: int

    def count(self, *key: Any) -> int:
        """Note that work begins; how often it has begun without an end."""
        return self.notebook.begin((self.run, *key))

    def done(self, *key: Any) -> None:
        """Note that work is done."""
        self.notebook.end((self.run, *key))

    @contextlib.contextmanager
    def together(self, numbers: Sequence[int]) -> Iterator[bool]:
        """Note at once that batches begin, and that they are done; asking for each takes time.

        Gives whether that is noted: not where a worker has ended with one of them, which is to be
        found by counting each.
        """
        keys = [(self.run, number) for number in numbers]
        is_noted = self.notebook.begin_all(keys)
        yield is_noted
        if is_noted:
            self.notebook.end(*keys)

    def outcomes(
        self, number: int, size: int, work: Callable[[slice], list[Any]]
    ) -> list[Any | Failure]:
        """Work on a batch of so many items; on one after the other if it ended workers before.

        Args:
            number: Of the batch.
            size: How many items there are.
            work: Gives the outcomes of some of them.
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
    """Run a stage on batches, one row each.

    Args:
        rows: `NUMBER` and `ITEMS`.
        stage: What is run.
        ground: What has to be the same here.
        attempts: Counts them.
        keep: Whether the items go on with what was made of them, to the next stage.
    """
    forget_stored()  # a worker outlives the scan that it was started for
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
    """Keeps a model, and runs it on batches that were prepared.

    Args:
        stage: Opens the model.
        attempts: Counts them.
        most: How many such workers there may be.
    """

    def __init__(self, stage: ModelStage[Any, Any], attempts: Attempts, most: int) -> None:
        self._stage, self._attempts, self._most = stage, attempts, most
        self._model: Callable[[Sequence[Any], Sequence[Any]], list[Any]] | None = None

    def __call__(self, rows: Rows) -> Iterator[Rows]:
        """Work on batches, one row each: `NUMBER`, `ITEMS` and, in `MADE`, what was prepared."""
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
                    f"Opening the model ended the process {tried - 1} times, on the machine "
                    f"{platform.node()} at last. It has too little memory, or the processes are "
                    f"ended by the system."
                )
            self._model = self._stage.open()
            self._attempts.done("open")
        return self._model
