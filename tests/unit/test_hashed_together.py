"""Programs that hash the same files at once: each file is read about once, by one of them."""

import hashlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import draw_images
from process_groups import in_threads
from test_latent_cache import CountingEncoder, plan_of

from impasto import files
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.columns import portions, segments, tables
from impasto.data.columns.portions import Portions
from impasto.data.engines.process_group import CachePeers
from impasto.data.pixels import content_hashes
from impasto.data.pixels.content_hashes import ContentHashes, stamp_of
from impasto.errors import StorageError

FILES = 300
SLOW_S = 0.004
WAIT_S = 120.0


@pytest.fixture(params=["folder", "memory", "s3"])
def hashes_in(request, tmp_path):
    """A place for hashes: a folder, or an address in each kind of store."""
    if request.param == "folder":
        return tmp_path / "latents"
    return request.getfixturevalue("bucket" if request.param == "s3" else "in_memory") / "latents"


@pytest.fixture
def stamps(tmp_path):
    """Many small files, with their stamps."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:03}.png").write_bytes(b"%d" % number)
    return {path: stamp_of(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def small_portions(monkeypatch):
    """Make portions of at least 5 files, of a fiftieth of a second."""
    monkeypatch.setattr(content_hashes, "FIRST_FILES", 5)
    monkeypatch.setattr(portions, "SECONDS", 0.02)


@pytest.fixture
def read(monkeypatch, small_portions):
    """Count how often each file was read, which takes a while."""
    found, counting = Counter(), threading.Lock()
    real = files.sha256_of

    def slow(path, *more):
        if Path(path).suffix == ".png":
            with counting:
                found[Path(path).name] += 1
            time.sleep(SLOW_S)
        return real(path, *more)

    monkeypatch.setattr(content_hashes.files, "sha256_of", slow)
    return found


def at_once(number, work):
    """Run `work` in several threads that start together; return the results."""
    begin = threading.Barrier(number)

    def one(place):
        begin.wait(WAIT_S)
        return work(place)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def hashed(place, stamps):
    return ContentHashes(place / "content-hashes.json").of(stamps)


def test_one_program_alone_reads_each_file_once(stamps, read, tmp_path):
    assert hashed(tmp_path / "latents", stamps) == digests_of(stamps)
    assert read.total() == FILES


def digests_of(paths):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize(
    ("hashes_in", "programs", "number"),
    [("folder", 2, FILES), ("folder", 3, FILES), ("memory", 3, FILES), ("s3", 3, 60)],
    indirect=["hashes_in"],
)
def test_programs_at_once_read_each_file_about_once(hashes_in, stamps, read, programs, number):
    stamps = dict(itertools.islice(stamps.items(), number))
    expected = digests_of(stamps)
    found = at_once(programs, lambda _: hashed(hashes_in, stamps))
    assert found == [expected] * programs
    assert [list(digests) for digests in found] == [list(stamps)] * programs
    assert len(read) == number
    assert read.total() < number * 1.6
    assert hashed(hashes_in, stamps) == expected
    assert read.total() < number * 1.6  # all hashes are stored


def test_what_cannot_be_read_is_found_by_each(stamps, read, tmp_path):
    gone = list(stamps)[7]
    gone.unlink()
    found = at_once(2, lambda _: hashed(tmp_path / "latents", stamps))
    assert [list(digests) for digests in found] == [[p for p in stamps if p != gone]] * 2


def test_a_file_that_another_program_saw_otherwise_is_read_here(stamps, read, tmp_path):
    """An image may be replaced between the scans of two programs."""
    first, *others = stamps
    old = dict(stamps)
    first.write_bytes(b"another image")
    new = {**old, first: stamp_of(first)}
    table, real = ContentHashes(tmp_path / "content-hashes.json"), table_of(tmp_path)
    for path in others:
        real.add(str(path), *stamp_values(old[path]), bytes(32))
    real.add(str(first), *stamp_values(old[first]), bytes(32))
    real.flush()
    found = table.of(new)
    assert found[first] == files.sha256_of(first)
    assert list(found.values()).count(bytes(32).hex()) > FILES / 2


def table_of(folder):
    return ContentHashes(folder / "content-hashes.json")._known


def stamp_values(stamp):
    return stamp.size_bytes, stamp.mtime_ns


KILLED = """
import sys, time
from pathlib import Path
from impasto.data.columns import portions
from impasto.data.pixels import content_hashes
from impasto.data.pixels.content_hashes import ContentHashes, stamp_of

content_hashes.FIRST_FILES, portions.SECONDS = 5, 0.05
real = content_hashes.files.sha256_of

def slow(path):
    time.sleep(0.005)
    print(Path(path).name, flush=True)
    return real(path)

