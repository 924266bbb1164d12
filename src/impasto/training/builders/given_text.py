"""Uses text encoder outputs that sd-scripts cached beside images, instead of encoding captions.

A file of sd-scripts does not record which caption it was made from, so three things are checked. A
file that Impasto wrote has token ids, which must equal those of the caption. Any other file must
not be older than the files with the caption, and no setting may change the caption after it is
read. And some files of each subset are compared with the outputs of the model's own text encoders:
an error that affects all files (another model, another layer, weighted captions) shows in a few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from impasto import presence
from impasto.config.run import RunConfig
from impasto.data.caching.text_npz import (
    HASH_DIGITS,
    GivenTexts,
    Ids,
    TextOutputs,
    TextShape,
    by_text_file,
    is_before,
    read_text_npz,
    text_key,
    why_ambiguous,
)
from impasto.data.engines.stages import Failure
from impasto.data.folders.beside import SidecarLookup
from impasto.data.folders.listing import Sidecars
from impasto.data.records import ImageRecord, SkippedFile
from impasto.datasets.sources import sidecars_of
from impasto.errors import ConfigError, DatasetError
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.text.text_conditioner import ClipTextConditioner
from impasto.models.text.text_exchange import shape_in_files
from impasto.models.text.text_states import TextStates
from impasto.progress import Progress, counted
from impasto.training.builders.text import build_layout

COMPARED = 8
"""Number of files that are compared with the text encoders' outputs, spread over all subsets."""

LEAST_COMPARED = 2
"""Least number of files compared per subset, however many subsets there are."""

MOST_APART = 0.1
"""Largest allowed relative difference from the text encoders' outputs. Measured with full-size
encoders of random weights: 0.015 for encoding in bfloat16, 0.16 for one changed word of twelve,
0.25 for one additional tag."""

_SHOWN = 5


def ending_of_texts(config: RunConfig, model: BaseModel) -> str | None:
    """Return the suffix of text encoder output files; None if the settings do not use any.

    Raises:
        ConfigError: The settings use them, but sd-scripts writes none for this family of models.
    """
    if not config.training.text_from_npz:
        return None
    ending = model.family.text_npz_ending
    if ending is None:
        raise ConfigError(
            f"training.text_from_npz has no effect: {model.contents.name} is {model.family.name}, "
            f"and sd-scripts writes text encoder outputs for SDXL only. Remove it."
        )
    return ending


def find_given_texts(
    config: RunConfig,
    model: BaseModel,
    states: TextStates,
    images: Callable[[], Sequence[ImageRecord]],
    device: torch.device,
    progress: Progress,
    recorded: Mapping[str, str] | None = None,
) -> GivenTexts | None:
    """Find the text encoder output files that fit the captions, and report those that do not.

    Each process of a run searches by itself.

    Args:
        config: The settings of the run.
        model: The base model.
        states: The model's text encoders; if files are used, they are moved to the device, and
            offloaded ones are offloaded again afterwards.
        images: Returns the images; called only if the settings use such files.
        device: The device that the text encoders compute on.
        progress: Receives progress and notes about files that are not used.
        recorded: `GivenTexts.recorded` of the state that is resumed: a file with unchanged content
            was checked when the run started, so its modification time is ignored.

    Returns:
        The usable files; None if the settings do not use any.

    Raises:
        ConfigError: The settings use them, but sd-scripts writes none for this family of models.
        DatasetError: A compared file differs from the text encoders' outputs.
    """
    ending = ending_of_texts(config, model)
    if ending is None:
        return None
    records = images()
    layout = build_layout(config)
    conditioner = ClipTextConditioner(build_tokens(model, layout), states)
    shape = shape_in_files(states.shape, layout)
    search = _Search(config, ending, shape, conditioner, recorded or {})
    with progress.stage("Reading text encoder outputs", len(records), "images") as advance:
        for group in by_text_file(records, ending).items():
            search.look_at(*group)
            advance(len(group[1]))
    _tell(search, progress)
    given = GivenTexts(search.found, search.shape, search.chunk_numbers, search.unended)
    with states.to_device(device).awake(device):
        _require_alike(given, states, search.to_compare())
    return given


