"""Checks a dataset for strengths and faults, as numbers and lists: the content of its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from impasto.data.folders.listing import Unused
from impasto.data.inspecting.health_limits import SIDES, TOKEN_LIMITS
from impasto.data.inspecting.likeness import exact_duplicates, near_duplicates
from impasto.data.planning.plan import Plan
from impasto.data.planning.regularisation import Balance, balance, count_balance
from impasto.data.record_table import RecordTable
from impasto.data.records import ImageRecord, PlannedImage, Size, SkippedFile
from impasto.data.scanning.scan import Scan
from impasto.data.scanning.tally import Tally
from impasto.data.subsets import mentions_side
from impasto.member_paths import TableCell, member_of, plain
from impasto.parsing import split_lines
from impasto.progress import Progress

TOP_TAGS = 60
TOP_PAIRS = 40
PAIRED_TAGS = 200  # pairs are counted among this many of the most frequent tags
SMALL = 1.5  # enlarged by more than this, an image is too small

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class BucketHealth:
    """A bucket of one dataset: its number of images, and the fraction of area cropped away."""

    dataset: int
    size: str
    images: int
    mean_lost: float
    worst_lost: float


@dataclass(frozen=True)
class Cropped:
    """An image, and the fraction of its area that is cropped away."""

    path: Path
    bucket: str
    lost: float


@dataclass(frozen=True)
class Enlarged:
    """An image that is too small for its bucket, and the factor by which it is enlarged."""

    path: Path
    size: str
    factor: float


@dataclass(frozen=True)
class CaptionHealth:
    """Statistics of a dataset's captions.

    Attributes:
        missing: Images without a caption file, or with an empty one.
        several_lines: Images whose caption has several lines, of which only the first is used.
        same: Captions that several images share, with their number, the most frequent first.
        token_lengths: Number of tokens -> captions.
        over: 75, 150, 225 -> captions with more tokens.
        naming_sides: Images whose caption mentions left or right.
    """

    missing: list[Path]
    several_lines: list[Path]
    same: list[tuple[str, int]]
    token_lengths: dict[int, int]
    over: dict[int, int]
    naming_sides: list[Path]


@dataclass(frozen=True)
class Health:
    """The full report on a dataset.

    Attributes:
        place: The dataset's folder or source.
        images: How many images can be used.
        showings: The same with repeats; regularisation images as often as they are shown.
        set_aside: Files that cannot be used, with reasons.
        unused: Other files and folders that look like images or captions.
        tally: The counts that every command shows.
        sizes: Size -> images, the most frequent first.
        aspects: Width divided by height of each image.
        buckets: Buckets by dataset and size.
        mean_lost: The average fraction of the area that is cropped away.
        cropped: Images by the fraction cropped away, the worst first.
        too_small: Images that are enlarged by more than half.
        rotated: Images that EXIF rotates or mirrors.
        balance: The balance of regularisation and training images; None without regularisation.
        flips: Whether some images are mirrored in training.
        captions: Statistics of the captions.
        tags: Tag -> images, the most frequent first.
        number_of_tags: Number of different tags.
        rare_tags: Number of tags that only one image has.
        tag_pairs: Tags that occur together most often, and in how many images.
        equal: Groups of files with the same content.
        near: Groups of images that look nearly the same.
        same_stem: Groups of images that share one caption file.
    """

    place: str
    images: int
    showings: int
    set_aside: list[SkippedFile]
    unused: list[Unused]
    tally: Tally
    sizes: dict[str, int]
    aspects: list[float]
    buckets: list[BucketHealth]
    mean_lost: float
    cropped: list[Cropped]
    too_small: list[Enlarged]
    rotated: list[Path]
    balance: Balance | None
    flips: bool
    captions: CaptionHealth
    tags: dict[str, int]
    number_of_tags: int
    rare_tags: int
    tag_pairs: list[tuple[str, str, int]]
    equal: list[list[Path]]
    near: list[list[Path]]
    same_stem: list[list[Path]]

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values, with paths as text and floats rounded to 6 digits."""
        return _plain(asdict(self))  # type: ignore[no-any-return]


