"""Programs that encode the same images at once: each image once, and each program gets all."""

import contextlib
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import draw_images
from object_store import refusing
from process_groups import in_threads
from support.warm import running
from test_latent_cache import CountingEncoder, plan_of

from impasto import progress
from impasto.data.caching import latent_orders, stored_claims, unclaimed
from impasto.data.caching.encoding_claims import ClaimOutcome, packed, unpacked
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.folder_claims import (
    FolderClaims,
    keys_file,
    read_keys,
    read_written,
    write_keys,
)
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.caching.stored_claims import StoredClaims
from impasto.data.engines.process_group import AFTERWARDS, CachePeers, SingleProcess
from impasto.data.pixels.content_hashes import stamp_of
from impasto.data.records import Size
from impasto.errors import DatasetError, RunError, StorageError
from impasto.owners import ProcessIdentity
from impasto.progress import SilentProgress
from impasto.storage import objects

WAIT_S = 120.0


class HeldEncoder(CountingEncoder):
    """Blocks in its first batch until it is released."""

    def __init__(self):
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def encode(self, pixels):
        self.begun.set()
        assert self.go.wait(WAIT_S)
        return super().encode(pixels)


class Notes(SilentProgress):
    """Records notes."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(params=["folder", "memory", "s3"])
def cached_in(request, tmp_path):
    """A place for latents: a folder, or an address in each kind of store."""
    if request.param == "folder":
        return tmp_path / "latents"
    return request.getfixturevalue("bucket" if request.param == "s3" else "in_memory") / "latents"


@pytest.fixture
def on_waiting(monkeypatch):
    """Call a function when a program waits for another."""
    calls = []

    def watched(of):
        def living(self, taken):
            for call in calls:
                call()
            return of(self, taken)

        return living

    for claims in (FolderClaims, StoredClaims):
        monkeypatch.setattr(claims, "living", watched(claims.living))
    monkeypatch.setattr(FolderClaims, "looks_every_s", 0.02)
    monkeypatch.setattr(StoredClaims, "looks_every_s", 0.1)  # each check takes several requests
    return calls.append


@pytest.fixture
def other(cached_in):
    """Start a program in a thread, which blocks while it encodes."""
    encoder = HeldEncoder()
    with ThreadPoolExecutor(1) as pool:

        def begin(folder, **options):
            images = plan_of(folder).images
            options = {"cache": LatentCache(cached_in), "encoder": encoder.encoder, **options}
            future = pool.submit(cache_latents, images, **options)
            assert encoder.begun.wait(WAIT_S)
            return encoder, future

        yield begin
        encoder.go.set()


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path / "pictures", 9)


def filled(place, folder, **options):
    """Run another program; return its latents, the images it encoded, and its cache."""
    encoder, cache = CountingEncoder(), LatentCache(place)
    plan = cache_latents(plan_of(folder).images, cache, encoder.encoder, **options)
    return plan, encoder.count, cache


def copied(folder, to, numbers):
    to.mkdir()
    for number in numbers:
        shutil.copy(folder / f"{number:03}.png", to)
    return to


def claims_of(place):
    """Return the remaining claims."""
    if isinstance(place, Path) and place.parts[0] in ("s3:", "memory:"):
        numbers = map(str, stored_claims.numbers_in(place / "claims"))
        taken = ClaimOutcome(frozenset(), frozenset(), tuple(numbers))
        return StoredClaims(place).living(taken)
    return [file for file in (place / "claims").iterdir() if file.suffix != ".written"]


def test_two_programs_encode_each_image_once(cached_in, folder, other, on_waiting):
    encoder, future = other(folder)
    on_waiting(encoder.go.set)
    plan, count, cache = filled(cached_in, folder)
    first = future.result()
    assert (encoder.count, count) == (first.encoded, plan.encoded) == (9, 0)
    assert list(plan.keys) == list(first.keys)
    assert len(plan.keys) == len(cache) == 9
    assert all(key.plain in cache for key in plan.keys)
    assert claims_of(cached_in) == []


def test_what_was_finished_a_moment_ago_is_not_encoded_again(cached_in, folder, other, monkeypatch):
    """Another program finishes after the cache was read, but before its claim is checked."""
    encoder, future = other(folder)

    def late(of):
        def looked(*given, **options):
            encoder.go.set()
            future.result()
            return of(*given, **options)

        return looked

    monkeypatch.setattr(FolderClaims, "_others", late(FolderClaims._others))
    monkeypatch.setattr(StoredClaims, "_read", late(StoredClaims._read))
    plan, count, cache = filled(cached_in, folder)
    assert (len(plan.keys), count, plan.encoded, len(cache)) == (9, 0, 0, 9)


@pytest.mark.parametrize("cached_in", ["folder"], indirect=True)
def test_a_disk_that_lists_late_lets_nothing_be_encoded_twice(cached_in, folder, other, on_waiting):
    """The claim has ended, but this machine's listing does not show the new shards yet."""
    encoder, future = other(folder)
    on_waiting(lambda: (encoder.go.set(), future.result()))
    late = LatentCache(cached_in)
    late._moments._files.indices = list
    counting = CountingEncoder()
    plan = cache_latents(plan_of(folder).images, late, counting.encoder)
    assert list(plan.keys) == list(future.result().keys)
    assert (len(plan.keys), plan.encoded, counting.count) == (9, 0, 0)


