"""Copies a training state to machines that do not have the run directory, while it is read.

The main process reads the files and broadcasts them in pieces. On each machine without them, the
first local process writes them to the path that the run directory would have.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from impasto import files
from impasto.data.engines.process_group import ProcessGroup
from impasto.errors import StorageError
from impasto.parsing import parse_json
from impasto.runs import RunDirectory, step_name
from impasto.storage_errors import reported
from impasto.training.saving.state import HASHES

PIECE_BYTES = 64 << 20
_COPY = "received-"


@contextlib.contextmanager
def state_here(
    run: RunDirectory, step: int, accelerator: Accelerator, group: ProcessGroup
) -> Iterator[Path]:
    """Yield the folder of a state on this machine, copied there if needed; all processes call it.

    The copy is removed at the end of the context.

    Args:
        run: The run; its directory need exist only on the main process's machine.
        step: The step of the state.
        accelerator: The processes, for the broadcast.
        group: The same processes, for messages.

    Raises:
        StorageError: A machine cannot write the copy.
    """
    if group.is_local_first:
        _remove_copies(run)
    folder = run.states / step_name(step)
    own = _files_of(folder)
    told = [parse_json(text) for text in group.gather(json.dumps(own))]
    if all(found == told[0] for found in told):
        yield folder
        return
    is_lacking = own != told[0]
    sizes = {name: size for name, (size, _) in told[0].items()}
    copy = run.path / f"{_COPY}{step_name(step)}"
    writes = is_lacking and group.is_local_first
    try:
        fault = _send(folder, sizes, copy if writes else None, accelerator)
        faults = [text for text in group.gather(fault) if text]
        if faults:
            raise StorageError(faults[0])
        yield copy if is_lacking else folder
        group.gather("")  # wait until the other processes of the machine have read the copy
    finally:
        if writes:
            shutil.rmtree(copy, ignore_errors=True)
            with contextlib.suppress(OSError):  # the folder may hold files of another run
                run.path.rmdir()


def _remove_copies(run: RunDirectory) -> None:
    """Remove copies of any step that a killed resume has left on this machine (gigabytes)."""
    for folder in run.path.glob(f"{_COPY}{step_name(0).rstrip('0')}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _files_of(folder: Path) -> dict[str, list[Any]]:
    """Return file name -> [size, hash] of a state's files; empty if the folder is missing.

    Only hashes.json is hashed, since it holds the hashes of the others; their hash is "".
    """
    if not folder.is_dir():
        return {}
    return {
        file.name: [file.stat().st_size, files.sha256_of(file) if file.name == HASHES else ""]
        for file in sorted(folder.iterdir())
    }


def _send(folder: Path, sizes: dict[str, int], copy: Path | None, accelerator: Accelerator) -> str:
    """Broadcast files from the main process, and write them to `copy` unless it is None.

    Returns the error message if this process could not write, else an empty string. It keeps
    receiving after an error, since a broadcast needs all processes.
    """
    fault = ""
    for name, size in sorted(sizes.items()):
        with contextlib.ExitStack() as opened:
            source: BinaryIO | None = None
            target: BinaryIO | None = None
            if accelerator.is_main_process:
                source = opened.enter_context((folder / name).open("rb"))
            elif copy is not None and not fault:
                try:
                    with reported(copy):
                        copy.mkdir(parents=True, exist_ok=True)
                        target = opened.enter_context((copy / name).open("wb"))
                except StorageError as error:
                    fault = str(error)
            for start in range(0, size, PIECE_BYTES):
                piece = _broadcast(source, min(PIECE_BYTES, size - start), accelerator)
                if copy is not None and target is not None and not fault:
                    try:
                        with reported(copy / name):
                            target.write(piece)
                    except StorageError as error:
                        fault = str(error)
    return fault


def _broadcast(source: BinaryIO | None, size: int, accelerator: Accelerator) -> bytes:
    """Return the next `size` bytes of the main process's open file, on all processes."""
    piece = torch.empty(size, dtype=torch.uint8)
    if source is not None:
        piece = torch.frombuffer(bytearray(source.read(size)), dtype=torch.uint8)
    received: torch.Tensor = broadcast(piece.to(accelerator.device))
    return received.cpu().numpy().tobytes()
