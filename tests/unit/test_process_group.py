"""Several processes fill one cache: each does its part, and the result equals one process's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_images
from process_groups import in_threads
from test_latent_cache import CountingEncoder, plan_of

from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache, LatentKeys
from impasto.data.caching.latent_orders import batches_of, cost_of, ordered
from impasto.data.caching.text_store import TextStore
from impasto.data.engines.process_group import ALONE, CachePeers, SingleProcess, peers_of
from impasto.data.subsets import PLAIN, Augmentation, MaskRules, Subset
from impasto.models.text.text_memory import AHEAD_BATCH, TextCache


@pytest.mark.parametrize("pieces", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_parts_are_all_of_the_work_in_order(pieces, number):
    costs = np.random.default_rng(pieces).choice([0.0, 1.0, 1e6], pieces).tolist()
    group = SingleProcess()
    places = []
    for place in range(number):
        group.rank = place
        places += list(range(len(costs)))[CachePeers(group, tuple(range(number))).part_of(costs)]
    assert places == list(range(len(costs)))


def test_parts_cost_about_the_same():
    group = SingleProcess()
    costs = [4.0] * 10 + [1.0] * 40
    for place in range(4):
        group.rank = place
        own = costs[CachePeers(group, (0, 1, 2, 3)).part_of(costs)]
        assert sum(own) == pytest.approx(20, abs=4)


class Watched(CountingEncoder):
    """Records the batches that it has encoded."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def encode(self, pixels):
        self.batches.append(pixels.numpy().tobytes())
        return super().encode(pixels)


def filled(tmp_path, folder, processes, subset=PLAIN, where=lambda rank: "latents"):
    """Return each process's results, with its encoder and cache."""

    def one(group):
        place = tmp_path / where(group.rank)
        place.mkdir(parents=True, exist_ok=True)
        encoder, cache = Watched(), LatentCache(place)
        peers = peers_of(group, place)
        plan = plan_of(folder, subset).images
        return cache_latents(plan, cache, encoder.encoder, peers=peers), encoder, cache, peers

    return in_threads(processes, one)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_come_to_what_one_does(tmp_path, processes):
    folder = draw_images(tmp_path / "pictures", 30)
    subset = Subset(root=folder, flips=True)
    alone = Watched()
    expected = LatentCache(tmp_path / "alone")
    one = cache_latents(plan_of(folder, subset).images, expected, alone.encoder)
    found = filled(tmp_path, folder, processes, subset)
    together = [batch for _, encoder, _, _ in found for batch in encoder.batches]
    assert together == alone.batches  # of the same images, hence the same bits, and none twice
    assert all(encoder.batches for _, encoder, _, _ in found)
    for plan, _, cache, _ in found:
        assert list(plan.keys) == list(one.keys)
        assert plan.encoded == one.encoded == 30
        for keys in plan.keys:
            for key in (keys.plain, keys.flipped):
                assert torch.equal(cache.read([key])[0], expected.read([key])[0])
    again = filled(tmp_path, folder, processes, subset)
    assert not any(encoder.batches for _, encoder, _, _ in again)


