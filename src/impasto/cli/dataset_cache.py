"""`impasto dataset cache`: encode images ahead of training, and verify or prune the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.dataset_options import (
    CACHE_DIR,
    IMAGE_DIR,
    SOURCE,
    bucket_options,
    dataset_config,
    display_path,
    executor_options,
    local_dataset_config,
    print_skipped,
    require_own_files,
)
from impasto.cli.groups import FullHelpGroup
from impasto.progress import counted
from impasto.remote_paths import shown

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.config.dataset import DatasetConfig
    from impasto.config.run import RunConfig
    from impasto.data.caching.encoding import MomentsEncoder
    from impasto.data.caching.latent_cache import CachedPlan
    from impasto.data.caching.npz_exchange import Exported
    from impasto.data.engines.engine import Engine
    from impasto.data.planning.plan import Plan
    from impasto.data.scanning.scan import Scan
    from impasto.models.networks.loading import BaseModel

_NO_NPZ = "where no .npz is written. Copy or unpack the images into a folder of this machine"


class _EncodingGroup(FullHelpGroup):
    """A command group that runs `encode` if its first argument is not the name of a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx):
            args = ["encode", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_EncodingGroup)
def cache() -> None:
    """Encode images ahead of training (`cache SOURCE MODEL`), and verify or prune the cache.

    Training fills the cache by itself; this command does it at another time.
    """


@cache.command()
@SOURCE
@click.argument("model")
@bucket_options
@executor_options
@click.option(
    "--batch-size", type=click.IntRange(1), help="Number of images per VAE batch.  [default: 4]"
)
@click.option("--workers", type=click.IntRange(0), help="Number of processes that decode images.")
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be used.")
@click.option(
    "--export-npz", is_flag=True, help="Also write the latents as .npz files for sd-scripts."
)
@click.option(
    "--export-te-npz",
    is_flag=True,
    help="SDXL: also encode the captions with both text encoders and write _te_outputs.npz for "
    "sd-scripts. Files that Impasto did not write are left unchanged.",
)
def encode(
    source: Path,
    model: str,
    batch_size: int | None,
    workers: int | None,
    strict: bool,  # noqa: FBT001
    export_npz: bool,  # noqa: FBT001
    export_te_npz: bool,  # noqa: FBT001
    **options: Any,
) -> None:
    """Encode the images of SOURCE with MODEL's VAE ahead of training.

    If SOURCE is the settings of a run, its validation images are encoded too.
    """
    from impasto.checkpoints.hub import require_source

    require_source(model)
    from impasto.cli.console import Console
    from impasto.data.caching.filling import cache_latents
    from impasto.data.caching.latent_cache import LatentCache
    from impasto.data.caching.npz_exchange import export_latents
    from impasto.datasets.build import require_usable, scan_all, validation_folders
    from impasto.datasets.engines import open_engine
    from impasto.models.text.text_exchange import export_texts
    from impasto.training.devices import default_device
    from impasto.training.planning.encoding_memory import fitting_batch

    writes_beside = export_npz or export_te_npz
    given: dict[str, Any] = {"on_error": "stop"} if strict else {}
    given |= {} if workers is None else {"decode_workers": workers}
    config = _config(source, options, given, writes_beside=writes_beside)
    console, run = Console(), _run_of(source, config)
    with open_engine(config, console, validation_folders(run) if run else ()) as engine:
        scan = scan_all(config, console)
        require_usable(scan, config)
        if writes_beside:
            require_own_files(scan.records, _NO_NPZ)
        planned = _plan_used(config, run, scan, console, engine)
        base, vae = _encoding_vae(config, model, console)
        text_ending = _text_ending(base) if export_te_npz else None
        latents = LatentCache(config.derived_dir / "latents")
        device, endings = default_device(), base.family.npz_endings
        at_once = batch_size or fitting_batch(vae, planned, config.vae_batch_size, device)
        result = cache_latents(
            planned.images,
            latents,
            _encoder_of(vae, model, endings, at_once),
            console,
            on_error=config.on_error,
            workers=config.decode_workers,
            engine=engine,
        )
    exports: dict[str, Exported] = {}
    beside = _of_dataset(result, scan, run) if writes_beside else result
    if export_npz:
        exports["Written as .npz"] = export_latents(beside, latents, console, endings)
    if text_ending is not None:
        texts = export_texts(beside.table.records, base, text_ending, device, console)
        exports["Written as _te_outputs.npz"] = texts
    _report(console, source, scan.without(result.skipped), result, latents.folder, exports)


