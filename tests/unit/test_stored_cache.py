"""Latents and tables in an object store: read by rows at once, by copies later, never partially."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from object_store import cutting, refusing
from test_latent_cache import CountingEncoder, plan_of

from impasto import files
from impasto.data.caching import prepared
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.caching.latent_keys import LatentKeys
from impasto.data.caching.text_store import TextStore
from impasto.data.columns.keyed import KeyedTable
from impasto.data.columns.tables import TableFolder, rows_of
from impasto.data.records import Size
from impasto.data.sharding import orphans, shard_fetching, shard_index
from impasto.data.sharding.shard_fetching import ShardFetcher
from impasto.errors import ConfigError, DatasetError, StorageError
from impasto.remote_paths import machine_folder
from impasto.storage import copies, objects

SIDE = Size(64, 64)
KEYS = [f"{n:032x}" for n in range(1, 13)]
SCHEMA = pa.schema([("key", pa.large_string()), ("value", pa.int64())])


def values_of(keys):
    return torch.stack([torch.full((4, 8, 8), float(int(key, 16))) for key in keys])


def filled(folder, each=4):
    cache = LatentCache(folder)
    for start in range(0, len(KEYS), each):
        keys = KEYS[start : start + each]
        cache.write_shard(SIDE, keys, values_of(keys), -values_of(keys))
    return cache


def is_right(cache, keys=KEYS):
    mean, logvar = cache.read(keys)
    return torch.equal(mean.float(), values_of(keys)) and torch.equal(mean, -logvar)


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def copies_in(folder):
    return sorted(machine_folder(folder).rglob("*.safetensors"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Pretend to be another machine, without copies."""

    def move(name="other"):
        monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / name))

    return move


def test_another_machine_reads_what_one_has_written(place, elsewhere):
    assert is_right(filled(place))
    assert len(copies_in(place)) == 3  # written shards are kept as copies while there is space
    elsewhere()
    cache = LatentCache(place)
    assert len(cache) == len(KEYS)
    assert "0" * 32 not in cache
    shuffled = KEYS[::-1]
    assert is_right(cache, shuffled)  # by rows
    until(lambda: len(copies_in(place)) == 3)
    assert is_right(cache, shuffled)  # by copies


def test_a_row_takes_its_own_bytes_until_its_shard_is_here(bucket, s3, elsewhere, monkeypatch):
    filled(bucket / "latents")
    elsewhere()
    monkeypatch.setenv(copies.LIMIT_VARIABLE, "0")
    cache = LatentCache(bucket / "latents")
    told = []
    cache.set_notify(told.append)
    s3.requests.clear()
    assert is_right(cache, [KEYS[1]])
    reads = [request for request in s3.requests if ".safetensors" in request]
    assert len(reads) == 3  # the header, and a range of each column
    assert reads[0].endswith("bytes=0-4095")
    begin, end = map(int, reads[1].rpartition("bytes=")[2].split("-"))
    assert end + 1 - begin == 4 * 8 * 8 * 2
    until(lambda: told)
    assert "IMPASTO_STORE_CACHE_GB sets how many GiB" in told[0]
    assert copies_in(bucket / "latents") == []
    assert is_right(cache)
    assert len(told) == 1


def test_copies_keep_to_their_limit_and_the_least_used_go(place, elsewhere, monkeypatch):
    cache = filled(place)
    sizes = [copy.stat().st_size for copy in copies_in(place)]
    assert len(sizes) == 3
    elsewhere()
    room = sum(sizes) - min(sizes) / 2  # for any two of the three
    monkeypatch.setenv(copies.LIMIT_VARIABLE, str(room / 2**30))
    fetched, told = [], []
    real = objects.download
    monkeypatch.setattr(objects, "download", lambda *given: (fetched.append(given), real(*given)))
    cache = LatentCache(place)
    cache.set_notify(told.append)
    assert is_right(cache)
    until(lambda: told and len(copies_in(place)) == 2)  # the third one does not fit
    assert is_right(cache)
    assert len(fetched) == len(copies_in(place)) == 2
    first = set(copies_in(place))
    for copy in first:
        os.utime(copy, (1, 1))  # as from a run long ago
    cache = LatentCache(place)  # which may remove copies that it has not used itself
    for key in KEYS:
        assert is_right(cache, [key])
    assert len(copies_in(place)) == 2
    assert all(copy.stat().st_mtime > 1 for copy in copies_in(place))


