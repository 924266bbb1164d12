"""`impasto dataset ...`: look at a folder of pictures before training on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

FOLDER = click.argument("folder", type=click.Path(path_type=Path))


def _bucket_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--resolution", default=512, show_default=True, help="Side in pixels."),
        click.option("--min-side", default=256, show_default=True, help="Shortest bucket side."),
        click.option("--max-side", default=1024, show_default=True, help="Longest bucket side."),
        click.option("--step", default=64, show_default=True, help="Multiple of bucket sides."),
        click.option("--no-upscale", is_flag=True, help="Never enlarge; smaller buckets instead."),
        click.option(
            "--selection",
            type=click.Choice(["native", "kohya"]),
            default="native",
            show_default=True,
            help="Keep the most of each picture, or choose as sd-scripts does.",
        ),
        click.option(
            "--table",
            type=click.Choice(["resolution", "novelai"]),
            default="resolution",
            show_default=True,
            help="Buckets by the options above, or NovelAI's 19.",
        ),
        click.option(
            "--cache-dir", type=click.Path(path_type=Path), help="Default: FOLDER/.impasto."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _config(folder: Path, options: dict[str, Any]) -> Any:
    """The settings of the data set that the bucket options stand for."""
    from impasto.config.load import build_dataset_config

    return build_dataset_config(
        {
            "image_dir": folder,
            "resolution": options["resolution"],
            "min_bucket_reso": options["min_side"],
            "max_bucket_reso": options["max_side"],
            "bucket_reso_steps": options["step"],
            "bucket_no_upscale": options["no_upscale"],
            "bucket_selection": options["selection"],
            "bucket_table": options["table"],
            "cache_dir": options["cache_dir"],
        },
        source="command line",
    )


@click.group()
def dataset() -> None:
    """Scan, plan and cache a folder of pictures."""


@dataset.command()
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--decode", is_flag=True, help="Decode every picture, to find truncated ones before training."
)
def scan(folder: Path, as_json: bool, decode: bool) -> None:  # noqa: FBT001
    """List what FOLDER holds: usable pictures, missing words, and files set aside with reasons."""
    from impasto.cli.console import Console
    from impasto.data.scan import decode_all, scan_folder
    from impasto.progress import SilentProgress

    console = Console()
    progress = SilentProgress() if as_json else console
    result = scan_folder(folder, progress=progress)
    if decode:
        result = decode_all(result, progress)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "pictures": len(result.records),
                    "uncaptioned": [str(r.path) for r in result.records if not r.text],
                    "set_aside": [
                        {"path": str(a.path), "reason": a.reason} for a in result.set_aside
                    ],
                },
                ensure_ascii=False,
                indent=1,
            )
        )
        return
    console.table(
        {
            "Usable pictures": len(result.records),
            "Without words": result.uncaptioned,
            "Set aside": len(result.set_aside),
        }
    )
    for item in result.set_aside:
        console.note(f"  {item.path.relative_to(folder)}: {item.reason}")


@dataset.command()
@FOLDER
@_bucket_options
def plan(folder: Path, **options: Any) -> None:
    """Show which bucket each picture of FOLDER would go to, and what cropping costs."""
    from impasto.cli.console import Console
    from impasto.training.pictures import plan_dataset, scan_dataset

    config = _config(folder, options)
    console = Console()
    records = scan_dataset(config, console).records
    result = plan_dataset(config, records)
    longest = max(result.bucket_counts.values())
    for size, count in result.bucket_counts.items():
        console.note(f"{size!s:>11} {count:6d}  {'█' * max(1, round(40 * count / longest))}")
    worst = sorted(result.images, key=lambda image: -image.lost_area)[:5]
    console.table(
        {
            "Cropped away": f"{100 * result.mean_lost_area:.1f} % of the area on average",
            "Enlarged": f"{result.enlarged} of {len(records)} pictures",
            "Cropped most": ", ".join(
                f"{image.record.path.name} ({100 * image.lost_area:.0f} %)" for image in worst
            ),
        }
    )


@dataset.command()
@FOLDER
@click.argument("model")
@_bucket_options
@click.option("--batch-size", default=4, show_default=True, help="Pictures encoded at once.")
def cache(folder: Path, model: str, batch_size: int, **options: Any) -> None:
    """Encode the pictures of FOLDER with MODEL's VAE ahead of training."""
    from impasto.cli.console import Console
    from impasto.data.latent_cache import LatentCache, cache_latents
    from impasto.models.loading import load_base_model
    from impasto.models.vae import moments_encoder
    from impasto.training.devices import default_device
    from impasto.training.pictures import plan_dataset, scan_dataset

    config = _config(folder, options)
    console = Console()
    planned = plan_dataset(config, scan_dataset(config, console).records)
    vae = load_base_model(model, progress=console).vae.to(default_device())
    latents = LatentCache(config.derived_dir / "latents")
    result = cache_latents(
        planned.images, latents, moments_encoder(vae, batch_size=batch_size), console
    )
    console.table(
        {
            "Encoded now": result.encoded,
            "Cached before": len(result.images) - result.encoded,
            "Set aside": len(result.set_aside),
            "Cache": latents.folder,
        }
    )
    for item in result.set_aside:
        console.note(f"  {item.path}: {item.reason}")