content_hashes.files.sha256_of = slow
stamps = {path: stamp_of(path) for path in sorted(Path(sys.argv[2]).iterdir())}
ContentHashes(Path(sys.argv[1])).of(stamps)
"""


def test_a_program_goes_on_where_another_was_killed(stamps, read, tmp_path):
    program = [sys.executable, "-c", KILLED, str(tmp_path / "latents" / "content-hashes.json")]
    process = subprocess.Popen(
        [*program, str(tmp_path / "pictures")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(hashed, tmp_path / "latents", stamps)
            theirs = [process.stdout.readline() for _ in range(100)]
            process.kill()
            found = future.result()
    finally:
        process.kill()
        theirs += process.communicate()[0].splitlines()
    assert list(found) == list(stamps)
    assert all(digest == files.sha256_of(path) for path, digest in list(found.items())[:20])
    read.subtract(path.name for path in list(stamps)[:20])  # just now
    assert len(theirs) >= 100
    assert read.total() < FILES - 20  # files hashed on disk before the kill were not read again
    assert read.total() + len(theirs) < FILES * 1.5


def test_a_damaged_table_costs_reading_again(stamps, read, tmp_path):
    expected = hashed(tmp_path / "latents", stamps)
    for segment in (tmp_path / "latents" / "content-hashes.table").iterdir():
        segment.write_bytes(segment.read_bytes()[:-9] + bytes(9))
    read.clear()
    found = at_once(2, lambda _: hashed(tmp_path / "latents", stamps))
    assert found == [expected] * 2
    assert len(read) == FILES
    assert read.total() < FILES * 1.6


def test_a_look_that_fails_says_nothing(stamps, read, tmp_path, monkeypatch):
    def refuse(_):
        raise StorageError("the store does not answer")

    monkeypatch.setattr(tables.TableFolder, "appended_since", refuse)
    assert list(hashed(tmp_path / "latents", stamps)) == list(stamps)
    assert read.total() == FILES


def test_preparations_at_once_hash_each_file_about_once(read, tmp_path):
    """The two processes of one run, and one other process, prepare the same images."""
    folder = draw_images(tmp_path / "images", 60)
    images = plan_of(folder).images

    def prepare(peers=None):
        more = {} if peers is None else {"peers": peers}
        cache = LatentCache(tmp_path / "latents")
        return cache_latents(images, cache, CountingEncoder().encoder, **more)

    def one(place):
        if place:
            return [prepare()]
        return in_threads(2, lambda group: prepare(CachePeers(group, (0, 1))))

    two, alone = at_once(2, one)
    assert [list(plan.keys) for plan in two] == [list(alone[0].keys)] * 2
    assert len(read) == 60
    assert read.total() < 60 * 1.7


def test_looking_for_what_is_new_opens_only_that(stamps, tmp_path, monkeypatch):
    own, other = table_of(tmp_path), table_of(tmp_path)
    opened, real = [], segments.open_segment

    def counted(file):
        opened.append(file.name)
        return real(file)

    monkeypatch.setattr(tables, "open_segment", counted)
    for number in range(5):
        other.add(f"their {number}", number, 0, bytes(32))
        other.flush()
        own.add(f"own {number}", number, 0, bytes(32))
        own.flush()
        assert own.look_up_new([f"their {n}" for n in range(5)]) == {
            f"their {number}": (number, 0, bytes(32))
        }
        assert len(opened) == number + 1
    assert own.look_up_new(["their 0"]) == {}
    assert len(own.look_up([f"{who} {n}" for who in ("own", "their") for n in range(5)])) == 10


def test_what_was_put_in_the_place_of_others_is_read_whole(tmp_path):
    own, other = table_of(tmp_path), table_of(tmp_path)
    for number in range(tables.MANY_SEGMENTS + 2):
        other.add(f"their {number}", number, 0, bytes(32))
        other.flush()
    own.look_up_new(["their 0"])
    other.add("the last", 1, 2, bytes(32))
    other.finish()
    assert own.look_up_new(["the last"]) == {"the last": (1, 2, bytes(32))}
    assert len(own._rows) == tables.MANY_SEGMENTS + 3  # no file twice


@pytest.mark.parametrize("programs", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_portions_are_shared_out_however_many_programs_there_are(programs, seed):
    """Programs take turns, each of which sees the results one turn late."""
    things = 4000
    own = [Portions([0.1] * things, seed * 10 + n) for n in range(programs)]
    done, current = Counter(), [[] for _ in own]
    for turn in itertools.count():
        number = turn % programs  # each starts a portion while the others work on theirs
        if not any(current) and all(program.is_done for program in own):
            break
        for other, program in enumerate(own):
            if other != number:
                program.leave_out(current[number])
        done.update(current[number])
        current[number] = own[number].take()
        own[number].took(portions.SECONDS * len(current[number]) / 40)
    assert len(done) == things
    assert done.total() <= things * (1 + 0.02 * programs)


def test_a_program_alone_goes_through_all_in_order_from_its_place_on():
    own = Portions([0.4] * 100, 7)
    order = []
    while places := own.take():
        order += places
        own.took(1e-9)
    start = order[0]
    assert order == [*range(start, 100), *range(start)]
    assert Portions([]).take() == []
