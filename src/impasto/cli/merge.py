"""`impasto merge`: mix models, or add LoRAs to one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.local_paths import WRITTEN
from impasto.cli.model_options import model_options, open_options
from impasto.cli.numbers import Finite
from impasto.cli.precision_options import asked_dtypes, precision_options
from impasto.errors import ConfigError
from impasto.finite import finite
from impasto.invocation import command
from impasto.progress import counted

if TYPE_CHECKING:
    from impasto.models.merging.merging import Mixture, Output
    from impasto.models.merging.mixing import Formula

AVERAGE = "average"
FORMULA = click.Choice(["weighted-sum", "add-difference", "train-difference", AVERAGE])
MOST = 10
RATIO = Finite(-MOST, MOST)


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--out", "target", metavar="OUT", type=WRITTEN,
    help="Write the merged model to this .safetensors or .ckpt file, or to a Diffusers folder.",
)  # fmt: skip
@click.option(
    "--formula",
    type=FORMULA,
    help="weighted-sum: (1 - M) A + M B. add-difference: A + M (B - C). train-difference: like "
    "add-difference, computed as supermerger's trainDifference. average: the mean of all models, "
    "or of the models saved by one run. Default: weighted-sum for two models.",
)
@click.option(
    "--ratio",
    type=RATIO,
    help="M in the formula; default: 0.5 for weighted-sum, 1 for other formulas.",
)
@click.option(
    "--block", "named", multiple=True, metavar="NAME=RATIO",
    help="A different M for one network (unet, text_encoder, vae) or one block of the U-Net, such "
    "as IN04 or down_blocks.1; repeatable.",
)  # fmt: skip
@click.option(
    "--blocks", "listed", metavar="M,M,...",
    help="M for each U-Net block in order, IN00 to OUT11 (SD: 25 values, SDXL: 19); one more value "
    "in front is for the text encoders and the VAE, which otherwise use --ratio.",
)  # fmt: skip
@click.option("--shares", metavar="S,S,...", help="The weight of each model in an average.")
@click.option(
    "--last", type=click.IntRange(2), help="Average only the last N models that a run has saved."
)
@click.option(
    "--lora", "loras", multiple=True, metavar="FILE[:STRENGTH]",
    help="Add this LoRA or LoCon to the model or the mixture; repeatable.",
)  # fmt: skip
@click.option(
    "--along", metavar="M,M,...",
    help="For one run: measure the validation loss at these ratios between its base model (0) and "
    "its result (1); the best is written to OUT, if given.",
)  # fmt: skip
@click.option(
    "--previews", metavar="FOLDER", type=WRITTEN,
    help="With --along: draw the run's preview prompts at each ratio into this folder, and a sheet "
    "of all images.",
)  # fmt: skip
@precision_options(usual="as in the first model")
@click.option("--title", help="The model's name in its metadata; default: the name of OUT.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@model_options
def merge(models: tuple[str, ...], target: Path | None, **options: Any) -> None:
    """Mix models into OUT, or add LoRAs to one.

    Each MODEL is a file, a Diffusers folder, a Hub id or a finished run; they are A, B and C of the
    formula, in order. Tensors are mixed and written one by one; only a .ckpt from before PyTorch
    1.6 (not a zip file) is loaded into RAM as a whole.

    \b
    impasto merge a.safetensors b.safetensors --ratio 0.3 --out mixed.safetensors
    impasto merge a.ckpt b.ckpt base.ckpt --formula add-difference --out sum.ckpt
    impasto merge runs/style --formula average --last 3 --out soup.safetensors
    impasto merge base.safetensors --lora style.safetensors:0.8 --out styled.safetensors
    impasto merge runs/style --along 0,0.25,0.5,0.75,1 --out best.safetensors
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.checkpoints.hub import require_source
    from impasto.cli.console import Console

    if options["along"] is not None:
        from impasto.cli.merge_along import merge_along

        merge_along(models, None if target is None else _output(target, options), options)
        return
    if options["previews"] is not None:
        raise ConfigError(
            "--previews works only with --along. Remove it, or draw with impasto sample."
        )
    if target is None:
        raise ConfigError("Give the file to write the mixture to: --out FILE.")
    from impasto.models.merging.merging import merge_models, require_models

    mixture, output = _mixture(models, options), _output(target, options)
    require_models(mixture)
    for model in mixture.models:
        require_source(model)
    console = Console()
    console.table(merge_models(mixture, output, open_options(options), console))


def _output(target: Path, options: dict[str, Any]) -> Output:
    """Return how the mixture is written: its target, format, precisions and title.

    Raises:
        ConfigError: The target's name is not that of a model format.
    """
    from impasto.models.merging.merging import Output
    from impasto.models.writing.targets import form_of

    return Output(
        target,
        form_of(target, None),
        asked_dtypes(options),
        options["title"],
        overwrite=options["overwrite"],
    )


