"""Generates the images requested in a folder (`runs/drawings.py`), one request after another.

The model stays loaded between requests for the same one. `cli/draw_worker.py` runs this in a
separate process; an error of a request is reported in its status, and the worker continues.
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


class Cancelled(Exception):  # noqa: N818 - a user's request, not an error
    """The drawing was cancelled by the user."""


@dataclass(frozen=True)
class DrawWorker:
    """Generates the images that are requested in a folder.

    Attributes:
        folder: Folder of the requests.
        models: Models that are kept loaded.
        exhausted_memory: Returns which memory an error shows to be exhausted, "RAM" or "VRAM"; None
            for other errors.
        told: Called with a line for each request that has ended.
    """

    folder: DrawFolder
    models: LoadedModels
    exhausted_memory: Callable[[BaseException], str | None]
    told: Callable[[str], None]

    def serve(self, idle_s: float) -> None:
        """Answer requests until there were none for some time, or the folder's `stop` file exists.

        Args:
            idle_s: Seconds without requests after which it ends.

        Raises:
            RunError: Another worker serves the folder.
            StorageError: The folder cannot be written.
        """
        with storage_errors.reported(self.folder.path):
            self.folder.path.mkdir(parents=True, exist_ok=True)
        over: set[str] = set()  # drawings accumulate, and the folder is polled frequently
        while True:
            with FolderLock(self.folder.path, "drawing", _refuse):
                files.write_json(self.folder.worker_file, {"process": current_process().token})
                was_stopped = self._serve_locked(idle_s, over)
            # clients that asked before the lock was released have started no other worker
            if was_stopped or not self.folder.waiting(over):
                return

    def _serve_locked(self, idle_s: float, over: set[str]) -> bool:
        """Answer requests until the end; return whether a stop was requested.

        Args:
            idle_s: Seconds without requests after which it ends.
            over: Names of drawings that have ended, which is kept up to date.

        Raises:
            StorageError: The status of a drawing cannot be written.
        """
        self.folder.stop_file.unlink(missing_ok=True)  # it was for the previous worker
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
        """Record which drawings ended with a killed worker; they are not started again."""
        for drawing in self.folder.all():
            status = drawing.status()
            if status["phase"] == "killed":
                files.write_json(drawing.status_file, status)

    def answer(self, drawing: Drawing) -> None:
        """Generate the images of a request; every error is written into its status."""
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
        except Exception as error:  # no request may end the worker, which has others to answer
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
        for model in models:  # each is loaded once, whichever axis models are on
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
        """Generate the images of a request that use one model."""
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
    "Generate smaller images, end other programs that use it (such as a training run), or try "
    "again: the model was unloaded and will be loaded again."
)


class DrawingStatus:
    """Writes the progress of a drawing, a few times a second at most.

    Args:
        drawing: The drawing.
    """

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.done: list[dict[str, Any]] = []
        self.values: dict[str, Any] = {"process": current_process().token}
        self._told_at = 0.0

    def tell(self, **values: Any) -> None:
        """Write these values into the drawing's status immediately, without limiting the rate."""
        self.values |= values
        files.write_json(self.drawing.status_file, self.values, durable=False)
        self._told_at = time.monotonic()

    def require_wanted(self) -> None:
        """Check that the drawing has not been cancelled.

        Raises:
            Cancelled: It has been.
        """
        if presence.exists(self.drawing.cancel_file):
            raise Cancelled

    def begin_image(self, steps: int) -> None:
        """Record that another image of the drawing starts."""
        self.require_wanted()
        self.tell(phase="drawing", step=0, steps=steps)

    def stepped(self, steps: int) -> None:
        """Record completed sampler steps."""
        self.values["step"] += steps
        if time.monotonic() - self._told_at >= _TOLD_EVERY_S:
            self.tell()
            self.require_wanted()

    def finish_image(self, image: dict[str, Any]) -> None:
        """Record that an image has been saved."""
        self.done.append(image)
        self.tell(done=self.done)

    def end(self, phase: str, message: str = "") -> None:
        """Record how the drawing has ended."""
        self.values |= {"phase": phase, "message": message, "ended_at": round(time.time(), 3)}
        self.values.pop("stage", None)
        with contextlib.suppress(ImpastoError):  # its folder may be gone, or the disk full
            files.write_json(self.drawing.status_file, self.values)


def prompt_of(settings: ImageSettings, base: BaseModel) -> Prompt:
    """Return the prompt of an image; missing sizes are those that the model was trained at."""
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
    """Check that a drawing's status was written, so that it is not started again and again.

    Raises:
        StorageError: The status still shows that it is waiting.
    """
    if presence.exists(drawing.request_file) and drawing.status()["phase"] == "waiting":
        raise StorageError(
            f"{drawing.status_file} cannot be written: the disk is full, or the folder read-only. "
            f"The requests wait there; start the worker again when it can be written."
        )


def _refuse(holder: LockHolder) -> None:
    raise RunError(f"Another worker uses this folder: {holder.description}.")
