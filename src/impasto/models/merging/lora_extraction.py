"""Extracts a LoRA from two models on the disk, writes it, and reports on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from impasto.models.merging.extraction import Extraction, ExtractionRules, extract
from impasto.models.merging.lora_writing import Sources, write_lora
from impasto.models.merging.mix_record import hash_model
from impasto.models.merging.mixing import require_mixable
from impasto.models.networks.making import needed_tensors
from impasto.models.reading.completeness import require_complete
from impasto.models.reading.opening import OpenOptions, locate, open_model
from impasto.models.writing.conversion import hash_file
from impasto.models.writing.targets import require_free, sources_of
from impasto.progress import Progress, percent

WORST_SHOWN = 5
Rows = Mapping[str, str]


def extract_file(
    base: str,
    model: str,
    target: Path,
    rules: ExtractionRules,
    options: OpenOptions,
    *,
    title: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Rows, Rows]:
    """Extract the difference of two models as a LoRA and write it.

    Returns:
        A summary of the written file, and the layers with the largest errors.

    Raises:
        ConfigError: Something exists at the target already, or a rank is above every layer's width.
        ModelError: A model cannot be used, or the two do not fit each other or are equal.
        StorageError: The target cannot be written.
    """
    paths = [locate(source, options, progress) for source in (base, model)]
    for path in sources_of((base, model), options, progress):
        require_free(path, target, overwrite=overwrite)
    opened = [open_model(source, options, progress) for source in (base, model)]
    first, second = (require_complete(contents, needed_tensors(contents)) for contents in opened)
    require_mixable([first, second])
    extraction = extract(first, second, rules, progress)
    hashes = (hash_model(paths[0], progress), hash_model(paths[1], progress))
    write_lora(target, extraction, Sources(first, second, hashes), title)
    rows = {
        "Wrote": f"{target} ({target.stat().st_size / 2**20:.1f} MiB)",
        "Family": first.identity.family.name,
        **_summary(extraction),
        "SHA-256": hash_file(target, progress),
    }
    return rows, _worst(extraction)


def _summary(extraction: Extraction) -> Rows:
    ranks = sorted(layer.rank for layer in extraction.layers.values())
    outside, unasked = extraction.outside, extraction.unasked
    unchanged = f", {extraction.unchanged} unchanged and left out" if extraction.unchanged else ""
    rows = {
        "Layers": f"{len(extraction.layers)}{unchanged}",
        "Ranks": f"{ranks[0]} to {ranks[-1]}, median {ranks[len(ranks) // 2]}",
        "Error": f"{percent(extraction.error, 2)} of the change in these layers (root of squares)",
    }
    told = []
    if outside:
        told.append(
            f"norms, biases and other layers that no LoRA holds changed too ({', '.join(outside)})"
        )
    if unasked:
        told.append(f"layers that the options leave out changed ({', '.join(unasked)})")
    if told:
        rows["In all"] = (
            f"{percent(extraction.whole_error, 2)} of all that changed: {'; '.join(told)}"
        )
    return rows


def _worst(extraction: Extraction) -> Rows:
    order = sorted(extraction.layers.items(), key=lambda item: -item[1].error)
    return {
        name: f"{percent(layer.error, 2)}, rank {layer.rank}" for name, layer in order[:WORST_SHOWN]
    }
