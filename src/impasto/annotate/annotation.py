"""Runs a tagger or a captioner over images and writes the resulting tags or captions."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import numpy as np
from PIL import Image

from impasto.annotate.caption_targets import MetadataTarget, Sidecars
from impasto.annotate.captioners import Captioner
from impasto.annotate.journal import Journal
from impasto.annotate.onnx_tagger import Tagger
from impasto.annotate.profiles import PrepareImages
from impasto.annotate.remote import PrepareRecords, RemoteAnnotator
from impasto.annotate.tags import Selection, Spelling, Tag
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.engines.stages import ErrorPolicy, Failure, Stage, chunks
from impasto.data.pixels.images import UnreadableImageError, failure_of, read_rgb
from impasto.data.records import ImageRecord, SkippedFile
from impasto.errors import ConfigError, DatasetError, ImpastoError
from impasto.progress import Progress
from impasto.remote_paths import shown

T = TypeVar("T")
Target = Sidecars | MetadataTarget
WRITTEN_BEHIND = 64  # images whose text is not on disk yet


class Annotator(Protocol[T]):
    """Produces text for images in two stages: one that runs in workers, and the model.

    Decoding and resizing release Python's GIL, so the workers are threads.
    """

    prepare: Stage[Path, T]

    def annotate(self, prepared: Sequence[T], records: Sequence[ImageRecord]) -> list[str]:
        """Return one text per image."""


@dataclass
class TagAnnotator:
    """Annotates images with tags.

    Attributes:
        tagger: The model.
        selection: Chooses the tags to write from their scores.
        spelling: How tags are written.
        counts: How often each tag was written; updated by each call.
    """

    tagger: Tagger
    selection: Selection
    spelling: Spelling
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.prepare: Stage[Path, np.ndarray] = PrepareImages(self.tagger.profile)

    def annotate(self, prepared: Sequence[np.ndarray], records: Sequence[ImageRecord]) -> list[str]:  # noqa: ARG002
        """Return a line of tags per image."""
        return [self._line(self.found(row)) for row in self.tagger.scores(prepared)]

    def found(self, scores: np.ndarray) -> list[Tag]:
        """Return the tags that are selected by the scores of one image."""
        return self.selection.of(scores, self.tagger.table)

    def _line(self, tags: Sequence[Tag]) -> str:
        texts = self.spelling.write(tags)
        self.counts.update(texts)
        return self.spelling.joined(texts)


class DecodeImages:
    """A stage that decodes images: paths -> RGB images."""

    def __call__(self, paths: Sequence[Path]) -> list[Image.Image | Failure]:
        """Decode each image; return a `Failure` for one that cannot be read."""
        return [self._one(path) for path in paths]

    def _one(self, path: Path) -> Image.Image | Failure:
        try:
            return read_rgb(path)
        except (UnreadableImageError, OSError) as error:
            return failure_of(error)


@dataclass
class CaptionAnnotator:
    """Annotates images with captions.

    Attributes:
        captioner: The model.
        change: Applied to each caption, such as to add a prefix.
    """

    captioner: Captioner
    change: Callable[[str], str] = str.strip

    def __post_init__(self) -> None:
        self.prepare: Stage[Path, Image.Image] = DecodeImages()

    def annotate(
        self, prepared: Sequence[Image.Image], records: Sequence[ImageRecord]
    ) -> list[str]:
        """Return a caption per image."""
        found = self.captioner.captions(prepared, [record.name for record in records])
        return [self.change(text) for text in found]


@dataclass(frozen=True)
class Annotated(Generic[T]):
    """Counts of images after tagging or captioning.

    Attributes:
        written: Images that received tags or a caption.
        captioned: Images that had some already.
        done_before: Images that were completed before an interruption.
        empty: Images for which the model produced no text.
        skipped: Images that could not be read or written, with the reasons.
    """

    written: int
    captioned: int
    done_before: int
    empty: int
    skipped: tuple[SkippedFile, ...]


@dataclass(frozen=True)
class ImageReading:
    """How images are read for a model.

    Attributes:
        batch_size: Images per forward pass.
        workers: Number of decoding threads; None uses one per CPU.
        on_error: Whether an image that cannot be read is skipped or stops the command.
    """

    batch_size: int = 8
    workers: int | None = None
    on_error: ErrorPolicy = "skip"


def annotate(
    records: Sequence[ImageRecord],
    annotator: Annotator[T] | RemoteAnnotator,
    target: Target,
    journal: Journal | None,
    progress: Progress,
    reading: ImageReading = ImageReading(),
    show: Callable[[ImageRecord, str], None] | None = None,
    engine: Engine = LOCAL,
) -> Annotated[T]:
    """Write captions or tags for images with the model of an annotator.

    Args:
        records: The images.
        annotator: Produces the text; a `RemoteAnnotator` if the engine runs the models.
        target: Writes the text.
        journal: Records all changes; None writes nothing (only `show` is called).
        progress: Shows progress.
        reading: How images are read.
        show: Called with each image and its new text.
        engine: Runs the stages.

    Raises:
        DatasetError: An image cannot be read and `reading.on_error` is stop.
        StorageError: A text could not be written.
    """
    done = journal.done if journal else set()
    left = [r for r in records if target.folders.name_of(r.path) not in done]
    without = [r for r in left if target.needs_caption(r)]
    refused = [SkippedFile(r.path, reason) for r in without if (reason := target.fault(r))]
    _tell(refused, reading.on_error, progress)
    unwritten = {item.path for item in refused}
    wanted = list({r.path: r for r in without if r.path not in unwritten}.values())
    skipped = refused
    written = empty = 0
    with (
        progress.stage("Annotating images", len(wanted), "images") as advance,
        _AsyncWriter(journal, target) as keeper,
    ):
        for batch in _said(annotator, wanted, reading, engine):
            unread = [SkippedFile(r.path, s.reason) for r, s in batch if isinstance(s, Failure)]
            _tell(unread, reading.on_error, progress)
            skipped += unread
            for record, text in batch:
                if isinstance(text, Failure):
                    continue
                if show is not None:
                    show(record, target.text(record, text))
                keeper.keep(record, text)
                written, empty = written + bool(text), empty + (not text)
            advance(len(batch))
    captioned, before = len(left) - len(without), len(records) - len(left)
    return Annotated(written, captioned, before, empty, tuple(skipped))


def captions_of(annotator: Annotator[T], records: Sequence[ImageRecord]) -> dict[Path, str]:
    """Return an annotator's texts for images without writing them, except unreadable images."""
    made = dict(zip(records, annotator.prepare([r.path for r in records]), strict=True))
    good = {r: outcome for r, outcome in made.items() if not isinstance(outcome, Failure)}
    texts = annotator.annotate(list(good.values()), list(good))
    return {record.path: text for record, text in zip(good, texts, strict=True)}


