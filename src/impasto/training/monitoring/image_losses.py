"""Writes the loss of each image at each of its uses to a CSV table.

A single loss says little, since it depends on the timestep; but the mean over many uses, within a
range of timesteps, finds images that the model does not learn, such as those with wrong captions or
unusual content. A sample's weight in the loss (`prior_loss_weight`, `loss.diff_tuning`) is divided
out, so that all images can be compared. Samples of weight 0 are left out, since their loss is
unknown.
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
    """Collects losses on the device, and writes them to `image_losses.csv` with the metrics.

    Args:
        accelerator: The processes, each with different images; the main one writes.
        run: The run directory to write to.
    """

    def __init__(self, accelerator: Accelerator, run: RunDirectory) -> None:
        self._accelerator, self._file = accelerator, run.image_losses_file
        self._pending: list[tuple[int, Sequence[str], StepOutput]] = []

    def add(self, step: int, images: Sequence[str], output: StepOutput) -> None:
        """Add the losses of some images in a step.

        Args:
            step: The number of the step, from 0.
            images: The images' paths.
            output: Their losses, in the same order.
        """
        self._pending.append((step, images, output))

    def write(self, done: int, *, alone: bool = False) -> None:
        """Append the collected losses of the first `done` steps to the file; waits for the device.

        Args:
            done: Steps completed; the losses of later steps are dropped.
            alone: Whether to write only this process's losses, without waiting for others.
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
        self._pending.clear()  # skipped if the disk was full: saving the state tries again

    def rewind(self, step: int) -> None:
        """Remove rows after the first `step` steps, since a resumed run trains those steps again.

        Truncated and damaged rows are removed too.
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