def _of_dataset(result: CachedPlan, scan: Scan, run: RunConfig | None) -> CachedPlan:
    """Return `result` without separate validation images: no program reads files beside those."""
    has_others = run is not None and run.validation.image_dir is not None
    return result.among(scan.records) if has_others else result


def _encoder_of(
    vae: Any, model: str, npz_endings: tuple[str, ...], batch_size: int
) -> MomentsEncoder:
    """Build the encoder of images with a model's VAE, in batches, on this machine's device."""
    from impasto.models.networks.vae import moments_encoder
    from impasto.models.networks.vae_recipe import with_recipe
    from impasto.training.devices import default_device

    device = default_device()
    encoder = moments_encoder(vae, batch_size=batch_size, device=device, npz_endings=npz_endings)
    return with_recipe(encoder, vae, model, None, device)


def _run_of(source: Path, config: DatasetConfig) -> RunConfig | None:
    """Load the run settings in SOURCE, with `config` as dataset; None if SOURCE is not a run's."""
    from impasto.config.load import load_run_of_source

    run = load_run_of_source(source)
    return None if run is None else run.model_copy(update={"dataset": config})


def _plan_used(
    config: DatasetConfig, run: RunConfig | None, scan: Scan, console: Console, engine: Engine
) -> Plan:
    """Plan the buckets of all images of a dataset, or of those a run trains and validates on."""
    from impasto.data.record_table import join_records
    from impasto.datasets.build import hold_out, plan_dataset

    if run is None:
        return plan_dataset(config, scan.records)
    split = hold_out(scan, run, console, engine)
    return plan_dataset(config, join_records([split.training, split.held_out]))


def _config(
    source: Path, options: dict[str, Any], given: dict[str, Any], *, writes_beside: bool
) -> DatasetConfig:
    """Return the dataset settings of SOURCE and the options, overridden by those in `given`.

    Raises:
        ConfigError: The number of workers does not fit the executor; or files are to be written
            beside images that are in an object store.
    """
    from impasto.errors import ConfigError

    config = (
        local_dataset_config(source, options, _NO_NPZ)
        if writes_beside
        else dataset_config(source, options)
    )
    config = config.model_copy(update=given)
    try:
        config.require_executor()
    except ValueError as error:
        raise ConfigError(f"--workers does not work with the executor: {error}.") from error
    return config


def _report(
    console: Console,
    source: Path,
    found: Scan,
    result: CachedPlan,
    folder: Path,
    exports: Mapping[str, Exported],
) -> None:
    """Print the counts of encoded and written files, those refused with reasons, and warnings."""
    console.table(
        {
            **found.tally.rows(),
            "Encoded now": result.encoded,
            "Cached before": len(result.images) - result.encoded,
            "Cache": shown(folder),
            **{name: export.written for name, export in exports.items()},
        }
    )
    print_skipped(console, found, source)
    for item in (*result.refused, *(item for of in exports.values() for item in of.refused)):
        console.note(f"  {display_path(item.path, source)}: {item.reason}")
    for warning in filter(None, (export.warning for export in exports.values())):
        console.note(f"Warning: {warning}")