def test_a_copy_that_has_just_got_its_name_takes_its_room_once(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path))
    monkeypatch.setenv(copies.LIMIT_VARIABLE, str(2500 / 2**30))
    room = copies.SpareRoom()
    first, second, third = (tmp_path / "objects" / f"{n}.safetensors" for n in range(3))
    first.parent.mkdir()
    with room.made(first, 1000) as is_made:
        assert is_made
        first.write_bytes(bytes(1000))  # and another thread asks before this one continues
        with room.made(second, 1000) as is_made:
            assert is_made
            with room.made(third, 1000) as is_made:
                assert not is_made
    assert first.exists()


def test_a_shard_that_many_threads_ask_for_is_fetched_once():
    fetched, go = [], threading.Barrier(16)

    def fetch(shard):
        fetched.append(shard)
        time.sleep(0.01)
        return True

    fetcher = ShardFetcher(fetch, pytest.fail, "latents")

    def ask(_):
        go.wait()
        return fetcher.are_here({f"{n}": 1 for n in range(50)})

    with ThreadPoolExecutor(16) as pool:
        assert all(all(found.values()) for found in pool.map(ask, range(16)))
    assert sorted(fetched) == sorted(f"{n}" for n in range(50))


@pytest.mark.parametrize("kept", [False, True], ids=["files", "kept index"])
def test_a_start_keeps_the_copies_that_it_is_going_to_read(place, elsewhere, monkeypatch, kept):
    monkeypatch.setattr(shard_index, "KEPT_FROM", 3 if kept else 10**6)
    filled(place, each=2).keep_index()
    size = copies_in(place)[0].stat().st_size
    elsewhere()
    monkeypatch.setenv(copies.LIMIT_VARIABLE, str(3.5 * size / 2**30))
    last = KEYS[6:]
    cache = LatentCache(place)
    assert is_right(cache, last)  # of three shards
    until(lambda: len(copies_in(place)) == 3)
    before = set(copies_in(place))
    for copy in before:
        os.utime(copy, (1, 1))  # as from a run long ago
    cache = LatentCache(place)
    told = []
    cache.set_notify(told.append)
    if kept:
        assert cache.has_all(np.array([list(bytes.fromhex(key)) for key in KEYS], np.uint8))
    else:
        assert all(key in cache for key in KEYS)
    assert is_right(cache)
    until(lambda: told)  # the others do not fit
    assert set(copies_in(place)) == before
    assert is_right(LatentCache(place), KEYS[:6])  # which is not informed of others
    until(lambda: not before & set(copies_in(place)))


def test_copies_that_are_mapped_are_noted_as_used_now_and_then(place, monkeypatch):
    filled(place)
    cache = LatentCache(place)
    assert all(key in cache for key in KEYS)
    assert is_right(cache)
    for copy in copies_in(place):
        os.utime(copy, (1, 1))
    assert is_right(cache)
    assert {copy.stat().st_mtime for copy in copies_in(place)} == {1}
    later = time.monotonic() + 301
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert is_right(cache)
    assert all(copy.stat().st_mtime > 1 for copy in copies_in(place))


def test_a_fault_of_the_store_is_not_kept_and_no_room_is(monkeypatch):
    answers = {"faulty": [OSError("busy"), True], "large": [False, True]}
    told = []

    def fetch(shard):
        answer = answers[shard].pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    fetcher = ShardFetcher(fetch, told.append, "latents")
    for _ in range(3):  # nothing is requested twice within a minute
        assert fetcher.are_here({"faulty": 1, "large": 1}) == {"faulty": False, "large": False}
    later = time.monotonic() + shard_fetching.FIRST_PAUSE_S
    monkeypatch.setattr(shard_fetching.time, "monotonic", lambda: later)
    for _ in range(3):
        assert fetcher.are_here({"faulty": 1, "large": 1}) == {"faulty": True, "large": False}
    assert answers == {"faulty": [], "large": [True]}
    assert len(told) == 1


