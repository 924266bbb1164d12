"""Which real images models are measured by, and which they were trained on."""

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
"""Real images that models are compared with: more cost gigabytes and change no digit."""


@dataclass(frozen=True)
class Images:
    """The images of an evaluation.

    Attributes:
        real: Those that models are measured by.
        training: Those that were trained on, to find copies; None where they are not known. The
            same object as `real` where it is one folder.
        trained_on: Run -> the files that it was trained on.
        notes: What could not be looked at.
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
    """The real images, and those that were trained on.

    Args:
        runs: What a run is called -> its settings.
        images: The folder of real images; None means what the first run held out that held any.
        training: The folder that was trained on; None means what all runs were trained on.
        progress: Shows how far the work is.
        bases: Base models that are runs themselves: their images are no reason to stop.

    Raises:
        ConfigError: There are no real images: no folder was given, and no run held any out.
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
    """What each run was trained on and held out; sentences about those that are gone.

    Raises:
        DatasetError: A run's images are not there, and needed.
    """
    from impasto import files
    from impasto.datasets.build import survey

    found: dict[str, Split] = {}
    notes = []
    for run, config in runs.items():
        try:
            with files.dry_run():  # what is remembered of a dataset is its own runs' to write
                found[run] = survey(config, progress).split
        except DatasetError as error:
            if needed:
                raise DatasetError(
                    f"The images of the run {run} cannot be looked at. {error} Or give both "
                    f"--images and --training."
                ) from error
            notes.append(
                f"The training images of {run} cannot be looked at, so it is not known whether "
                f"real images are among them."
            )
            progress.note(notes[-1])
    return found, tuple(notes)


def _held_out(splits: Mapping[str, Split]) -> RealImages:
    """What the first run held out that held any.

    Raises:
        ConfigError: None did.
    """
    for run, split in splits.items():
        held = list(split.held_out)
        if held:
            return _images_of(held, f"the held-out images of {run}")
    raise ConfigError(
        "There are no real images to measure by: no run among the models held any out. Give "
        "--images, a folder of images with captions, best of some that were not trained on."
    )


def _trained_on(splits: Mapping[str, Split]) -> RealImages | None:
    """What runs were trained on, without regularisation images; None where there is nothing."""
    own = {
        run: [record for record in split.training if not record.subset.is_reg]
        for run, split in splits.items()
    }
    names = " and ".join(run for run, records in own.items() if records)
    records = [record for some in own.values() for record in some]
    return _images_of(records, f"the training images of {names}") if records else None


def _at_most(most: int, images: RealImages, progress: Progress) -> RealImages:
    """All images, or some of them that are evenly spread over all."""
    count = len(images.entries)
    if count <= most:
        return images
    progress.note(f"{images.source}: {most:,} of {count:,} images are compared with.")
    return replace(images, entries=spread(images.entries, most))


def _images_in(folder: Path, progress: Progress) -> RealImages:
    from impasto.data.scanning.scan import scan_folder
    from impasto.data.subsets import PLAIN
    from impasto.member_paths import folder_of

    scan = scan_folder(folder, progress=progress, subset=replace(PLAIN, root=folder_of(folder)))
    return _images_of(scan.records, folder.resolve().name)


def _images_of(records: Iterable[ImageRecord], source: str) -> RealImages:
    """Images of a dataset, each once; named by their paths below its folder."""
    from impasto.evaluation.looking import CaptionedImage
    from impasto.evaluation.question import RealImages

    entries, names, taken = [], dict[Path, str](), set[str]()
    for record in records:
        if record.path not in names:
            names[record.path] = name = _free_name(record, taken)
            taken.add(name)
            entries.append(CaptionedImage.of(record))
    return RealImages(source, entries, names.__getitem__)


def _free_name(record: ImageRecord, taken: set[str]) -> str:
    """The name of an image without the folders of this machine, which no other one has."""
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
    """All items, or so many of them that are evenly spread over all."""
    if len(items) <= most:
        return list(items)
    return [items[number * len(items) // most] for number in range(most)]
