"""Draws what is asked in a folder (`runs/drawings.py`), one request after the other.

The model stays loaded between requests for the same one. `cli/draw_worker.py` runs this in a
process of its own; an error of a request is answered in its status, and the worker goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from impasto import files, presence, storage_errors
from impasto.errors import ImpastoError, RunError, StorageError
from impasto.lock_file import LockHolder
from impasto.locks import FolderLock
from impasto.models.networks.loading import BaseModel
from impasto.models.reading.native_size import native_size
from impasto.owners import current_process
from impasto.runs.draw_requests import Cell, DrawRequest, ImageSettings
from impasto.runs.drawings import DrawFolder, Drawing
from impasto.sampling.drawing import cut_warning, prepare_sampler, with_strengths
from impasto.sampling.loaded import LoadedModels
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler, save_png
from impasto.sampling.sheet import draw_sheet

_LOOK_EVERY_S = 0.2
_TOLD_EVERY_S = 0.3


class Cancelled(Exception):  # noqa: N818 - what somebody asked for
    """The drawing was asked to end."""


@dataclass(frozen=True)
class DrawWorker:
    """Draws the requests of a folder.

    Attributes:
        folder: Where they are.
        models: What it draws with.
        exhausted_memory: Tells which memory ran out by an error, "RAM" or "VRAM"; None for others.
        told: Is given a line for each request that has ended.
    """

    folder: DrawFolder
    models: LoadedModels
    exhausted_memory: Callable[[BaseException], str | None]
    told: Callable[[str], None]

    def serve(self, idle_s: float) -> None:
        """Draw until nothing was asked for some time, or the folder's `stop` asks for the end.

        Raises:
            RunError: Another worker serves the folder.
            StorageError: The folder cannot be written.
        """
        with storage_errors.reported(self.folder.path):
            self.folder.path.mkdir(parents=True, exist_ok=True)
        over: set[str] = set()  # all drawings are kept, and the folder is looked at all the time
        while True:
            with FolderLock(self.folder.path, "drawing", _refuse):
                files.write_json(self.folder.worker_file, {"process": current_process().token})
                was_stopped = self._serve_locked(idle_s, over)
            # who asked before the lock was gone has started no other worker
            if was_stopped or not self.folder.waiting(over):
                return

    def _serve_locked(self, idle_s: float, over: set[str]) -> bool:
        """Draw until the end; returns whether it was asked for.

        Args:
            idle_s: Seconds after which it ends where nothing is asked.
            over: Names of drawings that have ended, which is kept up to date.

        Raises:
            StorageError: The status of a drawing cannot be written.
        """
        self.folder.stop_file.unlink(missing_ok=True)  # it was meant for the worker before
        self._note_killed()
        idle_since = time.monotonic()
        while not presence.exists(self.folder.stop_file):
            waiting = self.folder.waiting(over)
            if waiting:
                self.answer(waiting[0])
                _require_told(waiting[0])
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= idle_s:
                return False
            else:
                time.sleep(min(_LOOK_EVERY_S, idle_s))
        self.folder.stop_file.unlink(missing_ok=True)
        return True

    def _note_killed(self) -> None:
        """Write down which drawings ended with a worker before; they are not begun again."""
        for drawing in self.folder.all():
            status = drawing.status()
            if status["phase"] == "killed":
                files.write_json(drawing.status_file, status)

    def answer(self, drawing: Drawing) -> None:
        """Draw a request; whatever goes wrong with it is written into its status."""
        status = DrawingStatus(drawing)
        try:
            self._draw(drawing, status)
            status.end("done")
        except Cancelled:
            status.end("cancelled")
        except ImpastoError as error:
            status.end("failed", str(error))
        except KeyboardInterrupt:
            status.end("cancelled", "The worker was stopped.")
            raise
        except Exception as error:  # no request may end the worker, which has others to draw
            if memory := self.exhausted_memory(error):
                self.models.release()
                status.end("failed", f"{memory} ran out. {OUT_OF_MEMORY}")
            else:
                status.end("failed", f"{type(error).__name__}: {error}")
        self.told(f"{drawing.path.name}: {status.values['phase']}.")

    def _draw(self, drawing: Drawing, status: DrawingStatus) -> None:
        status.tell(phase="loading", started_at=round(time.time(), 3))
        request = drawing.request()
        cells = request.cells()
        status.tell(images=len(cells), warning="")
        models = dict.fromkeys(cell.settings.model for cell in cells)
        for model in models:  # each is loaded once, whichever axis it is on
            status.require_wanted()
            loading = not self.models.is_loaded(model)
            status.tell(phase="loading" if loading else "drawing", model=model)
            of_it = [(n, cell) for n, cell in enumerate(cells) if cell.settings.model == model]
            self._draw_cells(request, model, of_it, status)
        if len(cells) > 1:
            status.tell(stage="Making the grid")
            _save_grid(drawing, request, status.done)

    def _draw_cells(
        self, request: DrawRequest, model: str, cells: list[tuple[int, Cell]], status: DrawingStatus
    ) -> None:
        """Draw what one model draws of a request."""
        base = self.models.model(model)
        stack = self.models.hypernetworks(request.hypernetworks)
        sampler = prepare_sampler(base, stack, self.models.device, request.clip_skip)
        prompts = [prompt_of(cell.settings, base) for _, cell in cells]
        cut = cut_warning(base, (text for prompt in prompts for text in prompt.texts))
        if cut:
            status.tell(warning=cut)
        with stack.attached(base.unet):
            for (number, cell), prompt in zip(cells, prompts, strict=True):
                tagged = with_strengths(prompt, stack, cell.settings.strength)
                self._draw_cell(sampler, number, cell, tagged, status)

    def _draw_cell(
        self, sampler: Sampler, number: int, cell: Cell, prompt: Prompt, status: DrawingStatus
    ) -> None:
        began = time.perf_counter()
        status.begin_image(prompt.steps)
        image = sampler.draw(prompt, status.stepped)
        name = f"{number:04d}-{prompt.seed}.png"
        save_png(image, status.drawing.path / name, prompt, sampler.text_settings)
        status.finish_image(
            {
                "file": name,
                "row": cell.row,
                "column": cell.column,
                "seed": prompt.seed,
                "width": prompt.width,
                "height": prompt.height,
                "seconds": round(time.perf_counter() - began, 3),
            }
        )


OUT_OF_MEMORY = (
    "Draw smaller images, end what else uses it (a training, another program), or try again: the "
    "model was unloaded and is loaded anew."
)


class DrawingStatus:
    """Writes how far a drawing is, a few times a second at most.

    Args:
        drawing: The drawing.
    """

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.done: list[dict[str, Any]] = []
        self.values: dict[str, Any] = {"process": current_process().token}
        self._told_at = 0.0

    def tell(self, **values: Any) -> None:
        """Write these values into the drawing's status at once, however lately it was written."""
        self.values |= values
        files.write_json(self.drawing.status_file, self.values, durable=False)
        self._told_at = time.monotonic()

    def require_wanted(self) -> None:
        """Look whether the drawing is still wanted.

        Raises:
            Cancelled: It is not.
        """
        if presence.exists(self.drawing.cancel_file):
            raise Cancelled

    def begin_image(self, steps: int) -> None:
        """Note that another image of the drawing begins."""
        self.require_wanted()
        self.tell(phase="drawing", step=0, steps=steps)

    def stepped(self, steps: int) -> None:
        """A step of the sampler is done."""
        self.values["step"] += steps
        if time.monotonic() - self._told_at >= _TOLD_EVERY_S:
            self.tell()
            self.require_wanted()

    def finish_image(self, image: dict[str, Any]) -> None:
        """An image is on disk."""
        self.done.append(image)
        self.tell(done=self.done)

    def end(self, phase: str, message: str = "") -> None:
        """Note how the drawing has ended."""
        self.values |= {"phase": phase, "message": message, "ended_at": round(time.time(), 3)}
        self.values.pop("stage", None)
        with contextlib.suppress(ImpastoError):  # its folder may be gone, or the disk full
            files.write_json(self.drawing.status_file, self.values)