def _mixture(models: tuple[str, ...], options: dict[str, Any]) -> Mixture:
    """Build the mixture from the options.

    Raises:
        ConfigError: Options contradict each other, or a number is malformed.
    """
    from impasto.models.merging.merging import Mixture

    models = _of_run(models, options["formula"], options["last"])
    formula = _formula(models, options["formula"], options["shares"])
    has_ratio = formula is not None and formula.takes_ratio
    _require_no_effectless(options, has_ratio=has_ratio)
    return Mixture(
        models,
        formula,
        options["ratio"],
        numbers("--blocks", options["listed"]),
        dict(_named(text) for text in options["named"]),
        options["loras"],
    )


def _require_no_effectless(options: dict[str, Any], *, has_ratio: bool) -> None:
    """Make sure that no option is given that has no effect.

    Raises:
        ConfigError: Such an option is given.
    """
    if not has_ratio:
        for name, value in (
            ("--ratio", options["ratio"] is not None),
            ("--block", options["named"]),
            ("--blocks", options["listed"]),
        ):
            if value:
                raise ConfigError(
                    f"{name} has no effect here: an average is weighted by --shares, and a LoRA by "
                    f"the strength after its name. Remove it."
                )
    if options["shares"] and options["formula"] != AVERAGE:
        raise ConfigError(
            f"--shares works only with --formula {AVERAGE}. Remove it, or add --formula {AVERAGE}."
        )


def _formula(models: tuple[str, ...], asked: str | None, shares: str | None) -> Formula | None:
    from impasto.models.merging.mixing import FORMULAS, average

    if asked == AVERAGE:
        weights = numbers("--shares", shares) or [1.0] * len(models)
        if len(weights) != len(models) or min(weights) < 0 or not sum(weights):
            raise ConfigError(
                f"--shares is {shares}; expected {len(models)} numbers, one per model, 0 or more "
                f"and not all 0."
            )
        return average(weights)
    if asked is None:
        if len(models) > 2:
            raise ConfigError(
                f"{len(models)} models were given. Choose how to mix them: --formula "
                f"add-difference or train-difference (for three), or {AVERAGE}."
            )
        return FORMULAS["weighted-sum"] if len(models) == 2 else None
    return FORMULAS[asked]


def _of_run(models: tuple[str, ...], formula: str | None, last: int | None) -> tuple[str, ...]:
    """Replace a single run by the models that it has saved, if an average is requested.

    Raises:
        ConfigError: The run has fewer than two models, or than `last`; or `last` has no effect.
    """
    of_run = formula == AVERAGE and len(models) == 1
    if last is not None and not of_run:
        raise ConfigError(f"--last works only for one run with --formula {AVERAGE}. Remove it.")
    if not of_run:
        return models
    from impasto.cli.console import Console
    from impasto.runs.remote.reading import is_of_pages_and_models, open_run
    from impasto.training.saving.run_models import models_of_run

    run = open_run(Path(models[0]), Console(), is_of_pages_and_models)
    found = models_of_run(run)
    if len(found) < 2 or (last or 2) > len(found):
        raise ConfigError(
            f"{models[0]} has {counted(len(found), 'models')} on disk, but "
            f"{'at least 2 are' if last is None else f'{last} were requested and are'} needed for "
            f"an average. A run saves more models with saving.model_every_steps, and keeps "
            f"saving.keep_models of them, if that is set. To average other models, list them: "
            f"{command('merge', 'A', 'B', '--formula', AVERAGE)}"
        )
    return tuple(str(path) for path in found[-(last or len(found)) :])


def _named(text: str) -> tuple[str, float]:
    name, equals, number = text.rpartition("=")
    try:
        ratio = finite(number)
    except ValueError:
        equals = ""
    if not equals or not name.strip() or abs(ratio) > MOST:
        raise ConfigError(
            f"--block is {text!r}; expected NAME=RATIO, as in IN04=0.3, from -10 to 10."
        )
    return name.strip(), ratio


def numbers(option: str, text: str | None) -> list[float]:
    """Parse a comma-separated list of numbers; an empty list if there is no text.

    Raises:
        ConfigError: A value is not a finite number, or is outside -10 to 10.
    """
    if not text:
        return []
    try:
        found = [finite(piece) for piece in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} is {text!r}; expected numbers such as 0,0.5,1.") from error
    if any(abs(number) > MOST for number in found):
        raise ConfigError(f"{option} is {text!r}; expected numbers from -{MOST} to {MOST}.")
    return found
