"""`impasto extract-lora`: write the difference between two models as a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.local_paths import WRITTEN
from impasto.cli.model_options import open_options, options_without_vae
from impasto.cli.numbers import Finite
from impasto.cli.precision_options import DTYPE
from impasto.errors import ConfigError

if TYPE_CHECKING:
    from impasto.models.merging.extraction import ExtractionRules

ENDING = ".safetensors"
RANK = 64


@click.command("extract-lora")
@click.argument("base", metavar="BASE")
@click.argument("model", metavar="MODEL")
@click.option(
    "--out", "target", metavar="OUT", type=WRITTEN, required=True,
    help="The LoRA file to write; its name ends in .safetensors.",
)  # fmt: skip
@click.option(
    "--rank", type=click.IntRange(1),
    help=f"Keep at most this many singular values per layer; default: {RANK}, or no limit with "
    f"--energy.",
)  # fmt: skip
@click.option(
    "--conv-rank", type=click.IntRange(0),
    help="The rank of 3x3 convolutions; 0 leaves them out, for a LoRA of the attention blocks "
    "only. Default: the value of --rank.",
)  # fmt: skip
@click.option(
    "--energy", type=Finite(0, 1, min_open=True), metavar="FRACTION",
    help="Keep the fewest singular values per layer that hold this fraction of its change, such as "
    "0.95.",
)  # fmt: skip
@click.option(
    "--full-rank",
    is_flag=True,
    help="Keep all singular values: the file becomes larger than a model.",
)
@click.option("--no-text-encoder", is_flag=True, help="Leave out the text encoders.")
@click.option(
    "--dtype",
    type=DTYPE,
    default="fp16",
    show_default=True,
    help="The dtype of the LoRA's tensors.",
)
@click.option("--title", help="The LoRA's name in its metadata; default: the name of OUT.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@options_without_vae
def extract_lora(base: str, model: str, target: Path, **options: Any) -> None:
    """Write the difference between BASE and MODEL as a LoRA.

    BASE and MODEL are files, Diffusers folders, Hub ids or finished runs of one family. A1111,
    Forge, ComfyUI and diffusers load the file; at strength 1 on BASE it reproduces MODEL as closely
    as its rank allows.

    \b
    impasto extract-lora base.safetensors runs/style --out style-lora.safetensors
    impasto extract-lora base.safetensors style.safetensors --energy 0.95 --out lora.safetensors
    """  # noqa: D301 - the backspace tells click to keep the lines
    if target.suffix.lower() != ENDING:
        raise ConfigError(
            f"{target} has the extension {target.suffix or '(none)'}; a LoRA is written as "
            f"{ENDING}. Give a name that ends in {ENDING}."
        )
    from impasto.checkpoints.hub import require_source

    rules = _rules(options)
    for source in (base, model):
        require_source(source)
    from impasto.cli.console import Console
    from impasto.models.merging.lora_extraction import extract_file

    console = Console()
    rows, worst = extract_file(
        base,
        model,
        target,
        rules,
        open_options(options),
        title=options["title"],
        overwrite=options["overwrite"],
        progress=console,
    )
    console.table(rows)
    console.heading("Largest errors of layers")
    console.table(worst)


def _rules(options: dict[str, Any]) -> ExtractionRules:
    """Build the extraction rules, ranks and precision, from the options.

    Raises:
        ConfigError: Two options contradict each other.
    """
    from impasto.models.merging.extraction import ExtractionRules
    from impasto.models.writing.saving import DTYPES

    rank, conv_rank, energy = (options[name] for name in ("rank", "conv_rank", "energy"))
    if options["full_rank"] and (rank, conv_rank, energy) != (None, None, None):
        raise ConfigError(
            "--full-rank keeps everything and cannot be combined with --rank, --conv-rank or "
            "--energy. Remove one of them."
        )
    if rank is None and energy is None and not options["full_rank"]:
        rank = RANK
    return ExtractionRules(
        rank,
        rank if conv_rank is None else conv_rank,
        energy,
        DTYPES[options["dtype"]],
        with_text=not options["no_text_encoder"],
        asked=tuple(
            f"--{name.replace('_', '-')}" for name in ("rank", "conv_rank") if options[name]
        ),
    )