def examine(
    scan: Scan,
    plan: Plan,
    digests: dict[Path, str],
    looks: dict[Path, int],
    count_tokens: CountTokens,
    progress: Progress,
    trained: RecordTable,
) -> Health:
    """Compile the report on a dataset.

    Args:
        scan: The images; those that cannot be decoded are already skipped.
        plan: Their buckets and crops.
        digests: Hashes of their files.
        looks: Their perceptual hashes.
        count_tokens: Captions -> the number of tokens of each, without start and end tokens.
        progress: Shows progress.
        trained: The images that are trained on.
    """
    records = list({record.path: record for record in scan.records}.values())
    balanced = balance(trained)
    tags = [_tags(record) for record in records]
    frequency = Counter(tag for own in tags for tag in own)
    equal = exact_duplicates({r.path: digests[r.path] for r in records if r.path in digests})
    same = {path for group in equal for path in group[1:]}
    with progress.stage("Comparing images", len(looks), "images") as advance:
        near = near_duplicates({p: look for p, look in looks.items() if p not in same}, advance)
    worst = sorted(plan.images, key=lambda image: (-image.cropped_fraction, str(image.record.path)))
    return Health(
        place=scan.source,
        images=len(records),
        showings=sum(record.repeats for record in balanced),
        set_aside=list(scan.skipped),
        unused=list(scan.unused),
        tally=scan.tally,
        sizes=dict(Counter(str(record.size) for record in records).most_common()),
        aspects=[round(record.size.aspect, 4) for record in records],
        buckets=_buckets(plan),
        mean_lost=plan.mean_cropped_fraction,
        cropped=[
            Cropped(i.record.path, str(i.bucket), i.cropped_fraction)
            for i in worst
            if i.cropped_fraction > 0
        ],
        too_small=_too_small(plan.images),
        rotated=[record.path for record in records if record.rotated],
        balance=count_balance(trained, balanced),
        flips=any(record.subset.flips for record in scan.records),
        captions=_captions(records, count_tokens),
        tags=dict(frequency.most_common(TOP_TAGS)),
        number_of_tags=len(frequency),
        rare_tags=sum(count == 1 for count in frequency.values()),
        tag_pairs=_pairs(tags, frequency),
        equal=equal,
        near=near,
        same_stem=_same_stem(records),
    )


def _buckets(plan: Plan) -> list[BucketHealth]:
    members: dict[tuple[int, Size], list[float]] = {}
    for image in plan.images:
        key = (image.record.subset.dataset, image.bucket)
        members.setdefault(key, []).append(image.cropped_fraction)
    return [
        BucketHealth(dataset, str(size), len(lost), sum(lost) / len(lost), max(lost))
        for (dataset, size), lost in sorted(members.items())
    ]


def _too_small(planned: Iterable[PlannedImage]) -> list[Enlarged]:
    found = {}
    for image in planned:
        factor = image.resized.width / image.record.size.width
        if factor > SMALL:
            path = image.record.path
            found[path] = Enlarged(path, str(image.record.size), factor)
    return sorted(found.values(), key=lambda item: -item.factor)


def _captions(records: Sequence[ImageRecord], count_tokens: CountTokens) -> CaptionHealth:
    captions = {record.path: record.fixed_caption for record in records}
    texts = [text for text in captions.values() if text.strip()]
    lengths = count_tokens(texts)
    same = Counter(texts).most_common()
    return CaptionHealth(
        missing=[record.path for record in records if not record.caption_text.strip()],
        several_lines=[
            record.path
            for record in records
            if "\n" in record.caption_text and not record.subset.captions.wildcards
        ],
        same=[(text, count) for text, count in same if count > 1],
        token_lengths=dict(sorted(Counter(lengths).items())),
        over={limit: sum(length > limit for length in lengths) for limit in TOKEN_LIMITS},
        naming_sides=[r.path for r in records if mentions_side(r.caption_text, SIDES)],
    )


def _tags(record: ImageRecord) -> list[str]:
    """Return the tags of an image, each once; those in its caption if it has no separate tags."""
    text = record.tags or record.caption
    separator = record.subset.captions.separator
    tags = (tag.strip() for line in split_lines(text) for tag in line.split(separator))
    return list(dict.fromkeys(tag for tag in tags if tag))


def _pairs(tags: Sequence[list[str]], frequency: Counter[str]) -> list[tuple[str, str, int]]:
    counted = {tag for tag, _ in frequency.most_common(PAIRED_TAGS)}
    pairs = Counter(
        pair for own in tags for pair in combinations(sorted(counted.intersection(own)), 2)
    )
    return [(a, b, count) for (a, b), count in pairs.most_common(TOP_PAIRS) if count > 1]


def _same_stem(records: Sequence[ImageRecord]) -> list[list[Path]]:
    stems: dict[Path, list[Path]] = {}
    for record in records:
        is_row = isinstance(member_of(record.path), TableCell)  # rows have no file extension
        name = Path(plain(record.path))
        stems.setdefault(name if is_row else name.with_suffix(""), []).append(record.path)
    return [sorted(paths) for paths in stems.values() if len(paths) > 1]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value
