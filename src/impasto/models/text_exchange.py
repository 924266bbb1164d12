"""Writes what text encoders make of captions beside the images, as sd-scripts keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from impasto import files
from impasto.data.npz_exchange import Exported, why_shared
from impasto.data.records import ImageRecord, SkippedFile
from impasto.data.stages import Failure
from impasto.data.text_npz import Ids, TextShape, text_npz_file, write_text_npz
from impasto.errors import StorageError
from impasto.models.loading import BaseModel, build_tokens
from impasto.models.text import ClipTextConditioner, EncodedShape, TextStates
from impasto.models.tokens import LENGTH, TextLayout
from impasto.progress import Progress

AS_SD_SCRIPTS = TextLayout(75, "kohya", "plain", "off")
"""How sd-scripts reads captions unless it is told otherwise: the first 75 tokens, cut anywhere."""

AT_ONCE = 16


def shape_in_files(shape: EncodedShape) -> TextShape:
    """The shape that files of a model's texts have."""
    return TextShape(LENGTH, shape.widths, shape.pooled)


def export_texts(
    records: Sequence[ImageRecord],
    model: BaseModel,
    ending: str,
    device: torch.device,
    progress: Progress,
) -> Exported:
    """Encode the captions of images and write them beside the images, in float32.

    Args:
        records: The images; of one with the same file as another, none is written, since
            sd-scripts would train both with the words of one.
        model: Its text encoders are brought to the device, and stay there.
        ending: What the names of the files end on.
        device: Where the encoders compute.
        progress: Is told how far it is.

    Raises:
        StorageError: The disk is full.
    """
    states = TextStates.of(model).to(device)
    conditioner = ClipTextConditioner(build_tokens(model, AS_SD_SCRIPTS), states, states.shape)
    owners: dict[Path, set[Path]] = {}
    for record in records:
        owners.setdefault(text_npz_file(record.path, ending), set()).add(record.path)
    first = {text_npz_file(record.path, ending): record for record in reversed(records)}
    written, refused = 0, []
    with progress.stage("Writing texts as .npz", len(first), "files") as advance:
        targets = sorted(first)
        for start in range(0, len(targets), AT_ONCE):
            batch = targets[start : start + AT_ONCE]
            faults = {file: _why_not(file, first[file], owners[file]) for file in batch}
            able = [file for file in batch if faults[file] is None]
            chunks = [conditioner.chunks_of(first[file].fixed_caption)[0] for file in able]
            for file, ids, row in zip(able, chunks, _encoded(states, chunks, device), strict=True):
                faults[file] = _write(file, states.shape, ids, row)
            for file, fault in faults.items():
                written += fault is None
                if fault is not None:
                    refused.append(SkippedFile(first[file].path, fault.reason))
            advance(len(batch))
    return Exported(written, tuple(refused))


def _why_not(file: Path, record: ImageRecord, owners: set[Path]) -> Failure | None:
    """Why an image gets no file; None where it gets one."""
    if record.subset.captions.changes_words:
        return Failure("no text as .npz: its caption changes each time that it is shown")
    fault = files.why_not_written(file, [record.path.parent, record.subset.root])
    return Failure(f"no text as .npz: {fault}") if fault else why_shared(owners)


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
        if not files.is_file_specific(error):
            raise
        return Failure(f"no text as .npz: it cannot be written ({files.cause_of(error)})")
    return None
