"""Metadata by the scripts of sd-scripts' `finetune/`: merging, cleaning, buckets and latents.

`merge_captions_to_metadata.py`, `merge_dd_tags_to_metadata.py`, `clean_captions_and_tags.py` and
`prepare_buckets_latents.py`, with their flags and outputs; the last one really writes its latents.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from impasto.errors import ConfigError, DatasetError
from impasto.parsing import printable, read_caption_file
from impasto.progress import counted
from impasto.sdscripts.tools import (
    ToolParser,
    image_parser,
    images_of,
    positive,
    run_tool,
    warn_ignored_flags,
)
from impasto.sdscripts.values import read_resolution

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.data.folders.beside import SidecarLookup
    from impasto.data.folders.metadata import MetadataEntry
    from impasto.data.records import ImageRecord, PlannedImage

Column = Literal["caption", "tags"]

_NAMED = 5  # images without captions to list in a line


def merge_captions_to_metadata() -> None:
    """Run sd-scripts' `merge_captions_to_metadata.py`, which joins text files in one JSON file."""
    parser = _merge_parser("merge_captions_to_metadata.py", "captions", ".caption", old=True)
    run_tool(lambda options, console: _merge(options, console, "caption"), parser)


def merge_dd_tags_to_metadata() -> None:
    """Run sd-scripts' `merge_dd_tags_to_metadata.py`, which joins text files in one JSON file."""
    parser = _merge_parser("merge_dd_tags_to_metadata.py", "tags", ".txt", old=False)
    run_tool(lambda options, console: _merge(options, console, "tags"), parser)


def _merge_parser(prog: str, what: str, ending: str, *, old: bool) -> ToolParser:
    parser = image_parser(prog, f"Put {what} beside images into metadata.", ending, old=old)
    parser.add_argument("out_json", type=Path)
    parser.add_argument(
        "--in_json", type=Path, help="metadata to add to; default: out_json, if it exists"
    )
    parser.add_argument("--full_path", action="store_true", help="keys are absolute paths")
    return parser


def _merge(options: argparse.Namespace, console: Console, column: Column) -> None:
    from impasto.data.folders.beside import SidecarLookup
    from impasto.data.folders.metadata import MetadataEntry, read_metadata

    _require_full_path(options)
    source = options.in_json or (options.out_json if options.out_json.is_file() else None)
    known = read_metadata(source).entries if source is not None else ()
    entries = {entry.key: entry for entry in known}
    records = images_of(options.train_data_dir, console, recursive=options.recursive)
    missing, beside = list[str](), SidecarLookup(options.caption_extension)
    for record in records:
        key = _key(record, full_path=options.full_path)
        text = _text_beside(record, options.caption_extension, beside)
        if text is None:
            missing.append(printable(os.path.relpath(record.path, options.train_data_dir)))
        entry = entries.get(key, MetadataEntry(key))
        columns: dict[str, Any] = {column: text or ""}
        entries[key] = replace(entry, **columns) if text is not None else entry
        if options.debug:
            console.note(f"{key}: {text}")
    console.note(
        f"{len(records) - len(missing)} of {counted(len(records), 'images')}: {options.out_json}."
    )
    if missing:
        more = "" if len(missing) <= _NAMED else f" and {len(missing) - _NAMED:,} more"
        console.note(
            f"{counted(len(missing), 'images have')} no {options.caption_extension} beside them: "
            f"{', '.join(missing[:_NAMED])}{more}."
        )
    _write(options.out_json, entries.values(), source, known, console)


def clean_captions_and_tags() -> None:
    """Run sd-scripts' `clean_captions_and_tags.py`, which cleans the captions in a JSON file."""
    parser = ToolParser(
        prog="clean_captions_and_tags.py", description="Clean metadata.", allow_abbrev=False
    )
    parser.add_argument("in_json", type=Path)
    parser.add_argument("out_json", type=Path, nargs="+")
    parser.add_argument("--debug", action="store_true", help="print each change")
    run_tool(_clean, parser)