def prompt_of(settings: ImageSettings, base: BaseModel) -> Prompt:
    """The prompt of an image; sizes that are not given are those that the model was trained at."""
    width, height = native_size(base.contents)
    return Prompt(
        settings.prompt,
        settings.negative,
        settings.seed,
        settings.width or width,
        settings.height or height,
        settings.steps,
        settings.guidance,
        settings.sampler,
        settings.guidance_rescale or 0.0,
    )


def _save_grid(drawing: Drawing, request: DrawRequest, done: list[dict[str, Any]]) -> None:
    cells = {(image["row"], image["column"]): drawing.path / image["file"] for image in done}
    sheet = draw_sheet(
        cells,
        request.y.labels if request.y else (),
        request.x.labels if request.x else (),
    )
    with files.replace_file(drawing.grid_file) as partial, partial.open("wb") as file:
        sheet.save(file, format="PNG")


def _require_told(drawing: Drawing) -> None:
    """Make sure that a drawing is not begun again and again because nothing can be written.

    Raises:
        StorageError: Its status is as if nobody had begun it.
    """
    if presence.exists(drawing.request_file) and drawing.status()["phase"] == "waiting":
        raise StorageError(
            f"{drawing.status_file} cannot be written: the disk is full, or the folder read-only. "
            f"What was asked for waits there; start the worker again when it can be written."
        )


def _refuse(holder: LockHolder) -> None:
    raise RunError(f"Another worker draws in this folder: {holder.description}.")
