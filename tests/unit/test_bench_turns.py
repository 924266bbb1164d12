"""Rows of the benchmarks are timed one at a time, while all others are stopped."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # `bench` is beside `src`, not in it

from bench.step_rows import chosen_rows

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stop signals are a POSIX feature")

COUNTS = """
import sys, time
from pathlib import Path
from bench.turns import Turns
turns, file = Turns(Path(sys.argv[1])), Path(sys.argv[2])
with turns.joined():
    while True:
        with file.open("ab") as out:
            out.write(b".")
        time.sleep(0.01)
"""
TAKES_THE_TURN = """
import sys, time
from pathlib import Path
from bench.turns import Turns
turns, file = Turns(Path(sys.argv[1])), Path(sys.argv[2])
with turns.joined(), turns.alone():
    before = file.stat().st_size
    time.sleep(0.2)
    print(before, file.stat().st_size)
"""


def begin(code, *words):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def waits_for(file, size):
    while not file.is_file() or file.stat().st_size < size:
        time.sleep(0.01)


def test_others_stand_still_during_a_turn_and_go_on_after_it(tmp_path):
    file = tmp_path / "count"
    other = begin(COUNTS, tmp_path / "turns", file)
    try:
        waits_for(file, 3)
        answer, _ = begin(TAKES_THE_TURN, tmp_path / "turns", file).communicate()
        before, after = answer.split()
        assert before == after
        waits_for(file, int(after) + 3)
    finally:
        other.kill()
        other.communicate()


def test_rows_are_chosen_by_parts_of_names_or_whole_ones():
    names = [row.name for row in chosen_rows("cuda", ["sd2, batch 32, bf16", "streamed"])]
    assert names[0] == "sd2, batch 32, bf16"
    assert all("streamed" in name for name in names[1:])
    assert len(set(names)) == len(names) > 3
    with pytest.raises(ValueError, match="No row's name contains 'float7'"):
        chosen_rows("cuda", ["float7"])