@pytest.mark.parametrize("cached_in", ["folder"], indirect=True)
@pytest.mark.parametrize(
    "damage", [b"", b"[1]", b"[[1], 2]", b'[["../../shard-1x1-00", "shard-1x1-00"], []]']
)
def test_names_of_shards_that_are_damaged_cost_encoding_again(
    cached_in, folder, other, on_waiting, damage
):
    encoder, future = other(folder)

    def damaged():
        encoder.go.set()
        future.result()
        for file in (cached_in / "claims").glob("*.written"):
            file.write_bytes(damage)

    on_waiting(damaged)
    late = LatentCache(cached_in)
    late._moments._files.indices = list
    counting = CountingEncoder()
    plan = cache_latents(plan_of(folder).images, late, counting.encoder)
    assert (len(plan.keys), counting.count) == (9, 9)


def test_the_processes_of_a_run_say_together_what_they_have_written(folder, tmp_path):
    place = tmp_path / "latents"
    in_threads(2, lambda group: filled(place, folder, peers=CachePeers(group, (0, 1))))
    (file,) = (place / "claims").iterdir()
    latents, masks = read_written(file)
    assert sorted(latents) == sorted(shard.stem for shard in place.glob("shard-*.json"))
    assert len(latents) > 1
    assert masks == []
    os.utime(file, (0, 0))
    (folder / "000.png").unlink()
    draw_images(folder, 10)
    filled(place, folder)
    (left,) = (place / "claims").iterdir()
    assert left != file  # an hour later it is removed