def test_a_shard_whose_faults_stay_is_asked_for_ever_less_often(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(shard_fetching.time, "monotonic", lambda: now[0])

    def fetch(_):
        asked.append(now[0])
        raise StorageError("the disk is full.")

    fetcher = ShardFetcher(fetch, lambda _: None, "latents")
    for minute in range(10):
        now[0] = 60.0 * minute
        assert fetcher.are_here({"shard": 1}) == {"shard": False}
    assert asked == [0.0, 60.0, 180.0, 420.0]


def test_a_shard_is_not_asked_for_again_while_it_is_being_fetched(monkeypatch):
    now, asked, go = [0.0], [], threading.Event()
    monkeypatch.setattr(shard_fetching.time, "monotonic", lambda: now[0])

    def fetch(_):
        asked.append(now[0])
        if len(asked) == 1:
            raise OSError("busy")
        return go.wait(30)

    fetcher = ShardFetcher(fetch, lambda _: None, "latents")
    large = {"shard": shard_fetching.WORTH_WAITING + 1}  # without waiting for it
    fetcher.are_here(large)
    until(lambda: fetcher._faulty)
    for second in range(100, 105):
        now[0] = second
        assert fetcher.are_here(large) == {"shard": False}
    go.set()
    until(lambda: fetcher.are_here(large) == {"shard": True})
    assert len(asked) == 2


def test_a_copy_that_is_gone_or_damaged_is_not_the_end(place, elsewhere):
    filled(place)
    elsewhere()
    cache = LatentCache(place)
    assert is_right(cache)
    until(lambda: len(copies_in(place)) == 3)
    for copy in copies_in(place):
        copy.unlink()
    assert is_right(LatentCache(place))
    until(lambda: len(copies_in(place)) == 3)
    for copy in copies_in(place):
        content = bytearray(copy.read_bytes())
        content[-200:] = bytes(200)
        copy.write_bytes(content)
    assert is_right(LatentCache(place))  # by rows; no stored copy is removed for it
    assert is_right(LatentCache(place))
    until(lambda: len(copies_in(place)) == 3)
    for copy in copies_in(place):
        copy.write_bytes(b"half a file")
    assert is_right(LatentCache(place))
    assert len(LatentCache(place)) == len(KEYS)


@pytest.mark.parametrize("content", [b"", b'{"format_version": 1'], ids=["empty", "half"])
def test_a_damaged_copy_of_keys_says_nothing_of_the_shard(place, content):
    filled(place)

    def damage():
        for copy in machine_folder(place).rglob("*.json"):
            copy.write_bytes(content)

    damage()
    cache = LatentCache(place)
    assert is_right(cache)
    damage()
    assert [bad for bad in cache.verify(remove=True) if bad] == []
    damage()
    assert sum(dropped for dropped, _ in cache.prune([LatentKeys(key) for key in KEYS])) == 0
    assert is_right(LatentCache(place))


def test_a_folder_may_have_a_name_that_looks_like_a_pattern(place, elsewhere):
    odd = place / "cache [v2] *?"
    filled(odd)
    elsewhere()
    assert is_right(LatentCache(odd))


@pytest.mark.parametrize("there", ["whole", "half", "none"])
def test_a_copy_that_another_process_has_just_mapped_is_as_good(
    in_memory, tmp_path, monkeypatch, there
):
    (tmp_path / "shard").write_bytes(b"tensors")
    objects.upload(tmp_path / "shard", in_memory / "shard")
    copy = tmp_path / "copies" / "shard"
    real, refused = Path.replace, []

    def replace(self, target):
        """Fail the first rename, as a virus scanner on Windows does, and never replace a mapped
        file."""
        if there != "none":
            copy.write_bytes(b"tensors" if there == "whole" else b"tens")
        if there != "none" or not refused:
            refused.append(target)
            raise PermissionError(13, "Access is denied")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    if there == "half":
        with pytest.raises(StorageError, match=r"No copy of .* could be written"):
            copies.fetch_to(in_memory / "shard", copy, 7)
    else:
        copies.fetch_to(in_memory / "shard", copy, 7)
        assert copy.read_bytes() == b"tensors"
    assert list(copy.parent.iterdir()) == [copy]


def test_two_machines_that_encode_the_same_never_mix_their_files(place, elsewhere):
    elsewhere("b")
    second = LatentCache(place)  # which does not check again before it writes
    elsewhere("a")
    first = LatentCache(place)
    first.write_shard(SIDE, KEYS[:2], values_of(KEYS[:2]), -values_of(KEYS[:2]))
    elsewhere("b")
    other = values_of(KEYS[:2]) + 0.5
    second._moments._write(str(SIDE), KEYS[:2], {"mean": other.half(), "logvar": other.half()})
    elsewhere("c")
    third = LatentCache(place)
    assert third.number_of_shards == 2
    assert all(bad is None for bad in third.verify(remove=False))
    mean, logvar = third.read(KEYS[:2])
    whole = torch.equal(mean.float(), values_of(KEYS[:2])) and torch.equal(mean, -logvar)
    assert whole or (torch.equal(mean.float(), other) and torch.equal(mean, logvar))


def test_what_another_machine_adds_is_taken_in_and_not_written_again(place, elsewhere):
    here = LatentCache(place)
    elsewhere()
    there = LatentCache(place)
    there.write_shard(SIDE, KEYS[:2], values_of(KEYS[:2]), -values_of(KEYS[:2]))
    here.write_shard(SIDE, KEYS[:3], values_of(KEYS[:3]), -values_of(KEYS[:3]))
    assert sorted(len(here._moments._files.described(i).keys) for i in here._moments.indices()) == [
        1,
        2,
    ]
    assert is_right(here, KEYS[:3])


def test_a_shard_appears_with_its_keys_or_not_at_all(bucket, s3):
    place = bucket / "latents"
    cache = LatentCache(place)
    with (
        s3.failing(refusing("AccessDenied", 403, "PUT")),
        pytest.raises(StorageError, match="do not permit"),
    ):
        cache.write_shard(SIDE, KEYS[:2], values_of(KEYS[:2]), values_of(KEYS[:2]))

    def no_keys(environ, ask):
        is_put = environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith(".json")
        return refusing("SlowDown", 503)(environ, ask) if is_put else None

    with s3.failing(no_keys), pytest.raises(StorageError, match="too busy"):
        cache.write_shard(SIDE, KEYS[:2], values_of(KEYS[:2]), -values_of(KEYS[:2]))
    assert len(objects.find(place).objects) == 1  # tensors that no index names
    assert len(LatentCache(place)) == 0
    cache.write_shard(SIDE, KEYS[:2], values_of(KEYS[:2]), -values_of(KEYS[:2]))
    assert is_right(LatentCache(place), KEYS[:2])
    left = [path.name for path in machine_folder(place).rglob("*") if path.name.startswith(".")]
    assert left == []


def test_half_a_row_is_named_and_half_a_shard_is_no_copy(bucket, s3, elsewhere):
    place = bucket / "latents"
    filled(place)
    elsewhere()
    cache = LatentCache(place)
    with (
        s3.failing(cutting(".safetensors")),
        pytest.raises(DatasetError, match="was received incompletely"),
    ):
        cache.read(KEYS)
    assert copies_in(place) == []
    assert is_right(cache)


def test_a_row_that_has_changed_is_found_and_verify_removes_its_shard(place, elsewhere, tmp_path):
    filled(place)
    tensors = sorted(k for k in objects.find(place).objects if k.endswith(".safetensors"))[0]
    content = bytearray(objects.read(place / tensors))
    content[-1] ^= 1
    (tmp_path / "changed").write_bytes(content)
    objects.upload(tmp_path / "changed", place / tensors)
    elsewhere()
    cache = LatentCache(place)
    said = r"has changed since it was written\. impasto dataset cache verify SOURCE --remove"
    with pytest.raises(DatasetError, match=said):
        cache.read(KEYS)
    bad = [shard for shard in LatentCache(place).verify(remove=True) if shard is not None]
    assert [(shard.entries, shard.reason) for shard in bad] == [
        (4, "its bytes have changed since it was written")
    ]
    assert len(LatentCache(place)) == 8
    assert tensors not in objects.find(place).objects


@pytest.mark.parametrize("what", ["keys", "tensors"])
def test_what_cannot_be_read_is_not_said_to_be_written(bucket, s3, elsewhere, what):
    filled(bucket)
    elsewhere()
    ending = {"keys": ".json", "tensors": ".safetensors"}[what]
    said = rf"^s3://\S*{ending} could not be read"
    with s3.failing(cutting(ending)), pytest.raises(StorageError, match=said) as caught:
        list(LatentCache(bucket).verify(remove=False))
    assert "written" not in str(caught.value)


def test_verify_names_what_is_missing(place):
    cache = filled(place)
    tensors = sorted(k for k in objects.find(place).objects if k.endswith(".safetensors"))
    objects.remove(place / tensors[0])
    assert [bad.reason for bad in cache.verify(remove=False) if bad] == ["missing"]


def test_prune_keeps_what_is_wanted(place, elsewhere):
    filled(place)
    elsewhere()
    cache = LatentCache(place)
    wanted = [LatentKeys(key) for key in (*KEYS[:2], *KEYS[4:8])]
    with cache.alone("pruning"):
        dropped = list(cache.prune(wanted))
    assert sorted(entries for entries, _ in dropped) == [0, 2, 4]
    left = LatentCache(place)
    assert len(left) == 6
    assert is_right(left, [keys.plain for keys in wanted])
    assert len([k for k in objects.find(place).objects if k.endswith(".json")]) == 2


def test_tensors_that_nobody_finds_again_go_from_a_store_too(place, monkeypatch):
    cache = filled(place)
    indices = [place / key for key in sorted(objects.find(place).objects) if key.endswith(".json")]
    objects.remove(indices[0])
    tensors = indices[0].with_suffix(".safetensors")
    size = objects.look_up(tensors).size
    assert cache.remove_orphans() == 0
    monkeypatch.setattr(orphans, "LEFT_AFTER_S", -60.0)
    assert cache.remove_orphans() == size
    assert objects.look_up(tensors) is None
    assert len(objects.find(place).objects) == 4


def test_prune_keeps_what_is_damaged_in_a_copy_only(place, elsewhere, tmp_path):
    filled(place)
    for copy in copies_in(place):
        content = bytearray(copy.read_bytes())
        content[-200:] = bytes(200)
        copy.write_bytes(content)
    cache = LatentCache(place)
    wanted = [key for n, key in enumerate(KEYS) if n % 4]  # the last rows of each shard
    dropped = list(cache.prune([LatentKeys(key) for key in wanted]))
    assert [entries for entries, _ in dropped] == [1, 1, 1]
    elsewhere()
    assert len(LatentCache(place)) == 9
    assert is_right(LatentCache(place), wanted)


def test_prune_leaves_what_another_machine_has_just_written(place, elsewhere):
    cache = LatentCache(place)
    elsewhere()
    filled(place)
    assert list(cache.prune([LatentKeys(key) for key in KEYS])) == [(0, 0)] * 3
    assert is_right(LatentCache(place))


def test_prune_drops_what_is_damaged_in_the_store(place, elsewhere, tmp_path):
    filled(place)
    tensors = sorted(k for k in objects.find(place).objects if k.endswith(".safetensors"))[0]
    content = bytearray(objects.read(place / tensors))
    content[-1] ^= 1  # of the last row
    (tmp_path / "changed").write_bytes(content)
    objects.upload(tmp_path / "changed", place / tensors)
    elsewhere()
    cache = LatentCache(place)
    wanted = [LatentKeys(key) for n, key in enumerate(KEYS) if n % 4]
    assert sorted(entries for entries, _ in cache.prune(wanted)) == [1, 1, 2]
    assert len(LatentCache(place)) == 8


def test_a_start_with_many_keys_reads_one_object(bucket, s3, elsewhere, monkeypatch):
    monkeypatch.setattr(shard_index, "KEPT_FROM", 3)
    place = bucket / "latents"
    filled(place).keep_index()
    elsewhere()
    s3.requests.clear()
    cache = LatentCache(place)
    reads = [r for r in s3.requests if r.startswith("GET /") and "/latents/" in r]
    assert len(reads) == 1
    assert "index.table/seg-" in reads[0]
    assert is_right(cache)


def test_filling_a_cache_in_a_store_is_as_on_a_disk(tmp_path, place, elsewhere):
    from conftest import draw_images

    draw_images(tmp_path / "pictures", 4)
    images = plan_of(tmp_path / "pictures").images
    encoder = CountingEncoder()
    here = LatentCache(tmp_path / "latents")
    local = cache_latents(images, here, CountingEncoder().encoder)
    there = LatentCache(place)
    stored = cache_latents(images, there, encoder.encoder)
    assert list(stored.keys) == list(local.keys)
    for key in stored.keys:
        assert torch.equal(there.read([key.plain])[0], here.read([key.plain])[0])
    before = encoder.count
    assert before > 0
    elsewhere()
    again = cache_latents(images, LatentCache(place), encoder.encoder)
    assert again.encoded == 0
    assert encoder.count == before


def test_keys_of_former_plans_stay_on_this_machine_and_go(tmp_path, place, monkeypatch):
    from conftest import draw_images

    monkeypatch.setattr(prepared, "KEPT_FROM", 2)
    monkeypatch.setattr(prepared.tables, "REMOVED_AFTER_NS", -1)
    images = plan_of(draw_images(tmp_path / "pictures", 6)).images
    encoder = CountingEncoder().encoder
    for count in range(2, 7):
        cache_latents(images[:count], LatentCache(place), encoder)
    assert not any(key.startswith("prepared") for key in objects.find(place).objects)
    tables = list(machine_folder(place / "prepared").glob("*.table"))
    assert len(tables) == 4
    again = LatentCache(place)
    with monkeypatch.context() as patch:
        patch.setattr(again.hashes, "of", lambda *_, **__: pytest.fail("hashes were asked for"))
        assert len(cache_latents(images, again, encoder).keys) == 6


def test_tables_are_shared_by_machines(place, elsewhere):
    file = place / "hashes.json"
    elsewhere("a")
    one = KeyedTable(file, SCHEMA, [1], None)
    one.add("x", 1)
    one.finish()
    elsewhere("b")
    two = KeyedTable(file, SCHEMA, [1], None)
    assert two.look_up(["x"]) == {"x": (1,)}
    two.add("y", 2)
    two.finish()
    elsewhere("a")
    assert KeyedTable(file, SCHEMA, [1], None).look_up(["x", "y"]) == {"x": (1,), "y": (2,)}


def test_half_a_segment_counts_as_none_and_is_asked_for_again(bucket, s3, elsewhere):
    folder = bucket / "numbers.table"
    TableFolder(folder, SCHEMA, [1]).append(rows_of(SCHEMA, [("x", 1)]))
    elsewhere()
    with s3.failing(cutting("/numbers.table/seg-")):
        assert len(TableFolder(folder, SCHEMA, [1]).read()) == 0
    assert len(TableFolder(folder, SCHEMA, [1]).read()) == 1


def test_a_damaged_copy_of_a_segment_says_nothing_of_the_segment(place):
    folder = place / "numbers.table"
    TableFolder(folder, SCHEMA, [1]).append(rows_of(SCHEMA, [("x", 1)]))
    (copy,) = machine_folder(folder).glob("seg-*")
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    table = TableFolder(folder, SCHEMA, [1])
    table.append(rows_of(SCHEMA, [("y", 2)]))
    table.rewrite(table.read())
    assert len(TableFolder(folder, SCHEMA, [1]).read()) == 2


def test_a_segment_that_was_replaced_is_removed_from_the_store(place, monkeypatch):
    from impasto.data.columns import tables

    folder = place / "numbers.table"
    table = TableFolder(folder, SCHEMA, [1])
    for number in range(3):
        table.append(rows_of(SCHEMA, [("x", number)]))
    monkeypatch.setattr(tables, "REMOVED_AFTER_NS", -1)
    table.rewrite(table.read())
    assert len(objects.find(folder).objects) == 1
    assert len(TableFolder(folder, SCHEMA, [1]).read()) == 3


def test_a_table_is_read_where_nothing_may_be_removed(bucket, s3, monkeypatch):
    from impasto.data.columns import tables

    folder = bucket / "numbers.table"
    table = TableFolder(folder, SCHEMA, [1])
    table.append(rows_of(SCHEMA, [("x", 1)]))
    table.rewrite(table.read())
    monkeypatch.setattr(tables, "REMOVED_AFTER_NS", -1)
    with s3.failing(refusing("AccessDenied", 403, only="DELETE")):
        assert len(TableFolder(folder, SCHEMA, [1]).read()) == 1
    assert len(objects.find(folder).objects) == 2


def test_states_of_texts_are_kept_in_a_store(place, elsewhere):
    store = TextStore(place / "texts", "encoder")
    store.write([(1, 2), (3, 4)], torch.arange(2 * 77 * 8.0).reshape(2, 77, 8))
    elsewhere()
    other = TextStore(place / "texts", "encoder")
    assert (1, 2) in other
    assert np.array_equal(
        other.read((3, 4)).numpy(), torch.arange(77 * 8.0, 2 * 77 * 8).reshape(77, 8).numpy()
    )


def test_a_full_disk_is_named_and_rows_are_read_all_the_same(place, elsewhere, monkeypatch):
    import errno

    filled(place)
    elsewhere()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(objects, "download", full)
    cache = LatentCache(place)
    told = []
    cache.set_notify(told.append)
    assert is_right(cache)
    until(lambda: told)
    assert "No space left on device. Set IMPASTO_STORE_CACHE to another folder" in told[0]
    assert is_right(cache)


def test_copies_of_segments_go_when_the_store_has_them_no_more(place, elsewhere, monkeypatch):
    from impasto.data.columns import segments, tables

    folder = place / "numbers.table"
    elsewhere("a")
    for number in range(3):
        TableFolder(folder, SCHEMA, [1]).append(rows_of(SCHEMA, [("x", number)]))
    kept = machine_folder(folder)
    elsewhere("b")
    monkeypatch.setattr(tables, "REMOVED_AFTER_NS", -1)
    table = TableFolder(folder, SCHEMA, [1])
    table.rewrite(table.read())
    elsewhere("a")
    assert len(TableFolder(folder, SCHEMA, [1]).read()) == 3
    assert len(list(kept.iterdir())) == 4
    monkeypatch.setattr(segments, "_KEPT_NS", -(10**18))
    assert len(TableFolder(folder, SCHEMA, [1]).read()) == 3
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("given", ["much", "-1", "nan"])
def test_a_limit_that_is_no_number_is_named(given, in_memory, monkeypatch):
    monkeypatch.setenv(copies.LIMIT_VARIABLE, given)
    with pytest.raises(ConfigError, match=f"IMPASTO_STORE_CACHE_GB is '{given}'"):
        LatentCache(in_memory)


def test_a_cache_in_use_is_not_pruned(place):
    from impasto import locks

    cache = filled(place)
    with (
        locks.SharedLock(cache.folder, "training", lambda _: None),
        pytest.raises(DatasetError, match="in use by"),
        cache.alone("pruning"),
    ):
        pass
    assert not Path("s3:").exists()
    assert not Path("memory:").exists()