class _AsyncWriter:
    """Writes texts on a separate thread, in order, while the model processes the next images."""

    def __init__(self, journal: Journal | None, target: Target) -> None:
        self._journal, self._target = journal, target
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> _AsyncWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        is_whole = False
        try:
            if kind is None:
                self._raise_faults(0)
                is_whole = True
        finally:  # an error must not lose the texts before it
            if self._journal is not None:
                with contextlib.suppress(*([] if is_whole else [ImpastoError, OSError])):
                    self._target.close(self._journal)

    def keep(self, record: ImageRecord, text: str) -> None:
        """Queue an image's text for writing; without text, only record that the image is done."""
        if self._journal is not None:
            self._waiting.append(self._pool.submit(self._write, self._journal, record, text))
            self._raise_faults(WRITTEN_BEHIND)

    def _write(self, journal: Journal, record: ImageRecord, text: str) -> None:
        if text:
            self._target.write(journal, record, text)
        else:
            journal.finish(self._target.folders.name_of(record.path))

    def _raise_faults(self, most: int) -> None:
        """Wait until at most `most` writes are pending, and raise their errors."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()


def _tell(items: Sequence[SkippedFile], on_error: ErrorPolicy, progress: Progress) -> None:
    """Report each skipped file.

    Raises:
        DatasetError: There is one, and the policy is to stop.
    """
    for item in items:
        if on_error == "stop":
            raise DatasetError(f"{shown(item.path)} cannot be used: {item.reason}.")
        progress.note(f"Skipped: {shown(item.path)}: {item.reason}")


def _said(
    annotator: Annotator[T] | RemoteAnnotator,
    records: Sequence[ImageRecord],
    reading: ImageReading,
    engine: Engine,
) -> Iterator[list[tuple[ImageRecord, str | Failure]]]:
    """Yield batches of images, in order, each image with its text or the failure.

    Raises:
        ConfigError: The engine and the annotator expect the model in different processes.
    """
    batches = chunks(records, reading.batch_size)
    if isinstance(annotator, RemoteAnnotator) and engine.actors is not None:
        for outcomes in engine.actors.run(annotator.stage, batches, workers=reading.workers):
            yield [
                (record, said if isinstance(said, Failure) else annotator.heard(said))
                for record, said in outcomes
            ]
    elif isinstance(annotator, RemoteAnnotator) or engine.actors is not None:
        raise ConfigError("The model is in this process, and the engine runs it in others.")
    else:
        yield from _said_here(annotator, batches, reading, engine)


def _said_here(
    annotator: Annotator[T],
    batches: Iterable[Sequence[ImageRecord]],
    reading: ImageReading,
    engine: Engine,
) -> Iterator[list[tuple[ImageRecord, str | Failure]]]:
    """Annotate batches with the model in this process; images are decoded ahead of it."""
    executor = engine.executor(PrepareRecords(annotator.prepare), workers=reading.workers)
    for batch in executor.run(batches):
        good = [(record, made) for record, made in batch if not isinstance(made, Failure)]
        prepared, seen = [made for _, made in good], [record for record, _ in good]
        texts = iter(annotator.annotate(prepared, seen) if good else [])
        yield [
            (record, made if isinstance(made, Failure) else next(texts)) for record, made in batch
        ]