def test_masks_are_taken_in_by_name_too(tmp_path):
    own, other = LatentCache(tmp_path), LatentCache(tmp_path)
    other.write_masks(Size(64, 64), ["0" * 32], torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert not own.has_mask("0" * 32)
    own.take_in(*other.take_written())
    assert own.has_mask("0" * 32)
    assert other.take_written() == ([], [])


def test_other_images_are_not_waited_for(cached_in, folder, other, tmp_path, on_waiting):
    encoder, future = other(copied(folder, tmp_path / "some", range(5)))

    def refuse():
        raise AssertionError("it waits")

    on_waiting(refuse)
    plan, count, _ = filled(cached_in, copied(folder, tmp_path / "others", range(5, 9)))
    assert (len(plan.keys), count) == (4, 4)
    encoder.go.set()
    assert len(future.result().keys) == 5


def test_what_is_left_is_encoded_meanwhile(cached_in, folder, other, tmp_path, on_waiting):
    encoder, future = other(copied(folder, tmp_path / "some", range(5)))
    there = []

    def release():
        there.append(len(LatentCache(cached_in)))
        encoder.go.set()

    on_waiting(release)
    plan, count, _ = filled(cached_in, folder)
    assert there[0] == 4  # before it waits for the other five
    assert (len(plan.keys), plan.encoded, count) == (9, 4, 4)
    assert (encoder.count, len(future.result().keys)) == (5, 5)


def test_large_datasets_are_shared_portion_by_portion(
    cached_in, folder, other, on_waiting, monkeypatch
):
    """A program takes portions without a claim, and waits at the end."""
    monkeypatch.setattr(latent_orders, "PORTION", 3)
    (folder / "008.png").write_bytes((folder / "008.png").read_bytes()[:60])
    images = [image.record.path.name for image in plan_of(folder).images]
    encoder, future = other(folder)
    on_waiting(encoder.go.set)
    plan, count, cache = filled(cached_in, folder)
    first = future.result()
    assert (encoder.count, count) == (first.encoded, plan.encoded) == (3, 5)
    assert [image.record.path.name for image in plan.images] == images[:8]
    assert list(plan.keys) == list(first.keys)
    assert [item.path.name for item in plan.skipped] == ["008.png"]
    assert [item.path.name for item in first.skipped] == ["008.png"]
    assert len(cache) == 8


@pytest.mark.parametrize("cached_in", ["folder"], indirect=True)
def test_the_processes_of_a_run_postpone_together(
    cached_in, folder, other, on_waiting, monkeypatch
):
    monkeypatch.setattr(latent_orders, "PORTION", 3)
    encoder, future = other(folder)
    on_waiting(encoder.go.set)

    def one(group):
        return filled(cached_in, folder, peers=CachePeers(group, (0, 1)))

    (first, one_made, _), (second, two_made, _) = in_threads(2, one)
    assert list(first.keys) == list(second.keys) == list(future.result().keys)
    assert one_made + two_made == first.encoded == second.encoded == 6
    assert encoder.count == 3


def test_a_program_that_lacks_nothing_neither_claims_nor_waits(cached_in, folder, other, tmp_path):
    filled(cached_in, copied(folder, tmp_path / "some", range(5)))
    encoder, future = other(folder)
    before = objects_or_files(cached_in)
    plan, count, _ = filled(cached_in, tmp_path / "some")
    assert (len(plan.keys), count) == (5, 0)
    assert objects_or_files(cached_in) == before
    encoder.go.set()
    assert future.result().encoded == encoder.count == 4


def objects_or_files(place):
    if place.parts[0] in ("s3:", "memory:"):
        return set(objects.find(place / "claims").objects)
    return {file.name for file in (place / "claims").iterdir()}


def test_damaged_images_are_found_by_each(cached_in, folder, other, on_waiting):
    broken = folder / "004.png"
    broken.write_bytes(broken.read_bytes()[:60])
    encoder, future = other(folder)
    on_waiting(encoder.go.set)
    plan, count, _ = filled(cached_in, folder)
    for found in (plan, future.result()):
        assert [item.path.name for item in found.skipped] == ["004.png"]
        assert len(found.keys) == 8
    assert (encoder.count, count, plan.encoded) == (8, 0, 0)


def test_a_program_that_fails_leaves_its_images_to_others(cached_in, folder, other, on_waiting):
    broken = folder / "008.png"
    broken.write_bytes(broken.read_bytes()[:60])
    encoder, future = other(folder, on_error="stop")
    on_waiting(encoder.go.set)
    plan, count, cache = filled(cached_in, folder)
    with pytest.raises(DatasetError, match=r"008\.png"):
        future.result()
    assert len(plan.keys) == len(cache) == 8
    assert 0 < count <= 8
    assert claims_of(cached_in) == []


KILLED = """
import sys, time
from pathlib import Path
place, folder, encoding, *sys.path = sys.argv[1:]
from test_latent_cache import CountingEncoder, plan_of
from impasto.data.caching import latent_writing
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache

latent_writing.SHARD_SECONDS = 0
cache = LatentCache(Path(place))

class Dying(CountingEncoder):
    def encode(self, pixels):
        if self.count >= 4:
            while not LatentCache(cache.folder):
                time.sleep(0.05)
            Path(encoding).touch()
            time.sleep(600)
        return super().encode(pixels)

cache_latents(plan_of(Path(folder)).images, cache, Dying().encoder)
"""


@pytest.mark.parametrize("cached_in", ["folder", "s3"], indirect=True)
def test_another_program_goes_on_where_one_was_killed(cached_in, folder, tmp_path, on_waiting):
    encoding = tmp_path / "encoding"
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    process = running.start("-c", KILLED, cached_in, folder, encoding, *places)
    there = []

    def kill():
        if process.poll() is None:
            process.kill()
            process.wait()
            there.append(len(LatentCache(cached_in)))

    try:
        while not encoding.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        on_waiting(kill)
        plan, count, cache = filled(cached_in, folder)
    finally:
        process.kill()
        process.communicate()
    assert 0 < there[0] < 9
    assert count == plan.encoded == 9 - there[0]
    assert len(plan.keys) == len(cache) == 9
    assert claims_of(cached_in) == []


@pytest.mark.parametrize("cached_in", ["folder"], indirect=True)
@pytest.mark.parametrize("damage", [b"", b"no keys", bytes(48)])
def test_a_damaged_claim_counts_for_nothing(cached_in, folder, other, damage):
    encoder, future = other(folder)
    file = next((cached_in / "claims").glob("*.keys"))
    assert len(read_keys(file)) == 9
    file.write_bytes(damage)
    plan, count, cache = filled(cached_in, folder)
    assert (len(plan.keys), count) == (9, 9)
    encoder.go.set()
    assert len(future.result().keys) == 9
    cache.refresh()
    assert len(cache) == 9  # encoded twice, stored once


def test_a_damaged_claim_in_a_store_counts_for_nothing(place, folder):
    objects_place = stored_claims.file_of(place / "claims", 1)
    stored_claims.claims.write(objects_place, b"no claim" * 300)
    plan, count, _ = filled(place, folder)
    assert (len(plan.keys), count) == (9, 9)


@pytest.mark.parametrize("cached_in", ["folder"], indirect=True)
def test_keys_without_an_owner_are_removed(cached_in, folder):
    (cached_in / "claims").mkdir(parents=True)
    write_keys(cached_in / "claims" / "gone.keys", frozenset({bytes(16)}))
    assert len(filled(cached_in, folder)[0].keys) == 9
    assert claims_of(cached_in) == []


def test_keys_come_back_as_they_were_written():
    keys = frozenset(bytes([number]) * 16 for number in range(40))
    assert unpacked(packed(keys)) == keys
    assert unpacked(packed(keys)[:-16]) == unpacked(b"") == frozenset()
    assert keys_file(Path("claims/.in-use.x.1-2-abc.lock")) == Path("claims/x.1-2-abc.keys")


def test_the_processes_of_a_run_wait_together(cached_in, folder, other, tmp_path, on_waiting):
    encoder, future = other(copied(folder, tmp_path / "some", range(0, 9, 2)))
    on_waiting(encoder.go.set)

    def one(group):
        return filled(cached_in, folder, peers=CachePeers(group, (0, 1)))

    (first, one_made, _), (second, two_made, _) = in_threads(2, one)
    assert list(first.keys) == list(second.keys)
    assert len(first.keys) == 9
    assert one_made + two_made == first.encoded == second.encoded == 4
    assert encoder.count == len(future.result().keys) == 5


def test_who_comes_after_the_first_of_a_ray_run_waits_for_nobody(cached_in, folder, other):
    encoder, future = other(folder)
    before = objects_or_files(cached_in)
    plan, count, _ = filled(cached_in, folder, peers=AFTERWARDS)
    assert (len(plan.keys), count) == (9, 9)
    assert objects_or_files(cached_in) == before
    encoder.go.set()
    assert len(future.result().keys) == 9


class Failing(SingleProcess):
    """A group in which another process fails when this one waits."""

    has_failed = False

    def fail(self):
        self.has_failed = True

    def raise_fault(self):
        if self.has_failed:
            raise RunError("another process has ended")


def test_the_failure_of_another_process_ends_the_waiting(cached_in, folder, other, on_waiting):
    encoder, future = other(folder)
    group = Failing()
    on_waiting(group.fail)
    with pytest.raises(RunError, match="another process has ended"):
        filled(cached_in, folder, peers=CachePeers(group, (0,)))
    encoder.go.set()
    assert len(future.result().keys) == 9


@pytest.mark.parametrize("cached_in", ["folder", "memory"], indirect=True)
def test_who_is_waited_for_is_named(cached_in, folder, other, on_waiting, monkeypatch):
    monkeypatch.setattr("impasto.locks._NAMED_AFTER_S", 0.0)
    encoder, future = other(folder)
    shown = Notes()

    def look():
        if shown.notes:
            encoder.go.set()

    on_waiting(look)
    filled(cached_in, folder, progress=shown)
    future.result()
    assert f"Waiting for process {os.getpid()} on " in shown.notes[0]
    assert len(shown.notes) == 1


def test_where_no_claims_can_be_kept_damaged_images_are_still_found(folder, tmp_path):
    """The same holds for a complete read-only cache."""
    cache = tmp_path / "latents"
    filled(cache, folder)
    shutil.rmtree(cache / "claims")
    (cache / "claims").write_text("no folder", encoding="utf-8")
    (folder / "bad.png").write_bytes((folder / "000.png").read_bytes()[:60])
    plan, count, _ = filled(cache, folder)
    assert (len(plan.keys), count, len(plan.skipped)) == (9, 0, 1)


def test_a_store_that_takes_nothing_is_read_beside_damaged_images(bucket, s3, folder):
    filled(bucket, folder)
    (folder / "bad.png").write_bytes((folder / "000.png").read_bytes()[:60])
    LatentCache(bucket).hashes.of({p: stamp_of(p) for p in folder.iterdir()})
    with s3.failing(refusing("AccessDenied", 403, "PUT")):
        plan, count, _ = filled(bucket, folder)
    assert (len(plan.keys), count, len(plan.skipped)) == (9, 0, 1)


def test_a_claim_in_a_store_gives_signs_of_life_while_it_is_held(in_memory, folder, monkeypatch):
    monkeypatch.setattr(stored_claims, "HEARTBEAT_S", 0.01)
    encoder = HeldEncoder()

    def beats():
        return [key for key in objects.find(in_memory / "claims").objects if key.endswith(".beat")]

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            cache_latents, plan_of(folder).images, LatentCache(in_memory), encoder.encoder
        )
        assert encoder.begun.wait(WAIT_S)
        end = time.monotonic() + WAIT_S
        while not beats():
            assert time.monotonic() < end
        encoder.go.set()
        future.result()
    assert beats() == []


