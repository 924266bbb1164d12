"""Text encoder outputs that sd-scripts left beside images, in the place of encoding captions.

A file of sd-scripts does not say which caption it was made from, so three things are checked. A
file that Impasto wrote has the token ids, which have to be those of the caption. Any other must not
be older than the files with the caption, and no setting may change the words on their way from
there. And some files of each subset are compared with what the model's own text encoders give:
what is wrong with all of them (another model, another layer, weighted captions) shows in a few.
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
"""Files that are compared with what the text encoders give, spread over all subsets."""

LEAST_COMPARED = 2
"""How many at least of each subset, however many subsets there are."""

MOST_APART = 0.1
"""How far they may be apart, as a share. Measured with full-size encoders of random weights: 0.015
for encoding in bfloat16, 0.16 for one other word of twelve, 0.25 for one more tag."""

_SHOWN = 5


def ending_of_texts(config: RunConfig, model: BaseModel) -> str | None:
    """What the names of files with texts end on; None where none are to be used.

    Raises:
        ConfigError: They are asked for where there are none.
    """
    if not config.training.text_from_npz:
        return None
    ending = model.family.text_npz_ending
    if ending is None:
        raise ConfigError(
            f"training.text_from_npz has no effect: {model.contents.name} is {model.family.name}, "
            f"and sd-scripts keeps text encoder outputs for SDXL only. Take it out."
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
    """Find the files of sd-scripts that fit the captions; name those that do not.

    Each process of a run looks for itself.

    Args:
        config: The settings.
        model: The base model.
        states: Its text encoders; they are brought to the device if files are asked for, and those
            that wait do so again.
        images: Gives the images; asked only if files are.
        device: Where they compute.
        progress: Is told how far it is, and which files are not used.
        recorded: `GivenTexts.recorded` of the state that is resumed: a file that holds the same as
            then was found to fit when the run began, whatever its time is now.

    Returns:
        None where the settings do not ask for them.

    Raises:
        ConfigError: They are asked for where there can be none.
        DatasetError: Files hold something else than the text encoders answer.
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
    """Looks for the files of images, and keeps those that fit.

    Attributes:
        config: The settings.
        ending: What the names of the files end on.
        shape: What is in them.
        conditioner: Cuts captions into chunks.
        recorded: What the state that is resumed records of files.
        found: The token ids of a chunk -> its file and that file's hash.
        used: Images whose captions are taken from files.
        images: Images that were looked at.
        refused: Files that are not used, with reasons.
        disputed: Token ids for which two files say different things.
        by_subset: Dataset and subset -> the token ids that its files are used for.
        chunk_numbers: The token ids of a chunk that is not the first of its file -> which it is.
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
        """Take the text encoder outputs of a file, if they are those of its images."""
        self.images += len(records)
        if not presence.is_file(file):
            return
        fault = why_ambiguous(records) or self._use(file, records)
        if fault is None:
            self.used += len(records)
        else:
            self.refused.append(SkippedFile(file, fault.reason))

    def to_compare(self) -> list[Ids]:
        """The token ids whose files are to be compared with what the text encoders give."""
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
        """Why a file may not hold what its images' caption needs; None if it does."""
        is_one = len(text.states[0]) == self.shape.positions
        if is_one and any(chunk != self.empty for chunk in chunks[1:]):
            return Failure("the caption has over 75 tokens, and the file holds the first 75 alone")
        if text.ids not in (None, chunks[0]):
            return Failure("made from another caption, or with other settings of model.max_tokens")
        before = self.recorded.get(text_key(chunks[0]), "")
        if text.ids is None and before.partition(" ")[0] != text.digest[:HASH_DIGITS]:
            return next((f for f in (self._doubt_of(file, one) for one in records) if f), None)
        return None

    def _keep_chunks(
        self, file: Path, records: Sequence[ImageRecord], text: TextOutputs, chunks: Sequence[Ids]
    ) -> Failure | None:
        """Take the chunks of a file, of which later ones may be known from another."""
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
        """The token ids of a chunk without words."""
        return self.conditioner.chunks_of("")[0]

    def _doubt_of(self, file: Path, record: ImageRecord) -> Failure | None:
        """Why a file of another program may be of other words than an image has; None if not."""
        settings = _settings_in_caption(record)
        if settings:
            return Failure(
                f"made by another program, and {' and '.join(settings)} of the subset is in the "
                f"caption: nothing tells whether it was when the file was made"
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
            return None  # two encodings of the same words; the first one is used for both
        self.disputed.append(ids)
        return Failure(f"says something else than {other.name}, though the captions are the same")

    def _caption_files_of(self, record: ImageRecord) -> list[Path]:
        """The files that a caption may be from, whether they are there or not."""
        subset = self.config.dataset.entries[record.subset.dataset].subsets[record.subset.number]
        endings = sidecars_of(subset)
        beside = self._beside.setdefault(endings, SidecarLookup(*filter(None, endings)))
        caption_files = [beside.file(record.path, ending) for ending in endings if ending]
        return [*caption_files, *([subset.metadata_file] if subset.metadata_file else [])]


def _settings_in_caption(record: ImageRecord) -> list[str]:
    """The settings of its subset that the caption of an image depends on."""
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
    """How far two texts are apart, as a share: the greatest over their arrays.

    The first position is left out: it is the same for every text, and larger than all others. So is
    what one of them does not know.
    """
    pairs = [(a[1:], b[1:]) for a, b in zip(one.states, other.states, strict=True)]
    shares = []
    for a, b in (*pairs, (one.pooled, other.pooled)):
        known = ~(np.isnan(a) | np.isnan(b))
        if known.any():
            shares.append(float(np.linalg.norm((a - b)[known]) / (np.linalg.norm(b[known]) or 1.0)))
    return max(shares)


def _require_alike(given: GivenTexts, states: TextStates, compared: Sequence[Ids]) -> None:
    """Make sure that some of the files hold what the text encoders give.

    Raises:
        DatasetError: One holds something else.
    """
    for ids in compared:
        file, _ = given.files[ids]
        found = given.outputs(ids)
        apart = 1.0 if isinstance(found, Failure) else _apart(found, _answered(states, ids))
        if not apart <= MOST_APART:
            raise DatasetError(
                f"{file} holds something else than this model's text encoders make of its "
                f"caption: they are {apart:.0%} apart. It was made of other words, with another "
                f"model, or with --weighted_captions. Delete such files, or set "
                f"training.text_from_npz to false: encoding captions takes little time."
            )


@torch.no_grad()
def _answered(states: TextStates, ids: Ids) -> TextOutputs:
    """What the text encoders make of a chunk."""
    device = next(states.parameters()).device
    with torch.autocast(device.type, enabled=False):
        row = states(torch.tensor([ids]).to(device)).float().cpu()
    each, pooled = states.shape.unpacked(row)
    assert pooled is not None  # noqa: S101 - families with files of texts have one
    return TextOutputs(tuple(one[0].numpy() for one in each), pooled[0].numpy(), ids, "")
