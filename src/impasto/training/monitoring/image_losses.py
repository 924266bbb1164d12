"""The loss of each image each time it was shown, as a table that a spreadsheet opens.

One showing says little, since the loss depends on the timestep; the mean over many, within a range
of timesteps, finds images that the model does not learn: wrong captions, odd images. What a sample
counts in the loss of its step (`prior_loss_weight`, `loss.diff_tuning`) is left out, so that all
images compare. Those that count nothing are left out, as nothing is known of their loss.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from impasto import files
from impasto.runs import RunDirectory
from impasto.runs.image_losses import HEADER, whole_rows
from impasto.training.step import StepOutput

Row = tuple[int, str, int, float]


class ImageLosses:
    """Collects on the device, and writes `image_losses.csv` when metrics are read.

    Args:
        accelerator: Whose processes each have their own images; the first one writes.
        run: Where.
    """

    def __init__(self, accelerator: Accelerator, run: RunDirectory) -> None:
        self._accelerator, self._file = accelerator, run.image_losses_file
        self._pending: list[tuple[int, Sequence[str], StepOutput]] = []

    def add(self, step: int, images: Sequence[str], output: StepOutput) -> None:
        """Note what the step `step`, counted from 0, found of some images, by their paths."""
        self._pending.append((step, images, output))

    def write(self, done: int, *, alone: bool = False) -> None:
        """Append what was noted of the first `done` steps; waits for the device.

        Args:
            done: How many steps count: what was noted of later ones is dropped.
            alone: Whether this process waits for no other, and has its own images' losses alone.
        """
        self._pending = [noted for noted in self._pending if noted[0] < done]
        rows = list(self._rows())
        if self._accelerator.num_processes > 1 and not alone:
            rows = sorted(gather_object(rows))
        if not self._accelerator.is_main_process:
            self._pending.clear()
            return
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        if not self._file.is_file() or not self._file.stat().st_size:
            writer.writerow(HEADER)
        writer.writerows(rows)
        files.append_text(self._file, table.getvalue())
        self._pending.clear()  # not where the disk was full: the state that is saved asks again

    def rewind(self, step: int) -> None:
        """Forget what came after `step` steps, which a resumed run does again.

        Rows that are cut off or damaged are left out.
        """
        if not self._accelerator.is_main_process or not self._file.is_file():
            return
        with (
            files.replace_file(self._file) as partial,
            self._file.open(encoding="utf-8", errors="replace", newline="") as old,
            partial.open("w", encoding="utf-8", newline="") as new,
        ):
            writer = csv.writer(new, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows(row for row in whole_rows(old) if row[0] <= step)

    def _rows(self) -> Iterator[Row]:
        if not self._pending:
            return
        values = torch.stack(
            [
                torch.cat([output.losses.detach().double() for _, _, output in self._pending]),
                torch.cat([output.t.double() for _, _, output in self._pending]),
                torch.cat([output.weights.double() for _, _, output in self._pending]),
            ]
        )
        numbers = zip(*values.cpu().tolist(), strict=True)
        for step, images, _ in self._pending:
            for image in images:
                loss, timestep, weight = next(numbers)
                if weight:
                    yield step + 1, image, int(timestep), round(loss / weight, 6)