class Counting(SilentProgress):
    """Counts the values passed to the progress of a wait."""

    done, is_open = 0, False

    @contextlib.contextmanager
    def stage(self, description, total, unit):
        def advance(number):
            if is_waiting:
                self.done += number

        is_waiting = description == "Waiting for another program"
        self.is_open |= is_waiting
        yield advance


@pytest.mark.parametrize("cached_in", ["folder"], indirect=True)
def test_what_another_program_has_made_is_counted_meanwhile(
    cached_in, folder, other, tmp_path, on_waiting, monkeypatch
):
    monkeypatch.setattr(unclaimed, "COUNTED_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.0)
    filled(tmp_path / "known", folder)
    encoder, future = other(folder)
    shown = Counting()

    def look():
        if not shown.is_open:
            return
        if not list(cached_in.glob("shard-*")):
            for shard in sorted((tmp_path / "known").glob("shard-*"), reverse=True):
                shutil.copy(shard, cached_in)

    on_waiting(look)
    plan, count, _ = filled(cached_in, folder, progress=shown)
    assert not future.done()  # the cache is complete, so no program waits for its claim
    assert (len(plan.keys), count, shown.done) == (9, 0, 9)
    encoder.go.set()
    future.result()


@pytest.mark.parametrize("cached_in", ["folder"], indirect=True)
def test_who_gives_no_sign_of_life_is_not_waited_for(cached_in, folder, other):
    """A stopped process still exists, but without a recent sign of life it is not waited for."""
    encoder, future = other(folder)
    (presence,) = (cached_in / "claims").glob(".in-use.*.lock")
    long_ago = time.time() - 200
    os.utime(presence, (long_ago, long_ago))
    plan, count, _ = filled(cached_in, folder)
    assert (len(plan.keys), count) == (9, 9)
    encoder.go.set()
    assert len(future.result().keys) == 9


@pytest.mark.parametrize("cached_in", ["memory"], indirect=True)
def test_a_look_that_fails_does_not_end_the_waiting(
    cached_in, folder, other, on_waiting, monkeypatch
):
    encoder, future = other(folder)
    looks = []

    def fail_once():
        looks.append(1)
        if len(looks) == 1:
            raise StorageError("the store does not answer")
        encoder.go.set()

    on_waiting(fail_once)
    plan, count, _ = filled(cached_in, folder)
    assert (len(plan.keys), count) == (9, 0)
    assert len(looks) > 1
    future.result()


def claim_of_another_machine(place, number, keys):
    """Write a claim as left by a program on a machine that is gone."""
    own = stored_claims._OwnClaim(place / "claims", keys)
    own._said |= {"owner": ProcessIdentity(7, 7, "ffffff").token, "host": "far"}
    own.number = number
    stored_claims.claims.write(
        stored_claims.file_of(place / "claims", number), own._content(keys, ended=False)
    )


def test_a_machine_without_a_sign_of_life_counts_as_ended(place, folder, on_waiting, monkeypatch):
    keys = [key.plain for key in filled(place / "known", folder)[0].keys]
    claim_of_another_machine(place, 1, frozenset(map(bytes.fromhex, keys)))
    claims, there = StoredClaims(place), []
    there += claims.living(ClaimOutcome(frozenset(), frozenset(), ("1",)))
    assert "process 7 on far" in there[0].description
    on_waiting(lambda: monkeypatch.setattr(stored_claims, "STALE_S", 0.0))
    plan, count, _ = filled(place, folder)
    assert (len(plan.keys), count) == (9, 9)


def test_a_number_is_given_once(place, monkeypatch):
    """Of two programs that check at the same moment, one gets the number, the other the next."""
    folder, both = place / "claims", threading.Barrier(2)
    seen = threading.local()
    real = stored_claims.numbers_in

    def numbers_in(where):
        found = real(where)
        if not getattr(seen, "is_past", False):
            seen.is_past = True
            both.wait(WAIT_S)
        return found

    create, putting = stored_claims.claims.create, threading.Lock()

    def create_alone(where, content):
        with putting:  # a store decides atomically; those of the tests check first
            return create(where, content)

    monkeypatch.setattr(stored_claims, "numbers_in", numbers_in)
    monkeypatch.setattr(stored_claims.claims, "create", create_alone)
    own = [stored_claims._OwnClaim(folder, frozenset({bytes([n]) * 16})) for n in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda claim: claim.take(), own))
    assert sorted(claim.number for claim in own) == [1, 2]


