"""`impasto init`: a model with random weights, for training from scratch."""

from __future__ import annotations

from pathlib import Path

import click

from impasto.cli.local_paths import WRITTEN


@click.command()
@click.argument("architecture", metavar="tiny|sd1|sd2|sdxl")
@click.argument("target", type=WRITTEN)
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="The dtype of the stored weights.",
)
def init(architecture: str, target: Path, seed: int, dtype: str) -> None:
    """Write a Diffusers folder TARGET with random weights of the given architecture."""
    from impasto import files

    files.require_absent(target)  # before PyTorch is imported, which takes seconds
    from impasto.cli.console import Console
    from impasto.models.writing.architectures import find_architecture, write_random_model
    from impasto.models.writing.saving import DTYPES
    from impasto.models.writing.targets import require_folder_name

    require_folder_name(target)
    console = Console()
    found = find_architecture(architecture)
    with console.stage(f"Drawing random weights for {architecture}", None, "models"):
        write_random_model(found, target, seed=seed, dtype=DTYPES[dtype])
    console.note(
        f"Wrote {target}. Its weights are random: it draws noise until it is trained. Its VAE is "
        f"random too, and training does not change it: set model.vae to a trained VAE."
    )
