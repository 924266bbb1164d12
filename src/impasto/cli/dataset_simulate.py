"""`impasto dataset plan --simulate N`: time, disk and RAM for N images like those of SOURCE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.config.run import RunConfig
    from impasto.datasets.simulation import Stage

_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_TIMES = ((86400, "days"), (3600, "h"), (60, "min"))


def show_simulation(
    config: Any, run: RunConfig | None, console: Console, count: int, encoded_per_s: float | None
) -> None:
    """Print the time, disk use, files and RAM of each stage for `count` images.

    Args:
        config: The settings of the existing dataset, which is the sample.
        run: The settings of the run, if SOURCE is one; its held-out images are left out.
        console: Prints the table.
        count: The number of images to simulate.
        encoded_per_s: Images per second that the VAE encodes; None leaves that time open.

    Raises:
        ImpastoError: The sample cannot be used.
    """
    from impasto.data.planning.regularisation import balance
    from impasto.datasets.build import plan_dataset, scan_all, split_of_source
    from impasto.datasets.simulation import measure_rates, sample_of, stages_of

    found = scan_all(config, console)
    split = split_of_source(found, run, config, console)
    plan = plan_dataset(config, balance(split.training))
    with console.stage("Measuring this machine", None, "images"):
        rates, sampled = measure_rates(config, plan), sample_of(plan)
    console.note(f"{count:,} images like the {len(split.training):,} of {found.source}:")
    rows = [("", "time", "disk", "files", "RAM of a process")]
    rows += map(_row, stages_of(count, rates, sampled, encoded_per_s))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        shown = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        console.note("  ".join([name.ljust(widths[0]), *shown]))
    console.note(
        f"{sampled.resident:.0f} bytes of RAM per image and process while training; "
        f"paths and captions are memory-mapped from the scan's index, shared by all processes."
    )
    console.note(
        "The time for the start of training excludes counting caption tokens and hashing all "
        "records: about 15 s per million images."
    )


def _row(stage: Stage) -> tuple[str, str, str, str, str]:
    return (
        stage.name,
        "--encode-rate" if stage.seconds is None else duration_text(stage.seconds),
        size_text(stage.bytes) if stage.bytes else "-",
        f"{stage.files:,}" if stage.files else "-",
        size_text(stage.ram) if stage.ram else "-",
    )


def size_text(size_bytes: float) -> str:
    """Format a number of bytes in the largest unit that fits, from bytes to TiB."""
    for unit, name in _UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:,.1f} {name}"
    return f"{size_bytes:.0f} bytes"


def duration_text(seconds: float) -> str:
    """Format a duration in the largest unit that it has at least two of, from s to days."""
    for unit, name in _TIMES:
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.1f} s"