def _clean(options: argparse.Namespace, console: Console) -> None:
    from impasto.annotate.cleaning import KohyaCleaner
    from impasto.data.folders.metadata import read_metadata

    source: Path = options.in_json
    targets: list[Path] = options.out_json
    if len(targets) == 2:  # the old form: train_data_dir in_json out_json
        console.note("The folder of images is not needed any more; it is ignored.")
        source, targets = targets[0], targets[1:]
    if len(targets) != 1:
        raise ConfigError("clean_captions_and_tags.py takes in_json and out_json.")
    rules, cleaned, changed = KohyaCleaner(), [], 0
    known = read_metadata(source).entries
    for entry in known:
        new = replace(entry, caption=rules.caption(entry.caption), tags=rules.tags(entry.tags))
        changed += new != entry
        if options.debug and new != entry:
            console.note(f"{entry.key}\n- {entry.caption} | {entry.tags}")
            console.note(f"+ {new.caption} | {new.tags}")
        cleaned.append(new)
    console.note(f"{changed} of {counted(len(cleaned), 'entries')} changed: {targets[0]}.")
    _write(targets[0], cleaned, source, known, console)


def prepare_buckets_latents() -> None:
    """Run sd-scripts' `prepare_buckets_latents.py`, which encodes images ahead."""
    parser = ToolParser(
        prog="prepare_buckets_latents.py",
        description="Choose buckets, encode images, write .npz files and metadata.",
        allow_abbrev=False,
    )
    for name in ("train_data_dir", "in_json", "out_json"):
        parser.add_argument(name, type=Path)
    parser.add_argument("model_name_or_path", help="the model whose VAE encodes the images")
    parser.add_argument("--v2", action="store_true")
    parser.add_argument("--batch_size", type=positive, default=1)
    parser.add_argument("--max_data_loader_n_workers", type=int)
    parser.add_argument("--max_resolution", default="512,512")
    parser.add_argument("--min_bucket_reso", type=int, default=256)
    parser.add_argument("--max_bucket_reso", type=int, default=1024)
    parser.add_argument("--bucket_reso_steps", type=int, default=64)
    parser.add_argument("--bucket_no_upscale", action="store_true")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    for name in ("full_path", "flip_aug", "skip_existing", "recursive", "debug"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--alpha_mask", default="", help="not stored in these files")
    run_tool(_prepare, parser)


def _prepare(options: argparse.Namespace, console: Console) -> None:
    from impasto.config.dataset_file import SDSCRIPTS_DEFAULTS, round_bucket_sides
    from impasto.config.load import build_dataset_config
    from impasto.data.caching.filling import cache_latents
    from impasto.data.caching.latent_cache import LatentCache
    from impasto.data.caching.npz_exchange import export_latents
    from impasto.datasets.build import plan_dataset, scan_all
    from impasto.models.networks.casting import cast_network
    from impasto.models.networks.loading import load_base_model
    from impasto.models.networks.vae import moments_encoder
    from impasto.models.writing.saving import DTYPES
    from impasto.training.devices import default_device, set_arithmetic

    warn_ignored_flags(
        options,
        console,
        v2="the VAE is the same",
        max_data_loader_n_workers="decoding uses one process per CPU",
        skip_existing="images that are encoded already are always skipped",
        alpha_mask="masks are read when training starts",
    )
    _require_full_path(options)
    known = _entries_to_prepare(options)
    values = {
        **SDSCRIPTS_DEFAULTS,
        "enable_bucket": True,
        "bucket_table": "resolution",
        "latents_from_npz": False,
        "image_dir": str(options.train_data_dir),
        "resolution": read_resolution(options.max_resolution, "max_resolution"),
        "min_bucket_reso": options.min_bucket_reso,
        "max_bucket_reso": options.max_bucket_reso,
        "bucket_reso_steps": options.bucket_reso_steps,
        "bucket_no_upscale": options.bucket_no_upscale,
        "flip_aug": options.flip_aug,
        "recursive": options.recursive,
        "vae_precision": _vae_precision(options.mixed_precision, console),
    }
    config = build_dataset_config({**values, **round_bucket_sides(values)}, source="command line")
    scan = scan_all(config, console)
    whole = [replace(record, size=record.whole, cut=None) for record in scan.records]
    planned = plan_dataset(config, whole)  # sd-scripts, which reads these files, has no crops
    base = load_base_model(options.model_name_or_path, progress=console)
    vae, endings = base.vae, base.family.npz_endings
    set_arithmetic(tf32=True)  # the default of training.tf32
    cast_network(vae, DTYPES[config.vae_precision])
    cache = LatentCache(config.derived_dir / "latents")
    encoder = moments_encoder(
        vae, batch_size=options.batch_size, device=default_device(), npz_endings=endings
    )
    result = cache_latents(planned.images, cache, encoder, console)
    exported = export_latents(result, cache, console, endings)
    console.note(
        f"{exported.written} .npz files beside their images; metadata: {options.out_json}."
    )
    _write_resolutions(options, known, result.images, console)
    for item in (*scan.skipped, *result.skipped, *exported.refused):
        console.note(f"Skipped: {item.path}: {item.reason}")
    for line in scan.describe_unused():
        console.note(line)


def _vae_precision(asked: str, console: Console) -> str:
    """Return the VAE's precision: the requested one, or float32 if the CPU is slow in that."""
    from impasto.training.compute.precision import native_precision
    from impasto.training.devices import default_device

    if asked == "no":
        return "fp32"
    native = native_precision()
    if default_device().type != "cpu" or native.kind == asked:
        return asked
    console.note(
        f"--mixed_precision={asked}: encoding in float32, as there is no GPU and {native.reason}."
    )
    return "fp32"


def _entries_to_prepare(options: argparse.Namespace) -> tuple[MetadataEntry, ...]:
    """Read the entries of `in_json`, and check `out_json`, before the long encoding starts.

    Raises:
        ConfigError: `out_json` is a folder.
        DatasetError: `in_json` is missing or damaged.
        StorageError: The folder of `out_json` is not writable.
    """
    from impasto import files
    from impasto.data.folders.metadata import read_metadata

    if not options.in_json.is_file():
        raise DatasetError(
            f"{options.in_json} does not exist. Run merge_captions_to_metadata.py first."
        )
    known = read_metadata(options.in_json).entries
    if options.out_json.is_dir():
        raise ConfigError(f"out_json is {options.out_json}, which is a folder; expected a file.")
    files.require_writable(files.real_path(options.out_json).parent)
    return known


def _write_resolutions(
    options: argparse.Namespace,
    known: Sequence[MetadataEntry],
    images: Sequence[PlannedImage],
    console: Console,
) -> None:
    from impasto.data.folders.metadata import MetadataEntry

    entries = {entry.key: entry for entry in known}
    new = 0
    for image in images:
        key = _key(image.record, full_path=options.full_path)
        new += key not in entries
        entry = entries.get(key, MetadataEntry(key))
        entries[key] = replace(entry, train_resolution=image.bucket, image_size=image.record.size)
    _write(options.out_json, entries.values(), options.in_json, known, console)
    if new:
        console.note(
            f"{counted(new, 'images are')} not in {options.in_json}: they have no captions."
        )


def _write(
    target: Path,
    entries: Iterable[MetadataEntry],
    source: Path | None,
    known: Sequence[MetadataEntry],
    console: Console,
) -> None:
    """Write metadata, and print the path of the backup; skip it if the file would not change."""
    from impasto.data.folders.metadata import write_metadata

    written = tuple(entries)
    is_same = source is not None and source.exists() and target.exists() and target.samefile(source)
    if is_same and written == tuple(known):
        console.note(f"{target} contains all of that already; it was left unchanged.")
        return
    backup = write_metadata(target, written)
    if backup is not None:
        console.note(f"The old file is kept as {backup}.")


def _require_full_path(options: argparse.Namespace) -> None:
    if options.recursive and not options.full_path:
        raise ConfigError("--recursive needs --full_path: file names alone may not be unique.")


def _key(record: ImageRecord, *, full_path: bool) -> str:
    return str(record.path) if full_path else record.path.stem


def _text_beside(record: ImageRecord, ending: str, beside: SidecarLookup) -> str | None:
    """Read the caption file of an image that a scan would use; None if there is none."""
    path = beside.file(record.path, ending)
    try:
        return read_caption_file(path).strip() if path.is_file() else None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
