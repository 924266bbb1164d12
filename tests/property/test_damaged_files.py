"""Reading any damaged file succeeds or raises one of Impasto's errors, and nothing else.

The short test takes a few seconds. The long one reads 10,400 damaged files of a seed; set
`IMPASTO_FUZZ_SEED` and `IMPASTO_FUZZ_FILES` (per kind) for others. A failure reports kind, seed and
number; `damaged_once(kind, seed, number, folder)` repeats it.
"""

from __future__ import annotations

import os
import random
import traceback
import warnings

import pytest
from damaged_formats import CANARY
from readers import READERS

from impasto.errors import ImpastoError

SHORT, LONG = 15, 800


def damaged_once(kind, reader, seed, number, folder):
    """Damage one file and read it; return a line about an unexpected exception, or None."""
    rng = random.Random(f"{kind} {seed} {number}")
    folder.mkdir()
    try:
        reader.read(rng, folder)
    except ImpastoError as error:
        if not str(error).strip():
            return f"{kind} {seed} {number}: an error without words"
    except Exception as error:
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "/impasto/" in f.filename]
        where = f"{ours[-1].filename.rpartition('/impasto/')[2]}:{ours[-1].lineno}" if ours else ""
        return f"{kind} {seed} {number}: {type(error).__name__} in {where}: {str(error)[:100]}"
    return f"{kind} {seed} {number}: a pickle was run" if (folder / CANARY).exists() else None


def read_many(kind, seed, count, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    reader = READERS[kind](whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of libraries about damaged files
        found = [
            damaged_once(kind, reader, seed, number, tmp_path / str(number))
            for number in range(count)
        ]
    faults = [fault for fault in found if fault]
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:40])


@pytest.mark.parametrize("kind", READERS)
def test_some_damaged_files_are_explained(kind, tmp_path):
    read_many(kind, 1, SHORT, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_many_damaged_files_are_explained(kind, tmp_path):
    count = int(os.environ.get("IMPASTO_FUZZ_FILES", LONG))
    read_many(kind, os.environ.get("IMPASTO_FUZZ_SEED", "2"), count, tmp_path)