@cache.command()
@SOURCE
@IMAGE_DIR
@CACHE_DIR
@click.option(
    "--remove", is_flag=True, help="Delete damaged shards, so that they are encoded again."
)
def verify(source: Path, remove: bool, **options: Any) -> None:  # noqa: FBT001
    """Read all cache files of SOURCE, and list the damaged ones."""
    from impasto.cli.console import Console
    from impasto.data.caching.latent_cache import LatentCache
    from impasto.data.caching.text_store import TEXTS, TextStore
    from impasto.errors import DatasetError

    console = Console()
    derived = dataset_config(source, options).derived_dir
    latents, texts = LatentCache(derived / "latents"), TextStore(derived / TEXTS, "")
    number, bad = latents.number_of_shards + texts.number_of_shards, []
    alone = latents.alone("removing damaged shards") if remove else contextlib.nullcontext()
    with alone, console.stage("Verifying", number, "shards") as advance:
        for fault in chain(latents.verify(remove=remove), texts.verify(remove=remove)):
            bad += [fault] if fault else []
            advance(1)
    for fault in bad:
        console.note(f"  {shown(fault.file)}: {fault.reason} ({counted(fault.entries, 'entries')})")
    unread = sum(fault.is_unread for fault in bad)
    console.table({"Shards": number, "Damaged": len(bad) - unread, "Cache": shown(derived)})
    if unread:
        raise DatasetError(
            f"{unread} of {counted(number, 'shards')} in {shown(derived)} could not be read from "
            f"the disk. They may be intact, so none of them was removed. Check the disk and the "
            f"permissions of the files, and run this again."
        )
    if bad and not remove:
        raise DatasetError(
            f"{len(bad)} of {counted(number, 'shards')} in {shown(derived)} are damaged. Run this "
            f"again with --remove: their contents are then encoded again when needed."
        )


@cache.command()
@SOURCE
@click.argument("model")
@bucket_options
def prune(source: Path, model: str, **options: Any) -> None:
    """Delete cached latents that SOURCE, with the given options and MODEL's VAE, does not need."""
    from impasto.checkpoints.hub import require_source

    require_source(model)
    from impasto.cli.console import Console
    from impasto.data.caching.latent_cache import LatentCache
    from impasto.data.caching.text_store import TEXTS, TextStore
    from impasto.data.caching.wanted_keys import keys_of_plan, require_read
    from impasto.data.record_table import join_records
    from impasto.datasets.build import plan_dataset, scan_all, scan_of_validation
    from impasto.models.networks.vae import encoding_fingerprint

    config = dataset_config(source, options)
    console = Console()
    scan = scan_all(config, console)
    require_read(scan.skipped)
    records, run = scan.records, _run_of(source, config)
    if run is not None:
        validation = scan_of_validation(scan, run)
        require_read(validation.skipped)
        records = join_records([records, validation.records])
    planned = plan_dataset(config, records)
    base, vae = _encoding_vae(config, model, console)
    endings = base.family.npz_endings
    latents = LatentCache(config.derived_dir / "latents")
    texts = TextStore(config.derived_dir / TEXTS, "")
    wanted = keys_of_plan(planned.images, latents, encoding_fingerprint(vae), console, endings)
    dropped = freed = 0
    with (
        latents.alone("pruning"),
        console.stage("Pruning", latents.number_of_shards, "shards") as advance,
    ):
        freed += latents.remove_orphans() + texts.remove_orphans()
        for entries, size in latents.prune(wanted):
            dropped, freed = dropped + entries, freed + size
            advance(1)
    console.table(
        {
            "Deleted": f"{counted(dropped, 'entries')}, {freed / 2**20:.1f} MiB",
            "Kept": counted(len(latents), "entries"),
            "Cache": shown(latents.folder),
        }
    )


def _text_ending(base: BaseModel) -> str:
    """Return the suffix of files with text encoder outputs; the family must be SDXL."""
    from impasto.errors import ConfigError

    ending = base.family.text_npz_ending
    if ending is None:
        raise ConfigError(
            f"--export-te-npz has no effect: {base.contents.name} is {base.family.name}, and "
            f"sd-scripts caches text encoder outputs for SDXL only. Remove it."
        )
    return ending


def _encoding_vae(config: Any, model: str, console: Any) -> tuple[BaseModel, Any]:
    """Load the model, and return it with its VAE in the precision and tiling of the settings."""
    from impasto.models.networks.casting import cast_network
    from impasto.models.networks.loading import load_base_model
    from impasto.models.networks.vae import tile
    from impasto.models.writing.saving import DTYPES
    from impasto.training.compute.precision import warn_if_slow
    from impasto.training.devices import set_arithmetic

    set_arithmetic(tf32=True)  # the default of training.tf32
    precision = config.vae_precision
    warn_if_slow("no" if precision == "fp32" else precision, "set vae_precision to fp32", console)
    base = load_base_model(model, progress=console)
    tile(base.vae, tiled=config.vae_tiling)
    return base, cast_network(base.vae, DTYPES[precision])
