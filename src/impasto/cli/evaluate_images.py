"""The real images of an evaluation, and the images that its models were trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeVar

from impasto.errors import ConfigError, DatasetError
from impasto.progress import Progress

if TYPE_CHECKING:
    from impasto.config.run import RunConfig
    from impasto.data.records import ImageRecord
    from impasto.datasets.held_out import Split
    from impasto.evaluation.question import RealImages

T = TypeVar("T")
MOST_REAL = 20_000
"""The most real images to compare with: more would take gigabytes and change no reported digit."""


@dataclass(frozen=True)
class Images:
    """The images of an evaluation.

    Attributes:
        real: The images that models are measured against.
        training: The training images, to find copies of; None if they are unknown. The same object
            as `real` if both are the same folder.
        trained_on: Run -> the files that it was trained on.
        notes: Sentences about images that could not be read.
    """

    real: RealImages
    training: RealImages | None
    trained_on: Mapping[str, Sequence[Path]]
    notes: tuple[str, ...] = ()


def find_images(
    runs: Mapping[str, RunConfig],
    images: Path | None,
    training: Path | None,
    progress: Progress,
    bases: Mapping[str, RunConfig] | None = None,
) -> Images:
    """Find the real images and the training images.

    Args:
        runs: Name of a run -> its settings.
        images: The folder of real images; None uses the held-out images of the first run with any.
        training: The folder of training images; None uses those of all runs.
        progress: Shows the progress.
        bases: Base models that are runs themselves; if their images are missing, this is noted
            and not an error.

    Raises:
        ConfigError: There are no real images: no folder was given, and no run has held-out images.
        DatasetError: A folder is missing or has no usable image.
    """
    splits, notes = _splits_of(runs, progress, needed=images is None or training is None)
    below, others = _splits_of(bases or {}, progress, needed=False)
    splits, notes = {**splits, **below}, (*notes, *others)
    real = _held_out(splits) if images is None else _images_in(images, progress)
    if training is None:
        trained = _trained_on(splits)
    elif images is not None and images.resolve() == training.resolve():
        trained = real
    else:
        trained = _images_in(training, progress)
    shown = _at_most(MOST_REAL, real, progress)
    files = {run: [record.path for record in split.training] for run, split in splits.items()}
    return Images(shown, trained, files, notes)


def _splits_of(
    runs: Mapping[str, RunConfig], progress: Progress, *, needed: bool
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return each run's split into training and held-out images, and notes on missing images.

    Raises:
        DatasetError: A run's images are missing, and `needed` is true.
    """
    from impasto import files
    from impasto.datasets.build import survey

    found: dict[str, Split] = {}
    notes = []
    for run, config in runs.items():
        try:
            with files.dry_run():  # only the runs themselves write to a dataset's cache
                found[run] = survey(config, progress).split
        except DatasetError as error:
            if needed:
                raise DatasetError(
                    f"The images of the run {run} cannot be read. {error} Or give both --images "
                    f"and --training."
                ) from error
            notes.append(
                f"The training images of {run} cannot be read, so it is not known whether real "
                f"images are among them."
            )
            progress.note(notes[-1])
    return found, tuple(notes)


def _held_out(splits: Mapping[str, Split]) -> RealImages:
    """Return the held-out images of the first run that has any.

    Raises:
        ConfigError: No run has any.
    """
    for run, split in splits.items():
        held = list(split.held_out)
        if held:
            return _images_of(held, f"the held-out images of {run}")
    raise ConfigError(
        "There are no real images to compare with: no run among the models has held-out images. "
        "Give --images, a folder of images with captions that were preferably not trained on."
    )


def _trained_on(splits: Mapping[str, Split]) -> RealImages | None:
    """Return the training images of all runs, without regularisation images; None without any."""
    own = {
        run: [record for record in split.training if not record.subset.is_reg]
        for run, split in splits.items()
    }
    names = " and ".join(run for run, records in own.items() if records)
    records = [record for some in own.values() for record in some]
    return _images_of(records, f"the training images of {names}") if records else None


def _at_most(most: int, images: RealImages, progress: Progress) -> RealImages:
    """Return all images, or if there are more than `most`, that many evenly spread over all."""
    count = len(images.entries)
    if count <= most:
        return images
    progress.note(f"{images.source}: {most:,} of {count:,} images are used for comparison.")
    return replace(images, entries=spread(images.entries, most))


def _images_in(folder: Path, progress: Progress) -> RealImages:
    from impasto.data.scanning.scan import scan_folder
    from impasto.data.subsets import PLAIN
    from impasto.member_paths import folder_of

    scan = scan_folder(folder, progress=progress, subset=replace(PLAIN, root=folder_of(folder)))
    return _images_of(scan.records, folder.resolve().name)


def _images_of(records: Iterable[ImageRecord], source: str) -> RealImages:
    """Build the real images from records, each image once, named by its path below the folder."""
    from impasto.evaluation.image_features import CaptionedImage
    from impasto.evaluation.question import RealImages

    entries, names, taken = [], dict[Path, str](), set[str]()
    for record in records:
        if record.path not in names:
            names[record.path] = name = _free_name(record, taken)
            taken.add(name)
            entries.append(CaptionedImage.of(record))
    return RealImages(source, entries, names.__getitem__)


def _free_name(record: ImageRecord, taken: set[str]) -> str:
    """Return a unique name for an image, without the parent folders of this machine.

    A name already in `taken` gets a number, as in "a.png (2)".
    """
    from impasto.parsing import printable
    from impasto.publishing import short_path

    is_whole = PurePath(record.name).is_absolute()
    plain = name = printable(short_path(record.name) if is_whole else record.name)
    number = 1
    while name in taken:
        number += 1
        name = f"{plain} ({number})"
    return name


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return all items, or if there are more than `most`, that many evenly spread over all."""
    if len(items) <= most:
        return list(items)
    return [items[number * len(items) // most] for number in range(most)]
