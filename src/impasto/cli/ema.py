"""`impasto ema`: averages of a run's weights whose length is chosen after training."""

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
    help="Lengths of the average, relative to the number of steps: the standard deviation of the "
    "steps whose weights are averaged. Of several, the one with the lowest validation loss is "
    "taken.",
)  # fmt: skip
@click.option(
    "--step", type=click.IntRange(1), help="The step that the average ends with; default: the last."
)
@click.option(
    "--out", "target", metavar="OUT", type=WRITTEN,
    help="The model: a file that ends in .safetensors or .ckpt, or a Diffusers folder.",
)  # fmt: skip
@precision_options(usual="as in the run's model")
@click.option("--title", help="The model's name in its metadata; default: as in the run's model.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is there.")
def ema(run: Path, lengths: str, step: int | None, target: Path | None, **options: Any) -> None:
    """Make an averaged (EMA) model of RUN after training, with a length that is chosen now.

    RUN was trained with training.posthoc_ema = true. The validation loss of several lengths is
    measured; one length is only written.

    \b
    impasto ema runs/style
    impasto ema runs/style --out best.safetensors
    impasto ema runs/style --sigma-rel 0.15 --out longer.safetensors
    """  # noqa: D301 - the backspace tells click to keep the lines
    sigma_rels = sorted(set(numbers("--sigma-rel", lengths)))
    if not sigma_rels:
        raise ConfigError("--sigma-rel names no length. Give one or several, as in 0.05,0.1,0.15.")
    output = _output(target, options)
    if output is None and len(sigma_rels) == 1:
        raise ConfigError("Say where the average goes: --out FILE. Or give several lengths.")
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
    """How the model is written; None where it is not.

    Raises:
        ConfigError: The target's name is of no form of model, or an option has no effect.
    """
    from impasto.models.merging.merging import Output
    from impasto.models.writing.targets import form_of

    dtypes, title, overwrite = asked_dtypes(options), options["title"], options["overwrite"]
    if target is None:
        if dtypes or title or overwrite:
            raise ConfigError("Precision, --title and --overwrite are for what --out writes.")
        return None
    return Output(target, form_of(target, None), dtypes, title, overwrite=overwrite)


def _best(measured: list[Measured]) -> Measured:
    """The one with the least loss.

    Raises:
        RunError: No loss is a number.
    """
    import math

    finite = [each for each in measured if math.isfinite(each.loss)]
    if not finite:
        raise RunError("No validation loss of an average is a number: all are NaN or infinite.")
    return min(finite, key=lambda each: each.loss)


def _show(console: Console, measured: list[Measured], best: Measured) -> None:
    rows = {
        f"{each.average.profile.sigma_rel:g}": f"{each.loss:.4f}  (profile off "
        f"by {100 * each.average.fit.error:.2g} %)" + ("  (least)" if each is best else "")
        for each in measured
    }
    console.heading("Validation loss by sigma_rel")
    console.table(rows)
