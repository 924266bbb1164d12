"""The keys of a large dataset's latents, kept so that the next start does not make them again.

A key is a hash over a file's content, how the image is resized and cropped, and the VAE. Making
ten million takes minutes, and keeping them in each process 160 MB. They are the same while the
files' sizes and times of change, the words, the geometry and the VAE are, whose hash names the
table that they are mapped from (`tables.py`).

Not for images of which other files say something: masks, and latents of sd-scripts.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from impasto.data import images
from impasto.data.latent_keys import KeyTable
from impasto.data.planned_table import PlannedTable
from impasto.data.tables import TableFolder
from impasto.errors import StorageError

if TYPE_CHECKING:
    from impasto.data.latent_cache import CachedPlan, LatentCache

KEPT_FROM = 50_000
"""Images; the keys of fewer are made in a second."""
_MOST = 4  # datasets, sizes or VAEs that are kept of one folder
_NAMES = ("plain", "flipped")
_SCHEMA = pa.schema(
    [
        ("code", pa.int32()),
        *((name, pa.binary(16)) for name in (*_NAMES, *(f"exact_{name}" for name in _NAMES))),
    ]
)


class PreparedKeys:
    """Keys of planned images as they were made before.

    Args:
        folder: Where they are kept.
        planned: The images.
        sources: What the latents, and those of exact arithmetic, are named after besides them.
    """

    def __init__(self, folder: Path, planned: PlannedTable, sources: tuple[str, str]) -> None:
        self._folder, self._planned = folder, planned
        self._applies = len(planned) >= KEPT_FROM and not any(
            use.subset.masks or use.subset.augmentation or use.subset.reads_npz
            for use in planned.records.uses
        )
        self._name = _signature(planned, sources) if self._applies else ""

    def read(self, cache: LatentCache) -> tuple[PlannedTable, KeyTable, KeyTable] | None:
        """The images, their keys and those of exact arithmetic; None where one has to be made.

        Args:
            cache: Where all of the latents have to be.
        """
        if not self._applies:
            return None
        table = self._table().read()
        if table.column(0).num_chunks < 1 or len(table.column(0).chunk(0)) != len(self._planned):
            return None
        keys, exact = (
            KeyTable(len(self._planned), {n: _bytes_of(table.column(p + n)) for n in _NAMES})
            for p in ("", "exact_")
        )
        if not all(cache.has_all(column) for column in keys.columns.values()):
            return None
        codes = table.column("code").chunk(0).to_numpy()
        planned = PlannedTable(self._planned.records, self._planned.shapes, codes)
        return planned, keys, exact

    def write(self, plan: CachedPlan) -> None:
        """Keep the keys of a plan, if it has all of the images; what cannot be costs time later."""
        if not self._applies or len(plan.images) != len(self._planned):
            return
        arrays = [pa.array(self._planned.codes)]
        for keys in (plan.keys, plan.identities or plan.keys):
            columns = KeyTable.of(keys).columns
            for name in _NAMES:
                values = columns.get(name, np.zeros((len(keys), 16), np.uint8))
                buffer = pa.py_buffer(np.ascontiguousarray(values))
                arrays.append(pa.Array.from_buffers(pa.binary(16), len(keys), [None, buffer]))
        with contextlib.suppress(StorageError):
            self._table().rewrite(pa.Table.from_arrays(arrays, schema=_SCHEMA))
            self._remove_others()

    def _table(self) -> TableFolder:
        return TableFolder(self._folder / f"{self._name}.table", _SCHEMA, [1])

    def _remove_others(self) -> None:
        """Keep the newest few."""
        others = sorted(self._folder.glob("*.table"), key=lambda path: path.stat().st_mtime_ns)
        for path in others[:-_MOST]:
            shutil.rmtree(path, ignore_errors=True)


def _bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """[rows, 16]: a column of keys, over the same memory."""
    array = column.chunk(0)
    return np.frombuffer(array.buffers()[1], np.uint8, count=len(array) * 16).reshape(-1, 16)


def _signature(planned: PlannedTable, sources: tuple[str, str]) -> str:
    """A hash over all that the keys of some images depend on."""
    digest = hashlib.sha256(f"{images.PREPROCESSING_VERSION}/{sources}".encode())
    records = planned.records
    for use in records.uses:
        own = use.subset
        rules = (str(own.root), own.flips, own.flip_safe, own.interpolation, use.class_tokens)
        digest.update(repr((rules, own.captions.separator)).encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(planned.shapes).tobytes())
    columns = [planned.codes, *(records.column(name) for name in sorted(records.numbers))]
    for name, column in zip(["code", *sorted(records.numbers)], columns, strict=True):
        digest.update(f"{name} {column.dtype} {column.shape}".encode())
        for start in range(0, len(column), 1 << 18):
            digest.update(np.ascontiguousarray(column[start : start + (1 << 18)]).data)
    for name in ("path", "caption", "tags"):
        digest.update(records.text_digest(name))
    return digest.hexdigest()[:32]
