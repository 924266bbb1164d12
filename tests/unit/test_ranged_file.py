"""`RangedFile`: any seeks and reads give the same as a file with these bytes."""

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impasto.storage.ranged_file import RangedFile

CONTENT = bytes(range(100))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 120)),
        st.tuples(st.just("seek"), st.integers(0, 120)),
    ),
    max_size=12,
)


class Ranges:
    """Reads ranges of `CONTENT`, at most `most` bytes at a time, and records them."""

    def __init__(self, most=1000):
        self.asked, self.most = [], most

    def __call__(self, begin, end):
        self.asked.append((begin, end))
        assert 0 <= begin < end <= len(CONTENT)
        return CONTENT[begin:end][: self.most]


@given(steps=STEPS, ahead=st.sampled_from([0, 7, 1000]))
def test_it_reads_what_a_file_reads(steps, ahead):
    file, plain = RangedFile(Ranges(), len(CONTENT), ahead), io.BytesIO(CONTENT)
    for name, number in steps:
        assert getattr(file, name)(number) == getattr(plain, name)(number)
        assert file.tell() == plain.tell()


@given(most=st.integers(1, 30), size=st.integers(0, 120))
def test_ranges_that_come_in_pieces_are_joined(most, size):
    file = io.BufferedReader(RangedFile(Ranges(most), len(CONTENT)), 16)
    assert file.read(size) + file.read() == CONTENT
    assert RangedFile(Ranges(most), len(CONTENT)).readall() == CONTENT


def test_what_was_read_ahead_is_not_asked_for_again():
    ranges = Ranges()
    file = RangedFile(ranges, len(CONTENT), 50)
    assert file.read(10) + file.read(40) == CONTENT[:50]
    file.seek(-10, os.SEEK_END)
    assert file.read() == CONTENT[90:]
    assert ranges.asked == [(0, 50), (90, 100)]


def test_nothing_is_asked_for_behind_the_end():
    ranges = Ranges()
    file = RangedFile(ranges, len(CONTENT), 50)
    file.seek(100)
    assert file.read(5) == b""
    assert ranges.asked == []


def test_what_it_reads_from_is_closed_with_it():
    below = io.BytesIO(CONTENT)
    with RangedFile(lambda begin, end: CONTENT[begin:end], len(CONTENT), on_close=below.close):
        assert not below.closed
    assert below.closed


def test_an_error_below_is_an_error_of_the_file():
    def fail(begin, end):
        raise OSError(5, f"no bytes from {begin} to {end}")

    with pytest.raises(OSError, match="no bytes from 0 to 8"):
        RangedFile(fail, len(CONTENT)).read(8)
