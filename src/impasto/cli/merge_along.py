"""`impasto merge --along`: models between a run's base model and its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.cli.merge import numbers
from impasto.errors import ConfigError
from impasto.invocation import command

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.models.merging.merging import Output
    from impasto.training.analysis.along import MixturePath

WITHOUT_EFFECT = {
    "formula": "--formula", "ratio": "--ratio", "named": "--block", "listed": "--blocks",
    "shares": "--shares", "last": "--last", "loras": "--lora", "family": "--family",
    "prediction_type": "--prediction-type", "variant": "--variant", "vae": "--vae",
    "weights": "--weights",
}  # fmt: skip
"""Options without effect here, because the run determines the same."""

OF_OUTPUT = {
    "dtype": "--dtype", "unet_dtype": "--unet-dtype", "text_encoder_dtype": "--text-encoder-dtype",
    "vae_dtype": "--vae-dtype", "title": "--title",
}  # fmt: skip

LARGEST = 2.0
"""The largest ratio, and its negative the smallest: far beyond the result, weights are useless."""


def merge_along(models: tuple[str, ...], output: Output | None, options: dict[str, Any]) -> None:
    """Measure models between the base model and the result, and write the best to `output`.

    Without `output`, nothing is written except previews.

    Raises:
        ConfigError: Options contradict each other, or the run cannot be measured.
    """
    ratios = _ratios(options["along"])
    unset = (None, (), "auto")
    given = [flag for name, flag in WITHOUT_EFFECT.items() if options[name] not in unset]
    if given:
        raise ConfigError(
            f"{given[0]} has no effect with --along, which mixes a run's base model and its "
            f"result. Remove it."
        )
    if output is None and (unwritten := [f for n, f in OF_OUTPUT.items() if options[n]]):
        raise ConfigError(f"{unwritten[0]} has no effect without --out. Remove it, or give --out.")
    if len(models) != 1:
        raise ConfigError(
            f"--along takes one run; {len(models)} models were given. To mix models at one ratio: "
            f"{command('merge', 'A', 'B', '--ratio', '0.5', '--out', 'mixed.safetensors')}"
        )
    from impasto.cli.console import Console
    from impasto.runs.remote.reading import is_of_publishing, open_run

    console, overwrite = Console(), options["overwrite"]
    run = open_run(Path(models[0]), console, is_of_publishing)
    from impasto.training.analysis.along import walk
    from impasto.training.analysis.along_targets import require_targets

    require_targets(run, output, options["previews"], console, overwrite=overwrite)
    way = walk(run, ratios, console, options["previews"], overwrite=overwrite)
    _show(console, way, options["previews"])
    if output is not None:
        _write(console, way, output)


def _ratios(text: str) -> list[float]:
    found = sorted(set(numbers("--along", text)))
    if len(found) < 2 or not -LARGEST <= found[0] <= found[-1] <= LARGEST:
        raise ConfigError(
            f"--along is {text!r}; expected two or more ratios, as in 0,0.25,0.5,0.75,1, where 0 "
            f"is the base model and 1 the result."
        )
    return found


def _show(console: Console, way: MixturePath, previews: Path | None) -> None:
    """Print the loss at each ratio, one per line."""
    names = {0.0: "the base model", 1.0: "the result"}
    rows = {
        f"{point.ratio:g}": (
            f"{point.loss:.4f}" if point.is_finite else "NaN or infinite, left out"
        )
        + (f"  {names[point.ratio]}" if point.ratio in names else "")
        + ("  (lowest)" if point is way.best else "")
        for point in way.points
    }
    console.heading("Validation loss by ratio")
    console.table(rows)
    if previews is not None:
        console.note(f"\nWrote the previews of each and {previews / 'sheet.png'}.")


def _write(console: Console, way: MixturePath, output: Output) -> None:
    """Write the model with the lowest loss, with the measured losses in its metadata."""
    from dataclasses import replace

    from impasto.models.merging.merging import Mixture, write_mixture
    from impasto.training.analysis.along import FORMULA

    best = way.best
    ratios = replace(way.opened.ratios, default=best.ratio)
    measured = [[p.ratio, round(p.loss, 6)] for p in way.points if p.is_finite]
    mixture = Mixture(
        [str(path) for path in way.opened.paths],
        FORMULA,
        best.ratio,
        findings={"validation_loss_by_ratio": measured},
        drawn_as=1,  # as it was measured
    )
    console.table(write_mixture(mixture, replace(way.opened, ratios=ratios), output, console))
