"""Examines the dataset of some settings: scans, plans, decodes, hashes and counts tokens."""

from __future__ import annotations

from impasto.config.dataset import DatasetConfig
from impasto.config.run import RunConfig
from impasto.data.inspecting.health import Health, examine
from impasto.data.inspecting.likeness import PerceptualHashes
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.records import SkippedFile
from impasto.data.scanning.scan import no_usable_images
from impasto.datasets.build import plan_dataset, scan_all, split_of_source
from impasto.datasets.engines import open_engine
from impasto.errors import DatasetError
from impasto.models.networks.tokenizers import tokenizer_of
from impasto.models.tokenization.tokens import TextLayout, TextTokens
from impasto.models.tokenization.vocabulary import EOS
from impasto.progress import Progress


def examine_dataset(
    config: DatasetConfig, progress: Progress, run: RunConfig | None = None
) -> Health:
    """Examine each image and its caption: sizes, damage, copies and token counts.

    Args:
        config: The settings of the dataset.
        progress: Shows progress.
        run: Settings of the run that the dataset is for: regularisation images are balanced against
            the images it trains on.

    Raises:
        DatasetError: There are no usable images.
        StorageError: Derived data cannot be written.
    """
    with open_engine(config, progress) as engine:
        scan = scan_all(config, progress)
        hashes = ContentHashes(config.derived_dir / "latents" / "content-hashes.json")
        digests = hashes.of({r.path: r.stamp for r in scan.records}, progress, engine=engine)
        files = scan.records.select(scan.records.first_of_paths())
        looks, faults = PerceptualHashes(config.derived_dir / "looks.json").of(
            files, digests, progress, engine
        )
    scan = scan.without(faults)
    scan = scan.without(
        SkippedFile(r.path, "vanished or became unreadable")
        for r in scan.records
        if r.path not in looks
    )
    if not scan.records:
        raise DatasetError(no_usable_images(scan.source, scan.skipped))
    tokens = TextTokens(tokenizer_of({}, EOS), TextLayout())
    plan = plan_dataset(config, scan.records)
    trained = split_of_source(scan, run, config, progress).training
    return examine(scan, plan, digests, looks, tokens.lengths, progress, trained)
