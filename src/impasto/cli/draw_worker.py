"""`impasto draw-worker`: draws the studio's requests, with a model that stays loaded."""

from __future__ import annotations

from pathlib import Path

import click

from impasto.cli.local_paths import KEPT_FOLDER
from impasto.cli.numbers import Finite

IDLE_S = 300.0


@click.command()
@click.argument("folder", type=KEPT_FOLDER)
@click.option(
    "--idle",
    default=IDLE_S,
    show_default=True,
    metavar="SECONDS",
    type=Finite(0, 86_400),
    help="Exit after this long without a request, to free the VRAM.",
)
def draw_worker(folder: Path, idle: float) -> None:
    """Draw the requests in FOLDER, keeping the model loaded between them.

    The studio starts this command for its page "Draw". A request is a folder with a file
    request.json; its status and images are written beside that file. Only one worker at a time
    serves a folder.
    """
    from impasto.cli.console import Console
    from impasto.runs.drawings import DrawFolder
    from impasto.sampling.loaded import LoadedModels
    from impasto.sampling.worker import DrawWorker
    from impasto.training.devices import default_device, exhausted_memory

    console = Console()
    worker = DrawWorker(
        DrawFolder(folder), LoadedModels(default_device()), exhausted_memory, console.note
    )
    worker.serve(idle)
