"""The plan of `impasto find-lr --plan`: rates, time and memory, without training."""

from __future__ import annotations

from pathlib import Path

from impasto.cli.console import Console
from impasto.cli.outlook import Outlook, look_ahead, require_fit, seconds_per_pass
from impasto.cli.plan import plan_of
from impasto.cli.plan_text import device_name, show_memory
from impasto.cli.plan_value import RunPlan
from impasto.config.run import RunConfig
from impasto.progress import counted, duration_text
from impasto.training.analysis.borrowing import one_process_alone
from impasto.training.analysis.lr_finding import DOING, Probe, measured_images, settings_of_test
from impasto.training.analysis.lr_range import LrRange
from impasto.training.builders.processes import planned_processes


def show_lr_plan(
    asked: RunConfig, tried: LrRange, probe: Probe, page: Path | None, console: Console
) -> None:
    """Print what the test would do; time and memory are those of the run's own steps.

    Args:
        asked: The settings of the run.
        tried: The rates to try.
        probe: The number of images and timesteps on which the loss would be measured.
        page: The page that would be written; None if none.
        console: Prints the plan.

    Raises:
        ImpastoError: Any error that would stop the test before its first step.
    """
    if planned_processes() > 1:
        raise one_process_alone(DOING)
    config = settings_of_test(asked, tried, console)
    outlook = look_ahead(config, console)
    plan = plan_of(outlook)
    console.heading("Test")
    console.table(_rows(outlook, plan, tried, probe, page))
    show_memory(plan, console)
    doubt = require_fit(config, outlook)
    if doubt is not None:
        console.note(f"Warning: {doubt}")


def _rows(
    outlook: Outlook, plan: RunPlan, tried: LrRange, probe: Probe, page: Path | None
) -> dict[str, str]:
    images, steps = measured_images(outlook.survey, probe), plan.steps
    passes = images * probe.timesteps
    measuring = (tried.steps + 1) * passes * seconds_per_pass(outlook, steps.seconds_each)
    factor = (tried.high / tried.low) ** (1 / (tried.steps - 1))
    what = "latents and text" if outlook.config.training.cache_text_to_disk else "latents"
    kept = f"encoded {what}, in the cache of the run"
    return {
        "Rates": f"{tried.low:g} to {tried.high:g}, each {factor:.3g} times the one before",
        "Steps": f"{tried.steps:,} at most, of batches of up to "
        f"{' or '.join(map(str, steps.batch_sizes))}; fewer if the loss diverges before",
        "Trains": ", ".join(f"{name} ({n / 1e6:.1f} M)" for name, n in plan.model.parts.items()),
        "Measured": f"before the first step and after each, on {counted(images, 'images')} at "
        f"{counted(probe.timesteps, 'timesteps')}: {counted(passes, 'forward passes')} each time",
        "Time": f"about {duration_text(steps.seconds)} for steps and {duration_text(measuring)} "
        f"to measure, on this {device_name(steps.device)}, and encoding if not cached yet",
        "Kept": kept if page is None else f"{kept}; {page}",
    }