@dataclass
class _Search:
    """Searches the files of images, and collects those that fit their captions.

    Attributes:
        config: The settings of the run.
        ending: The suffix of the file names.
        shape: The expected shape of the files' arrays.
        conditioner: Cuts captions into chunks of token ids.
        recorded: `GivenTexts.recorded` of the state that is resumed.
        found: The token ids of a chunk -> its file and that file's hash.
        used: Number of images whose captions are replaced by files.
        images: Number of images examined.
        refused: Files that are not used, with reasons.
        disputed: Token ids of chunks for which two files differ.
        by_subset: Dataset and subset -> the token ids that its files are used for.
        chunk_numbers: The token ids of a chunk that is not the first of its file -> its index.
        unended: Token ids of chunks that are not the last of their file.
    """

    config: RunConfig
    ending: str
    shape: TextShape
    conditioner: ClipTextConditioner
    recorded: Mapping[str, str]
    found: dict[Ids, tuple[Path, str]] = field(default_factory=dict)
    used: int = 0
    images: int = 0
    refused: list[SkippedFile] = field(default_factory=list)
    disputed: list[Ids] = field(default_factory=list)
    by_subset: dict[tuple[int, int], list[Ids]] = field(default_factory=dict)
    chunk_numbers: dict[Ids, int] = field(default_factory=dict)
    unended: set[Ids] = field(default_factory=set)
    _beside: dict[Sidecars, SidecarLookup] = field(default_factory=dict)

    def look_at(self, file: Path, records: Sequence[ImageRecord]) -> None:
        """Use the text encoder outputs of a file if they fit its images; otherwise record why not.

        Do nothing but count the images if the file does not exist.
        """
        self.images += len(records)
        if not presence.is_file(file):
            return
        fault = why_ambiguous(records) or self._use(file, records)
        if fault is None:
            self.used += len(records)
        else:
            self.refused.append(SkippedFile(file, fault.reason))

    def to_compare(self) -> list[Ids]:
        """Return the token ids whose files are to be compared with the text encoders' outputs.

        All disputed ones, and a sample of each subset.
        """
        each = max(LEAST_COMPARED, COMPARED // max(1, len(self.by_subset)))
        spread = [ids for own in self.by_subset.values() for ids in own[:: -(-len(own) // each)]]
        return list(dict.fromkeys((*self.disputed, *spread)))

    def _use(self, file: Path, records: Sequence[ImageRecord]) -> Failure | None:
        chunks = self.conditioner.chunks_of(records[0].fixed_caption)
        text = read_text_npz(file, self.shape)
        if isinstance(text, Failure):
            return text
        fault = self._doubt(file, records, text, chunks)
        return fault or self._keep_chunks(file, records, text, chunks)

    def _doubt(
        self, file: Path, records: Sequence[ImageRecord], text: TextOutputs, chunks: Sequence[Ids]
    ) -> Failure | None:
        """Return why a file may not fit its images' caption; None if nothing suggests that."""
        is_one = len(text.states[0]) == self.shape.positions
        if is_one and any(chunk != self.empty for chunk in chunks[1:]):
            return Failure("the caption has over 75 tokens, and the file holds only the first 75")
        if text.ids not in (None, chunks[0]):
            return Failure("made from another caption, or with other settings of model.max_tokens")
        before = self.recorded.get(text_key(chunks[0]), "")
        if text.ids is None and before.partition(" ")[0] != text.digest[:HASH_DIGITS]:
            return next((f for f in (self._doubt_of(file, one) for one in records) if f), None)
        return None

    def _keep_chunks(
        self, file: Path, records: Sequence[ImageRecord], text: TextOutputs, chunks: Sequence[Ids]
    ) -> Failure | None:
        """Add the chunks of a file; return a failure if another file disagrees.

        Chunks after the first are skipped if another file has them.
        """
        is_one = len(text.states[0]) == self.shape.positions
        held = chunks[:1] if is_one else chunks
        for number, ids in enumerate(held):
            if number and ids in self.found:
                continue
            fault = self._keep(file, ids, text, number)
            if fault is not None:
                return fault
            for subset in {(one.subset.dataset, one.subset.number) for one in records}:
                self.by_subset.setdefault(subset, []).append(ids)
            if number < len(held) - 1 and self.found[ids][0] == file:
                self.unended.add(ids)
        return None

    @property
    def empty(self) -> Ids:
        """The token ids of a chunk of an empty caption."""
        return self.conditioner.chunks_of("")[0]

    def _doubt_of(self, file: Path, record: ImageRecord) -> Failure | None:
        """Return why another program's file may be of a caption that has changed; None if not."""
        settings = _settings_in_caption(record)
        if settings:
            return Failure(
                f"made by another program, and {' and '.join(settings)} of the subset changes the "
                f"caption: it is unknown whether the file was made with it"
            )
        caption_files = [path for path in self._caption_files_of(record) if presence.is_file(path)]
        if not caption_files:
            return Failure("made by another program, and the image has no caption file now")
        changed = is_before(file, caption_files)
        if changed is not None:
            return Failure(f"older than {changed.name}, which was changed after it was made")
        return None

    def _keep(self, file: Path, ids: Ids, text: TextOutputs, number: int) -> Failure | None:
        other, digest = self.found.setdefault(ids, (file, text.digest))
        if other == file and number:
            self.chunk_numbers[ids] = number
        if digest == text.digest:
            return None
        first = GivenTexts(self.found, self.shape, self.chunk_numbers).outputs(ids)
        own = text.chunk(number, self.shape.positions)
        if isinstance(first, TextOutputs) and _apart(first, own) <= MOST_APART:
            return None  # two encodings of the same caption; the first one is used for both
        self.disputed.append(ids)
        return Failure(f"differs from {other.name}, although the captions are the same")

    def _caption_files_of(self, record: ImageRecord) -> list[Path]:
        """Return the files that a caption may come from, existing or not."""
        subset = self.config.dataset.entries[record.subset.dataset].subsets[record.subset.number]
        endings = sidecars_of(subset)
        beside = self._beside.setdefault(endings, SidecarLookup(*filter(None, endings)))
        caption_files = [beside.file(record.path, ending) for ending in endings if ending]
        return [*caption_files, *([subset.metadata_file] if subset.metadata_file else [])]


def _settings_in_caption(record: ImageRecord) -> list[str]:
    """Return the names of the subset's settings that change an image's caption."""
    rules = record.subset.captions
    given = {
        "caption_prefix": rules.prefix,
        "caption_suffix": rules.suffix,
        "secondary_separator": rules.secondary_separator,
        "caption_separator": rules.normalizes,
        "class_tokens": record.class_tokens,
    }
    return [name for name, value in given.items() if value]


def _tell(search: _Search, progress: Progress) -> None:
    progress.note(
        f"Text encoder outputs in files are used for {search.used:,} of "
        f"{counted(search.images, 'captions')}."
    )
    for item in search.refused[:_SHOWN]:
        progress.note(f"  not used: {item.path.name}: {item.reason}")
    if len(search.refused) > _SHOWN:
        progress.note(f"  and {counted(len(search.refused) - _SHOWN, 'more files are')} not used")


def _apart(one: TextOutputs, other: TextOutputs) -> float:
    """Return the relative difference of two texts' outputs: the largest over their arrays.

    The first position is left out: it is equal for every text, and larger than all others. Values
    that are NaN (unknown) in one of them are left out too.
    """
    pairs = [(a[1:], b[1:]) for a, b in zip(one.states, other.states, strict=True)]
    distances = []
    for a, b in (*pairs, (one.pooled, other.pooled)):
        known = ~(np.isnan(a) | np.isnan(b))
        if known.any():
            norm = np.linalg.norm(b[known]) or 1.0
            distances.append(float(np.linalg.norm((a - b)[known]) / norm))
    return max(distances)


def _require_alike(given: GivenTexts, states: TextStates, compared: Sequence[Ids]) -> None:
    """Check that the files of some token ids agree with the text encoders' outputs.

    Raises:
        DatasetError: A file differs by more than `MOST_APART`, or cannot be read.
    """
    for ids in compared:
        file, _ = given.files[ids]
        found = given.outputs(ids)
        apart = 1.0 if isinstance(found, Failure) else _apart(found, _answered(states, ids))
        if not apart <= MOST_APART:
            raise DatasetError(
                f"{file} does not hold the outputs of this model's text encoders for its caption: "
                f"they differ by {apart:.0%}. It was made from another caption, with another "
                f"model, or with --weighted_captions. Delete such files, or set "
                f"training.text_from_npz to false: encoding captions takes little time."
            )


@torch.no_grad()
def _answered(states: TextStates, ids: Ids) -> TextOutputs:
    """Return the text encoders' outputs for the token ids of a chunk, in float32."""
    device = next(states.parameters()).device
    with torch.autocast(device.type, enabled=False):
        row = states(torch.tensor([ids]).to(device)).float().cpu()
    each, pooled = states.shape.unpacked(row)
    assert pooled is not None  # noqa: S101 - families with such files have pooled outputs
    return TextOutputs(tuple(one[0].numpy() for one in each), pooled[0].numpy(), ids, "")
