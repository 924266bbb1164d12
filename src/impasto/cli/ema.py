"""`impasto ema`: averages of a run's weights (post-hoc EMA), with a length chosen afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.local_paths import WRITTEN
from impasto.cli.merge import numbers
from impasto.cli.precision_options import asked_dtypes, precision_options
from impasto.errors import ConfigError, RunError

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.models.merging.merging import Output
    from impasto.training.analysis.posthoc_models import Measured

USUAL = "0.03,0.05,0.075,0.1,0.15,0.2,0.25"


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--sigma-rel", "lengths", metavar="S,S,...", default=USUAL, show_default=True,
    help="EMA lengths to try: the width of the averaging profile (its standard deviation) as a "
    "fraction of the number of steps. If several are given, the one with the lowest validation "
    "loss is used.",
)  # fmt: skip
@click.option(
    "--step", type=click.IntRange(1), help="The step that the average ends at; default: the last."
)
@click.option(
    "--out", "target", metavar="OUT", type=WRITTEN,
    help="Write the model to this .safetensors or .ckpt file, or to a Diffusers folder.",
)  # fmt: skip
@precision_options(usual="as in the run's model")
@click.option("--title", help="The model's name in its metadata; default: as in the run's model.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def ema(run: Path, lengths: str, step: int | None, target: Path | None, **options: Any) -> None:
    """Make an averaged (EMA) model of RUN after training, with a length that you choose now.

    RUN must have been trained with training.posthoc_ema = true. With several lengths, the
    validation loss of each is measured and the best is written; a single length is written without
    measuring.

    \b
    impasto ema runs/style
    impasto ema runs/style --out best.safetensors
    impasto ema runs/style --sigma-rel 0.15 --out longer.safetensors
    """  # noqa: D301 - the backspace tells click to keep the lines
    sigma_rels = sorted(set(numbers("--sigma-rel", lengths)))
    if not sigma_rels:
        raise ConfigError(
            "--sigma-rel has no value. Give one or more lengths, as in 0.05,0.1,0.15."
        )
    output = _output(target, options)
    if output is None and len(sigma_rels) == 1:
        raise ConfigError("Give the file to write with --out FILE, or several lengths to compare.")
    from impasto.cli.console import Console
    from impasto.runs.remote.reading import is_not_of_states, open_run
    from impasto.training.analysis.posthoc_models import (
        make_averages,
        measure,
        require_output,
        write_average,
    )

    console = Console()
    directory = open_run(run, console, is_not_of_states)
    if output is not None:
        require_output(directory, output)
    averages = make_averages(directory, sigma_rels, step)
    chosen, measured = averages[0], []
    if len(averages) > 1:
        measured = measure(directory, averages, console)
        best = _best(measured)
        _show(console, measured, best)
        chosen = best.average
    if output is not None:
        console.table(write_average(directory, chosen, output, console, measured))


def _output(target: Path | None, options: dict[str, Any]) -> Output | None:
    """Return how the model is written, or None without `--out`.

    Raises:
        ConfigError: The target's name is not that of a model format, or an option has no effect.
    """
    from impasto.models.merging.merging import Output
    from impasto.models.writing.targets import form_of

    dtypes, title, overwrite = asked_dtypes(options), options["title"], options["overwrite"]
    if target is None:
        if dtypes or title or overwrite:
            raise ConfigError("Precision, --title and --overwrite have no effect without --out.")
        return None
    return Output(target, form_of(target, None), dtypes, title, overwrite=overwrite)


def _best(measured: list[Measured]) -> Measured:
    """Return the average with the lowest validation loss.

    Raises:
        RunError: All losses are NaN or infinite.
    """
    import math

    finite = [each for each in measured if math.isfinite(each.loss)]
    if not finite:
        raise RunError("The validation losses of all averages are NaN or infinite.")
    return min(finite, key=lambda each: each.loss)


def _show(console: Console, measured: list[Measured], best: Measured) -> None:
    rows = {
        f"{each.average.profile.sigma_rel:g}": f"{each.loss:.4f}  (profile error "
        f"{100 * each.average.fit.error:.2g} %)" + ("  (lowest)" if each is best else "")
        for each in measured
    }
    console.heading("Validation loss by sigma_rel")
    console.table(rows)