def test_an_image_that_one_cannot_decode_is_left_out_by_all(tmp_path):
    folder = draw_images(tmp_path / "pictures", 18)
    for name in ("003.png", "014.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    found = filled(tmp_path, folder, 3)
    names = [[item.path.name for item in plan.skipped] for plan, *_ in found]
    assert names[0] == names[1] == names[2]
    assert sorted(names[0]) == ["003.png", "014.png"]
    assert {len(plan.images) for plan, *_ in found} == {16}
    assert {plan.encoded for plan, *_ in found} == {16}


def test_a_copy_takes_the_place_of_an_image_that_fails_in_each(tmp_path):
    folder = draw_images(tmp_path / "pictures", 9)
    masks = tmp_path / "masks"
    masks.mkdir()
    shutil.copy(folder / "004.png", folder / "copy.png")
    (masks / "004.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    subset = Subset(root=folder, masks=MaskRules(folder=masks))
    for plan, _, cache, _ in filled(tmp_path, folder, 3, subset):
        assert [item.path.name for item in plan.skipped] == ["004.png"]
        assert plan.images[-1].record.path.name == "copy.png"
        assert all(key.plain in cache and cache.has_mask(key.mask) for key in plan.keys)


def test_images_that_change_are_looked_at_by_shares(tmp_path):
    folder = draw_images(tmp_path / "pictures", 8)
    (folder / "007.png").write_bytes((folder / "007.png").read_bytes()[:60])
    subset = Subset(root=folder, augmentation=Augmentation(random_crop=True))
    found = filled(tmp_path, folder, 2, subset)
    assert [[i.path.name for i in plan.skipped] for plan, *_ in found] == [["007.png"]] * 2


def test_who_shares_no_folder_encodes_for_itself(tmp_path):
    """Three processes on two machines: two share a folder, the third has a separate one."""
    folder = draw_images(tmp_path / "pictures", 12)
    found = filled(tmp_path, folder, 3, where=lambda rank: f"machine-{rank // 2}")
    assert [peers.members for *_, peers in found] == [(0, 1), (0, 1), (2,)]
    counts = [encoder.count for _, encoder, _, _ in found]
    assert counts[0] + counts[1] == counts[2] == 12
    assert min(counts) > 0
    assert len({tuple(plan.keys) for plan, *_ in found}) == 1
    assert not list(tmp_path.glob("machine-*/.*.partial"))


def test_who_would_write_something_else_shares_nothing(tmp_path):
    def one(group):
        return peers_of(group, tmp_path, "tf32" if group.rank == 1 else "").members

    assert in_threads(3, one) == [(0, 2), (1,), (0, 2)]
    assert in_threads(2, lambda group: peers_of(group, Path("s3:/bucket/cats")).members) == [
        (0, 1),
        (0, 1),
    ]
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_there_is_encoded_by_nobody(tmp_path):
    folder = draw_images(tmp_path / "pictures", 20)
    few = tmp_path / "few"
    few.mkdir()
    for number in range(0, 20, 2):
        shutil.copy(folder / f"{number:03}.png", few)
    filled(tmp_path, few, 1)
    found = filled(tmp_path, folder, 2)
    assert sum(encoder.count for _, encoder, _, _ in found) == 10
    assert {plan.encoded for plan, *_ in found} == {10}


def test_chunks_of_captions_are_encoded_by_shares(tmp_path):
    chunks = [(number, number + 1) for number in range(5 * AHEAD_BATCH + 3)]
    seen = {}

    def one(group):
        def encode(ids):
            seen.setdefault(group.rank, []).append(tuple(map(tuple, ids.tolist())))
            return ids[:, :, None].float()

        store = TextStore(tmp_path / "texts", "encoder")
        memory = TextCache(1 << 20, torch.device("cpu"), store)
        memory.precompute([[ids] for ids in chunks], encode, CachePeers(group, (0, 1)))
        return [store.read(ids)[0, 0].item() for ids in chunks]

    first, second = in_threads(2, one)
    assert first == second == [float(number) for number, _ in chunks]
    made = [batch for rank in (0, 1) for batch in seen[rank]]
    starts = range(0, len(chunks), AHEAD_BATCH)
    assert made == [tuple(chunks[n : n + AHEAD_BATCH]) for n in starts]
    assert min(len(seen[0]), len(seen[1])) == 3


def test_batches_cost_the_same_where_a_file_cannot_be_read(tmp_path):
    """An unreadable file does not shift portions: no batch is omitted or encoded twice."""
    planned = plan_of(draw_images(tmp_path / "pictures", 6)).images
    lacks = np.array([[True, True, False]] * 3 + [[True, False, False]] * 3)
    keys = [LatentKeys(f"{n}", f"{n}-flipped") for n in range(6)]
    unread = [None, None, *keys[2:]]
    costs = [
        [cost_of(batch) for batch in batches_of(ordered(planned, own, lacks), 2)]
        for own in (keys, unread)
    ]
    assert costs[0] == costs[1]
    assert sum(costs[0]) == sum(
        int(row[:2].sum()) * image.bucket.area for row, image in zip(lacks, planned, strict=True)
    )


def test_one_process_alone_does_everything():
    flags = np.array([True, False, True])
    assert ALONE.agreed(flags) is flags
    assert ALONE.part_of([1.0] * 7) == slice(0, 7)
    assert ALONE.named("Encoding latents") == "Encoding latents"
