"""Writes text encoder outputs beside the images, in files that sd-scripts reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from impasto import presence, storage_errors
from impasto.data.caching.npz_exchange import Exported
from impasto.data.caching.text_npz import (
    Ids,
    TextShape,
    by_text_file,
    is_by_impasto,
    why_ambiguous,
    write_text_npz,
)
from impasto.data.engines.stages import Failure
from impasto.data.records import ImageRecord, SkippedFile
from impasto.errors import StorageError
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.text.text_conditioner import ClipTextConditioner
from impasto.models.text.text_states import EncodedShape, TextStates
from impasto.models.tokenization.tokens import LENGTH, TextLayout
from impasto.progress import Progress, counted
from impasto.write_targets import why_not_written

AS_SD_SCRIPTS = TextLayout(75, "kohya", "plain", "off")
"""Default layout of captions in sd-scripts: the first 75 tokens, cut anywhere."""

AT_ONCE = 16

_SHOWN = 5


def shape_in_files(shape: EncodedShape, layout: TextLayout = AS_SD_SCRIPTS) -> TextShape:
    """Return the shape of a model's text encoder outputs in files, for captions of a layout.

    sd-scripts joins chunks before it writes them, which only the same layout can use: for any
    other, files hold one chunk. Emphasis `mean` needs the mean over positions that the joined form
    has lost.
    """
    as_there = layout.join == "kohya" and layout.split == "plain" and layout.emphasis != "mean"
    return TextShape(LENGTH, shape.widths, shape.pooled, layout.max_chunks if as_there else 1)


@dataclass(frozen=True)
class ExportedTexts(Exported):
    """The number of text encoder outputs that `export_texts` wrote, and the images that got none.

    Attributes:
        cut: Images whose captions have over 75 tokens, of which the file holds the first 75.
    """

    cut: tuple[Path, ...] = ()

    @property
    def warning(self) -> str:
        """A warning about captions that were cut; empty if none was."""
        if not self.cut:
            return ""
        shown = ", ".join(path.name for path in self.cut[:_SHOWN])
        more = f" and {len(self.cut) - _SHOWN:,} more" if len(self.cut) > _SHOWN else ""
        return (
            f"{counted(len(self.cut), 'captions have')} over 75 tokens ({shown}{more}), and their "
            f"files hold the first 75. sd-scripts with --max_token_length 150 or 225 would use "
            f"these 77 positions unchanged; delete the files before you train with it."
        )


def export_texts(
    records: Sequence[ImageRecord],
    model: BaseModel,
    ending: str,
    device: torch.device,
    progress: Progress,
) -> ExportedTexts:
    """Encode the captions of images and write them beside the images, in float32.

    A file that Impasto did not write is never replaced.

    Args:
        records: The images. Of several that share a file, none gets one unless all have the same
            path and caption: sd-scripts would train all with the caption of one.
        model: Base model; its text encoders are moved to the device, and stay there.
        ending: Suffix of the names of the files.
        device: Device on which the encoders compute.
        progress: Shows the progress.

    Raises:
        StorageError: The disk is full.
    """
    states = TextStates.of(model).to(device)
    conditioner = ClipTextConditioner(build_tokens(model, AS_SD_SCRIPTS), states, states.shape)
    groups = by_text_file(records, ending)
    written, refused = 0, []
    cut: list[Path] = []
    with progress.stage("Writing text encoder outputs", len(groups), "files") as advance:
        targets = sorted(groups)
        for start in range(0, len(targets), AT_ONCE):
            batch = targets[start : start + AT_ONCE]
            faults = {file: _why_not(file, groups[file]) for file in batch}
            able = [file for file in batch if faults[file] is None]
            captions = {file: groups[file][0].fixed_caption for file in able}
            chunks = [conditioner.chunks_of(captions[file])[0] for file in able]
            for file, ids, row in zip(able, chunks, _encoded(states, chunks, device), strict=True):
                faults[file] = _write(file, states.shape, ids, row)
                if faults[file] is None and conditioner.too_long([captions[file]]):
                    cut.append(groups[file][0].path)
            for file, fault in faults.items():
                written += fault is None
                if fault is not None:
                    refused.append(SkippedFile(groups[file][0].path, fault.reason))
            advance(len(batch))
    return ExportedTexts(written, tuple(refused), tuple(cut))


def _why_not(file: Path, records: Sequence[ImageRecord]) -> Failure | None:
    """Return the reason why these images get no file, or None if they get one."""
    ambiguous = why_ambiguous(records)
    if ambiguous is not None:
        return Failure(f"no {file.name}: {ambiguous.reason}")
    record = records[0]
    fault = why_not_written(file, [record.path.parent, record.subset.root])
    if fault:
        return Failure(f"no {file.name}: {fault}")
    if presence.exists(file) and not is_by_impasto(file):
        return Failure(
            f"{file.name} already exists, was not written by Impasto, and was left unchanged; "
            f"delete it to have it written"
        )
    return None


@torch.no_grad()
def _encoded(states: TextStates, chunks: Sequence[Ids], device: torch.device) -> np.ndarray:
    if not chunks:
        return np.zeros((0, states.shape.numbers), np.float32)
    found: np.ndarray = states(torch.tensor(chunks).to(device)).float().cpu().numpy()
    return found


def _write(file: Path, shape: EncodedShape, ids: Ids, row: np.ndarray) -> Failure | None:
    each, pooled = shape.unpacked(torch.from_numpy(row))
    assert pooled is not None  # noqa: S101 - families with files of texts have one
    try:
        write_text_npz(file, [one.numpy() for one in each], pooled.numpy(), ids)
    except StorageError as error:
        if not storage_errors.is_file_specific(error):
            raise
        return Failure(f"no {file.name}: it cannot be written ({storage_errors.cause_of(error)})")
    return None
