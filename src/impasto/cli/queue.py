"""`impasto queue ...`: train queued runs one after the other, on one or several devices."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from impasto.cli.groups import FullHelpGroup
from impasto.cli.local_paths import KEPT, READ_FILE
from impasto.runs.queue import Direction, Queue
from impasto.runs.queue_devices import ask_runner_to_stop, device_name, runner_of, runners_of

if TYPE_CHECKING:
    from impasto.runs.queue_jobs import Job

DEFAULT = Path("queue")
_LONGEST_S = 600.0

QUEUE = click.option(
    "--queue", "folder", default=DEFAULT, show_default=True, metavar="DIR",
    type=KEPT, help="The folder of the queue.",
)  # fmt: skip
DEVICE = click.option(
    "--device", "number", default=0, show_default=True, type=click.IntRange(0, 1023),
    help="The GPU, counted from 0 among those of CUDA_VISIBLE_DEVICES.",
)  # fmt: skip
JOB = click.argument("job", type=click.IntRange(1))


@click.group(cls=FullHelpGroup)
def queue() -> None:
    """Keep runs in a queue, and train them one after the other.

    A queue is a folder. JOB is a job's number, as `impasto queue list` shows it.
    """


@queue.command()
@click.argument(
    "settings",
    nargs=-1,
    required=True,
    type=READ_FILE,
)
@QUEUE
@click.option("--paused", is_flag=True, help="Start the jobs only after `impasto queue continue`.")
def add(settings: tuple[Path, ...], folder: Path, paused: bool) -> None:  # noqa: FBT001
    """Add a job for each settings file in SETTINGS, at the end of the queue.

    The files are copied now; later changes to them have no effect. Relative paths in them are
    relative to the current folder, as for `impasto train`. If one file is invalid, no job is added.
    """
    from impasto.cli.console import Console
    from impasto.config.load import load_run_config
    from impasto.config.renamed import FormerNameWarning
    from impasto.parsing import read_text

    target, console = Queue(folder), Console()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FormerNameWarning)
        for file in settings:
            load_run_config(file)
    for warning in said:
        console.note(str(warning.message))
    for file in settings:
        job = target.add(read_text(file), file.stem, Path.cwd(), paused=paused)
        where = "" if job.run is None else f", trains in {job.run.path}"
        console.note(f"Job {job.number}: {job.name}{where}{', paused' if paused else ''}")
    if not runners_of(target.folder):
        from impasto.invocation import command

        shown = () if folder == DEFAULT else ("--queue", folder)
        console.note(
            f"No process is running the queue yet. Start one with: "
            f"{command('queue', 'run', *shown)}"
        )


@queue.command("list")
@QUEUE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per job for programs.")
def list_jobs(folder: Path, as_json: bool) -> None:  # noqa: FBT001
    """List the jobs in order, with the current state of each."""
    import json

    from impasto.cli.console import Console

    jobs = Queue(folder).jobs()
    if as_json:
        for job in jobs:
            click.echo(json.dumps(job.as_json(), ensure_ascii=True))
        return
    console = Console()
    if not jobs:
        console.note(f"There are no jobs in {folder}.")
        return
    console.table({f"{job.number:>3}": _line(job) for job in jobs})
    for device, holder in runners_of(folder).items():
        console.note(f"Device {device} is in use by {holder.description}.")


def _line(job: Job) -> str:
    texts = [job.state, job.name]
    if job.state == "working" and job.run is not None:
        state = job.run.state()
        if state.total_steps is not None:
            texts.append(f"{state.step:,} of {state.total_steps:,} steps")
        texts += state.details()
        texts.append(f"device {job.device}")
    if job.pausing:
        texts.append("will stop after this step and be paused")
    if job.run is not None:
        texts.append(str(job.run.path))
    if job.message:
        texts.append(" ".join(job.message.split()))
    return " · ".join(texts)


@queue.command()
@QUEUE
@DEVICE
@click.option(
    "--wait", is_flag=True, help="Wait for new jobs instead of ending when there are none."
)
def run(folder: Path, number: int, wait: bool) -> None:  # noqa: FBT001
    """Train the waiting jobs, one after the other, on one device.

    Ctrl-C stops the current run after its step and saves a state; the next `impasto queue run`
    continues it. For several GPUs, start this command once per GPU.
    """
    from impasto.cli.console import Console
    from impasto.cli.queue_run import Runner

    options = [*(["--device", str(number)] if number else []), *(["--wait"] if wait else [])]
    Runner(Queue(folder), device_name(number), Console(), options=options).work(wait=wait)


@queue.command()
@QUEUE
@DEVICE
@click.option(
    "--within", default=_LONGEST_S, show_default=True, metavar="SECONDS",
    help="How long to wait for it to stop; 0 does not wait.",
)  # fmt: skip
def stop(folder: Path, number: int, within: float) -> None:
    """Stop `impasto queue run` on a device, as Ctrl-C would."""
    from impasto.cli.console import Console
    from impasto.errors import RunError

    target, device = Queue(folder), device_name(number)
    ask_runner_to_stop(target.folder, device)
    console = Console()
    console.note(f"Asked the process on device {device} to stop after this step.")
    if within > 0 and not _has_ended(target, device, within):
        raise RunError(f"It has not stopped within {within:g} s: a step may be long.")


def _has_ended(target: Queue, device: str, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while runner_of(target.folder, device) is not None:
        if time.monotonic() >= until:
            return False
        time.sleep(0.1)
    return True


def _changes(name: str, said: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that makes a command from a function that changes one job.

    Args:
        name: The name of the command.
        said: The message to print, with the fields `job` and `new`.
    """

    def made(change: Callable[..., Any]) -> click.Command:
        def run_it(job: int, folder: Path) -> None:
            from impasto.cli.console import Console

            changed = change(Queue(folder), job)
            Console().note(said.format(job=job, new=getattr(changed, "number", "")))

        run_it.__doc__ = change.__doc__
        return queue.command(name)(JOB(QUEUE(run_it)))

    return made


@_changes("pause", "Job {job} is paused, or will be after its current step.")
def pause(target: Queue, job: int) -> Job:
    """Pause JOB; if it is being trained, it saves a state and stops."""
    return target.pause(job)


@_changes("continue", "Job {job} waits for its turn.")
def go_on(target: Queue, job: int) -> Job:
    """Put JOB, which was paused or stopped, back in the queue."""
    return target.go_on(job)


@_changes("retry", "Job {job} waits for its turn.")
def retry(target: Queue, job: int) -> Job:
    """Put JOB, which failed or was stopped, back in the queue; its run is continued."""
    return target.retry(job)


@_changes("repeat", "Job {new} repeats job {job}.")
def repeat(target: Queue, job: int) -> Job:
    """Add a job with the settings of JOB and a new output_dir that ends in -2, -3 and so on."""
    return target.repeat(job)


@_changes("remove", "Job {job} was removed. Its run directory, if any, is kept.")
def remove(target: Queue, job: int) -> None:
    """Remove JOB from the queue; its run directory is kept."""
    target.remove(job)


@queue.command()
@JOB
@click.argument("where", type=click.Choice(get_args(Direction)))
@click.argument("other", type=click.IntRange(1), required=False)
@QUEUE
def move(job: int, where: str, other: int | None, folder: Path) -> None:
    """Change the order: move JOB up, down, first, last, or before or after the job OTHER.

    Example: impasto queue move 7 before 3
    """
    from impasto.cli.console import Console

    target = Queue(folder)
    target.move(job, cast("Direction", where), other)
    order = ", ".join(str(found.number) for found in target.jobs())
    Console().note(f"The order is: {order}")
