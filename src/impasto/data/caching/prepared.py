"""The keys of a large dataset's latents, stored so that the next start need not compute them again.

A key is a hash of a file's content, its resize and crop, and the VAE. Computing ten million takes
minutes, and holding them in each process 160 MB. They stay the same while the files' sizes and
modification times, the captions, the geometry and the VAE do. A hash of all these is the name of
the table that the keys are mapped from (`tables.py`).

Images that cannot be encoded are stored too, with the reasons, unless a failure is transient.

The tables are on this machine: nothing would remove them from an object store.

Datasets with masks or latents of sd-scripts are excluded, as their keys depend on further files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from impasto import files
from impasto.data.caching.latent_cache import CachedPlan, LatentCache
from impasto.data.caching.latent_keys import KeyTable
from impasto.data.columns import tables
from impasto.data.columns.arrow_columns import number_column, values_of
from impasto.data.columns.tables import TableFolder
from impasto.data.pixels import images
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.records import SkippedFile
from impasto.errors import StorageError
from impasto.parsing import parse_json
from impasto.remote_paths import machine_folder

KEPT_FROM = 50_000
"""Least number of images for which keys are stored; those of fewer are computed in a second."""
_MOST = 4  # tables (datasets, sizes or VAEs) that are kept in one folder
_NAMES = ("plain", "flipped")
_LEFT_OUT = b"left out"  # indices of images that cannot be encoded, and (index, reason) per file
_SCHEMA = pa.schema(
    [
        ("code", pa.int32()),
        *((name, pa.binary(16)) for name in (*_NAMES, *(f"exact_{name}" for name in _NAMES))),
    ]
)


class PreparedKeys:
    """The keys of planned images as an earlier run stored them.

    Args:
        folder: Where they are stored; for a folder in an object store, its counterpart on this
            machine.
        planned: The images.
        sources: The `source` of the latents' keys, and that of their identities.
    """

    def __init__(self, folder: Path, planned: PlannedTable, sources: tuple[str, str]) -> None:
        self._folder, self._planned = machine_folder(folder), planned
        self._applies = len(planned) >= KEPT_FROM and not any(
            use.subset.masks or use.subset.augmentation or use.subset.reads_npz
            for use in planned.records.uses
        )
        self._name = _signature(planned, sources) if self._applies else ""

    def read(self, cache: LatentCache) -> CachedPlan | None:
        """Return the plan of these images from an earlier run; None if something must be encoded.

        Args:
            cache: The latent cache, which must have all of the latents.
        """
        table = self._table().newest() if self._applies else None
        if table is None or not len(table):
            return None
        left_out, reasons = parse_json(table.schema.metadata[_LEFT_OUT], halves=True)
        count = len(self._planned) - len(left_out)
        if len(table) != count:
            return None
        keys, exact = (
            KeyTable(count, {n: _bytes_of(table.column(p + n)) for n in _NAMES})
            for p in ("", "exact_")
        )
        if not all(cache.has_all(column) for column in keys.columns.values()):
            return None
        records = self._planned.records
        if left_out:
            kept = np.ones(len(self._planned), dtype=np.bool_)
            kept[left_out] = False
            records = records.select(kept)
        codes = values_of(table.column("code"))
        planned = PlannedTable(records, self._planned.shapes, codes)
        paths = self._planned.records
        skipped = tuple(SkippedFile(paths[index].path, why) for index, why in reasons)
        return CachedPlan(planned, keys, skipped, 0, (), exact)

    def write(self, plan: CachedPlan, kept: np.ndarray) -> None:
        """Store the keys of a plan, if all omitted images have reasons; a failed write is ignored.

        Args:
            plan: The plan of the images.
            kept: [images]: whether each image is in the plan.
        """
        if not self._applies:
            return
        left_out = np.flatnonzero(~kept).tolist()
        of_path = {item.path: item.reason for item in plan.skipped}
        indices: dict[Path, int] = {}
        for index in left_out:
            indices.setdefault(self._planned.records[index].path, index)
        if of_path.keys() != indices.keys():
            return
        reasons = [(indices[path], reason) for path, reason in of_path.items()]
        arrays = [number_column(self._planned.codes[kept])]
        for keys in (plan.keys, plan.identities or plan.keys):
            columns = KeyTable.of(keys).columns
            for name in _NAMES:
                values = columns.get(name, np.zeros((len(keys), 16), np.uint8))
                buffer = pa.py_buffer(np.ascontiguousarray(values))
                arrays.append(pa.Array.from_buffers(pa.binary(16), len(keys), [None, buffer]))
        about = {_LEFT_OUT: json.dumps([left_out, reasons]).encode("utf-8")}
        with contextlib.suppress(StorageError):
            self._table().replace_all(pa.Table.from_arrays(arrays, schema=_SCHEMA), about)
            self._remove_others()

    def _table(self) -> TableFolder:
        return TableFolder(self._folder / f"{self._name}.table", _SCHEMA, [2])

    def _remove_others(self) -> None:
        """Remove all but the newest few tables and those another process may just have mapped."""
        if not files.writes_caches():
            return
        times: list[tuple[int, Path]] = []
        for path in self._folder.glob("*.table"):
            with contextlib.suppress(OSError):  # another process removes them too
                times.append((path.stat().st_mtime_ns, path))
        for changed, path in sorted(times)[:-_MOST]:
            if time.time_ns() - changed > tables.REMOVED_AFTER_NS:
                shutil.rmtree(path, ignore_errors=True)


def _bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of keys as [rows, 16], over the same memory."""
    array = column.chunk(0)
    return np.frombuffer(array.buffers()[1], np.uint8, count=len(array) * 16).reshape(-1, 16)


def _signature(planned: PlannedTable, sources: tuple[str, str]) -> str:
    """Return a hash of all that the keys of some images depend on."""
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