def test_who_gets_a_number_that_was_removed_takes_another(place, monkeypatch):
    folder, real = place / "claims", stored_claims.numbers_in
    for number in range(2, stored_claims.KEPT + 3):
        stored_claims.claims.write(stored_claims.file_of(folder, number), b"ended")
    answers = [set()]  # its state before it slept
    monkeypatch.setattr(
        stored_claims, "numbers_in", lambda where: answers.pop() if answers else real(where)
    )
    own = stored_claims._OwnClaim(folder, frozenset({bytes(16)}))
    there = own.take()
    assert own.number == stored_claims.KEPT + 3 == max(there)


def test_ended_claims_are_removed_but_for_the_newest(in_memory, folder):
    cache = in_memory / "latents"
    for number in range(1, 30):
        stored_claims.claims.write(stored_claims.file_of(cache / "claims", number), b"ended")
    filled(cache, folder)
    left = stored_claims.numbers_in(cache / "claims")
    assert left == set(range(30 - stored_claims.KEPT + 1, 31))


def test_an_old_claim_that_cannot_be_read_just_now_stays(in_memory, folder, monkeypatch):
    cache = in_memory / "latents"
    for number in range(1, 30):
        stored_claims.claims.write(stored_claims.file_of(cache / "claims", number), b"ended")
    read_all = objects.read_all

    def but_the_second(places):
        read = read_all(places)
        return [
            OSError("503") if place.name == "00000002.keys" else content
            for place, content in zip(places, read, strict=True)
        ]

    monkeypatch.setattr(objects, "read_all", but_the_second)
    filled(cache, folder)
    assert min(stored_claims.numbers_in(cache / "claims")) == 2


def test_who_was_taken_for_killed_leaves_no_sign_of_life(in_memory):
    claims = StoredClaims(in_memory / "latents")
    with claims.taken(lambda: frozenset({bytes(16)}), lambda _: None):
        (number,) = stored_claims.numbers_in(in_memory / "latents" / "claims")
        folder = in_memory / "latents" / "claims"
        stored_claims.claims.write(stored_claims._beat_of(folder, number), b"alive")
        objects.remove(stored_claims.file_of(folder, number))
    assert objects.find(in_memory / "latents" / "claims").objects == {}
