"""Tagging and captioning in other processes, each of which loads the model itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from impasto.annotate.captioners import Captioner, Generation
from impasto.annotate.deepdanbooru import DeepDanbooruTagger
from impasto.annotate.models import locate_captioner, locate_tagger
from impasto.annotate.onnx_tagger import OnnxTagger, Tagger, as_logits
from impasto.annotate.profiles import Profile
from impasto.annotate.tags import Selection, Spelling
from impasto.data.engines.stages import Failure, Stage
from impasto.data.records import ImageRecord
from impasto.progress import Progress, SilentProgress

_TORCH = (".pt", ".h5", ".keras")


class Speaker(Protocol):
    """Produces text for prepared images, like `annotation.Annotator`."""

    def annotate(self, prepared: Sequence[Any], records: Sequence[ImageRecord]) -> list[str]: ...  # noqa: D102


@dataclass(frozen=True)
class ProducedText:
    """The text that a model produced for an image.

    Attributes:
        text: The text.
        counts: How often each tag was written in the batch; only the first image of each batch has
            it.
    """

    text: str
    counts: Counter[str]


@dataclass(frozen=True)
class PrepareRecords:
    """A stage that applies another to the paths of records."""

    prepare: Stage[Path, Any]

    def __call__(self, batch: Sequence[ImageRecord]) -> list[Any | Failure]:
        """Prepare the images of a batch of records."""
        return self.prepare([record.path for record in batch])


@dataclass(frozen=True)
class AnnotateStage:
    """A stage with a model: records -> `ProducedText`.

    Attributes:
        recipe: Loads the annotator.
        uses_gpu: Whether it computes on a GPU.
        threads: Number of CPU threads; Ray would otherwise limit a process without reserved CPUs to
            one.
        prepare: Prepares images for it.
    """

    recipe: Callable[[], Speaker]
    uses_gpu: bool
    threads: int
    prepare: PrepareRecords

    def open(
        self,
    ) -> Callable[[Sequence[ImageRecord], Sequence[Any]], list[ProducedText | Failure]]:
        """Load the tagger or captioner; return a function that annotates prepared images."""
        torch.set_num_threads(self.threads)
        speaker = self.recipe()
        counts = getattr(speaker, "counts", Counter())

        def say(
            records: Sequence[ImageRecord], prepared: Sequence[Any]
        ) -> list[ProducedText | Failure]:
            pairs = list(zip(records, prepared, strict=True))
            good = [(record, made) for record, made in pairs if not isinstance(made, Failure)]
            counts.clear()
            texts = (
                speaker.annotate([made for _, made in good], [r for r, _ in good]) if good else []
            )
            written = [Counter(counts), *[Counter[str]()] * len(texts)]
            said = iter(map(ProducedText, texts, written))
            return [made if isinstance(made, Failure) else next(said) for _, made in pairs]

        return say


@dataclass
class RemoteAnnotator:
    """Annotates images with a model in other processes.

    Attributes:
        prepare: Prepares images, from their paths.
        recipe: Loads the annotator; picklable.
        uses_gpu: Whether it computes on a GPU.
        counts: How often each tag was written; updated with each result.
    """

    prepare: Stage[Path, Any]
    recipe: Callable[[], Speaker]
    uses_gpu: bool
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def stage(self) -> AnnotateStage:
        """The stage that the other processes run."""
        return AnnotateStage(
            self.recipe, self.uses_gpu, torch.get_num_threads(), PrepareRecords(self.prepare)
        )

    def heard(self, said: ProducedText) -> str:
        """Return the text of a result, and add its counts."""
        self.counts.update(said.counts)
        return said.text


@dataclass(frozen=True)
class TaggerRecipe:
    """Loads a tagger in a separate process, by its name or path.

    Attributes:
        model: A short name, a Hub id, or the absolute path of a tagger.
        provider: ONNX Runtime's provider; None uses the best available.
        profile: How images are prepared; None detects it from the files.
        logits: Whether its output still needs a sigmoid.
        device: The device for taggers in torch.
        selection: Chooses the tags to write.
        spelling: How tags are written.
    """

    model: str
    provider: str | None
    profile: Profile | None
    logits: bool
    device: str
    selection: Selection
    spelling: Spelling

    def __call__(self) -> Speaker:
        """Load the tagger.

        Raises:
            ModelError: It is missing or damaged.
        """
        from impasto.annotate.annotation import TagAnnotator

        tagger = open_tagger(
            self.model, torch.device(self.device), self.provider, self.profile, SilentProgress()
        )
        if self.logits and isinstance(tagger, OnnxTagger):
            tagger.profile = as_logits(tagger.profile)
        return TagAnnotator(tagger, self.selection, self.spelling)


@dataclass(frozen=True)
class CaptionerRecipe:
    """Loads a captioner in a separate process, by its name or path.

    Attributes:
        model: A short name, a Hub id, or the absolute path of a captioner.
        device: The device on which it computes.
        generation: Settings of generation.
        prompt: The prompt.
        remove_words: Whether text that the model invents when it tries to read is removed.
        prefix: Text before each caption.
        suffix: Text after each caption.
    """

    model: str
    device: str
    generation: Generation
    prompt: str
    remove_words: bool
    prefix: str
    suffix: str

    def __call__(self) -> Speaker:
        """Load the captioner.

        Raises:
            ModelError: It is missing, or not a captioner.
        """
        from impasto.annotate.annotation import CaptionAnnotator

        loaded = Captioner.load(
            locate_captioner(self.model),
            torch.device(self.device),
            prompt=self.prompt,
            remove_words=self.remove_words,
        )
        captioner = replace(loaded, generation=self.generation)
        return CaptionAnnotator(captioner, self.change)

    def change(self, text: str) -> str:
        """Return a caption with the prefix and the suffix."""
        return f"{self.prefix}{text}{self.suffix}".strip()


def open_tagger(
    model: str,
    device: torch.device,
    provider: str | None,
    profile: Profile | None,
    progress: Progress,
) -> Tagger:
    """Load a tagger by its name or path; it is downloaded if it is not on this machine.

    Args:
        model: A short name, a Hub id, or the folder or file of a tagger.
        device: The device for taggers in torch.
        provider: ONNX Runtime's provider; None uses the best available.
        profile: How images are prepared, if the model's files do not tell.
        progress: Shows progress.
    """
    file = locate_tagger(model, progress)
    with progress.stage("Loading the tagger", None, "models"):
        if file.suffix.lower() in _TORCH:
            return DeepDanbooruTagger(file, device)
        return OnnxTagger(file, provider=provider, profile=profile, progress=progress)


def tags_on_gpu(tagger: Tagger, provider: str | None) -> bool:
    """Return whether a tagger that is opened with this provider computes on a CUDA GPU."""
    if isinstance(tagger, OnnxTagger):
        import onnxruntime

        there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return there and provider in (None, "cuda")
    return torch.cuda.is_available()
