"""`impasto extract-lora`."""

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
    help="The LoRA: a file that ends in .safetensors.",
)  # fmt: skip
@click.option(
    "--rank", type=click.IntRange(1),
    help=f"Keep at most this many singular values of each layer; default: {RANK}, with --energy "
    f"all.",
)  # fmt: skip
@click.option(
    "--conv-rank", type=click.IntRange(0),
    help="The same for 3x3 convolutions; 0 makes a LoRA of the attention blocks alone. Default: "
    "the rank.",
)  # fmt: skip
@click.option(
    "--energy", type=Finite(0, 1, min_open=True), metavar="SHARE",
    help="Keep as few singular values of each layer as hold this share of its change, such as "
    "0.95.",
)  # fmt: skip
@click.option("--full-rank", is_flag=True, help="Keep everything: the file is larger than a model.")
@click.option("--no-text-encoder", is_flag=True, help="Leave text encoders out.")
@click.option(
    "--dtype",
    type=DTYPE,
    default="fp16",
    show_default=True,
    help="The dtype of the LoRA's tensors.",
)
@click.option("--title", help="Its name in its metadata; default: OUT's.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is there.")
@options_without_vae
def extract_lora(base: str, model: str, target: Path, **options: Any) -> None:
    """Write the difference between BASE and MODEL as a LoRA.

    BASE and MODEL are files, Diffusers folders, Hub ids or finished runs of one family. A1111,
    Forge, ComfyUI and diffusers load the file; at strength 1 on BASE it gives MODEL, as nearly as
    its rank allows.

    \b
    impasto extract-lora base.safetensors runs/style --out style-lora.safetensors
    impasto extract-lora base.safetensors style.safetensors --energy 0.95 --out lora.safetensors
    """  # noqa: D301 - the backspace tells click to keep the lines
    if target.suffix.lower() != ENDING:
        raise ConfigError(
            f"{target} ends in {target.suffix or 'nothing'}; a LoRA is written as {ENDING}. Let "
            f"its name end so."
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
    """Ranks and precision as they are asked for.

    Raises:
        ConfigError: Two options contradict each other.
    """
    from impasto.models.merging.extraction import ExtractionRules
    from impasto.models.writing.saving import DTYPES

    rank, conv_rank, energy = (options[name] for name in ("rank", "conv_rank", "energy"))
    if options["full_rank"] and (rank, conv_rank, energy) != (None, None, None):
        raise ConfigError(
            "--full-rank keeps everything, so --rank, --conv-rank and --energy do not go with it. "
            "Take one out."
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
