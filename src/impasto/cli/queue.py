"""`impasto queue ...`: runs that are worked off one after the other, on one device or several."""

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
@click.option("--paused", is_flag=True, help="Begin them only after `impasto queue continue`.")
def add(settings: tuple[Path, ...], folder: Path, paused: bool) -> None:  # noqa: FBT001
    """Add a job for each settings file in SETTINGS, at the end of the queue.

    The file is copied as it is now. Relative paths in it begin in the current folder, as they do
    for `impasto train`. If one of them is not valid, none is added.
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
            f"No process works on the queue yet. Start one with: {command('queue', 'run', *shown)}"
        )


@queue.command("list")
@QUEUE
@click.option("--json", "as_json", is_flag=True, help="One JSON object per job, for programs.")
def list_jobs(folder: Path, as_json: bool) -> None:  # noqa: FBT001
    """List the jobs in order, with the true state of each."""
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
        texts.append("stops after this step, to be paused")
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
    """Train the jobs that wait, one after the other, on one device.

    Ctrl-C stops the run that is being trained after its step, with a state saved; the next
    `impasto queue run` continues it. For several GPUs, start it once for each.
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
    help="How long to wait until it has stopped; 0 does not wait.",
)  # fmt: skip
def stop(folder: Path, number: int, within: float) -> None:
    """Stop `impasto queue run` on a device, as Ctrl-C does there."""
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
    """A verb that changes one job by a method of `Queue`, and says so."""

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
    """Hold a job back; one that is being trained saves a state and stops."""
    return target.pause(job)


@_changes("continue", "Job {job} waits for its turn.")
def go_on(target: Queue, job: int) -> Job:
    """Put a job that was paused or stopped back in line."""
    return target.go_on(job)


@_changes("retry", "Job {job} waits for its turn.")
def retry(target: Queue, job: int) -> Job:
    """Put a job that failed or was stopped back in line; its run is continued."""
    return target.retry(job)


@_changes("repeat", "Job {new} repeats job {job}.")
def repeat(target: Queue, job: int) -> Job:
    """Add a job with the same settings and an output_dir of its own: -2, -3 and so on."""
    return target.repeat(job)


@_changes("remove", "Job {job} is removed. Its run, if it has one, stays.")
def remove(target: Queue, job: int) -> None:
    """Forget a job; what it has trained stays where it is."""
    target.remove(job)


@queue.command()
@JOB
@click.argument("where", type=click.Choice(get_args(Direction)))
@click.argument("other", type=click.IntRange(1), required=False)
@QUEUE
def move(job: int, where: str, other: int | None, folder: Path) -> None:
    """Change the order: JOB goes up, down, first, last, or before or after the job OTHER.

    Example: impasto queue move 7 before 3
    """
    from impasto.cli.console import Console

    target = Queue(folder)
    target.move(job, cast("Direction", where), other)
    order = ", ".join(str(found.number) for found in target.jobs())
    Console().note(f"The order is: {order}")
