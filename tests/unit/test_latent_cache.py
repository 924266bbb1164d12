"""The latent cache: content decides, nothing is encoded twice, no damaged latents are returned."""

import dataclasses
import errno
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_images
from PIL import Image
from support.warm import running

from impasto.data.caching import device_encoding, latent_writing
from impasto.data.caching.encoding import Encode, MomentsEncoder, to_model_range
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.engines.stages import Failure
from impasto.data.pixels import rendering
from impasto.data.pixels.content_hashes import HashFiles
from impasto.data.pixels.rendering import render
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import decode_all, scan_folder
from impasto.data.sharding import shard_store
from impasto.data.sharding.shards import Shards
from impasto.data.subsets import PLAIN, Augmentation, MaskRules, Subset
from impasto.errors import DatasetError, StorageError
from impasto.storage_errors import storage_error


class CountingEncoder:
    """A stand-in for a VAE: moments are computed from the pixels, and images are counted."""

    def __init__(self, fingerprint="vae-1", batch_size=4, exactly=None):
        self.count = 0
        self.encoder = MomentsEncoder(self.encode, fingerprint, batch_size, exactly)

    def encode(self, pixels):
        self.count += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([mean, mean[:, :1]], dim=1)
        return mean, torch.full_like(mean, -6.0)


def plan_of(folder, subset=PLAIN):
    records = scan_folder(folder, subset=subset).records
    return plan_images(records, Size(80, 80), rules=BucketRules(min_side=32, max_side=96, step=32))


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path / "pictures", 9)


def run(folder, tmp_path, encoder=None, subset=PLAIN):
    encoder = encoder or CountingEncoder()
    cache = LatentCache(tmp_path / "latents")
    return cache, cache_latents(plan_of(folder, subset).images, cache, encoder.encoder), encoder


def test_images_of_some_records_keep_their_keys(folder, tmp_path):
    _, cached, _ = run(folder, tmp_path)
    among = cached.among(cached.table.records.select(np.array([5, 2, 2])))
    assert among.images == [cached.images[n] for n in (2, 5)]
    assert among.keys == [cached.keys[n] for n in (2, 5)]


def test_moments_read_back_as_encoded(folder, tmp_path):
    cache, cached, encoder = run(folder, tmp_path)
    for image, key in zip(cached.images, cached.keys, strict=True):
        expected, _ = encoder.encode(to_model_range([render(image).pixels]))
        mean, logvar = cache.read([key.plain])
        assert mean.dtype == logvar.dtype == torch.float16
        torch.testing.assert_close(mean.float(), expected, atol=2**-11, rtol=2**-11)
        assert (logvar == -6).all()


def test_nothing_is_encoded_twice(folder, tmp_path):
    run(folder, tmp_path)
    _, cached, encoder = run(folder, tmp_path)
    assert encoder.count == 0
    assert len(cached.keys) == 9


def test_one_new_picture_encodes_one(folder, tmp_path):
    run(folder, tmp_path)
    shutil.copy(folder / "000.png", folder / "copy.png")  # the same content: nothing to encode
    draw_images(tmp_path / "more", 1, seed=99)
    shutil.copy(tmp_path / "more" / "000.png", folder / "new.png")
    _, cached, encoder = run(folder, tmp_path)
    assert encoder.count == 1
    assert len(cached.keys) == 11


def test_renaming_and_moving_cost_nothing(folder, tmp_path):
    run(folder, tmp_path)
    folder.rename(tmp_path / "elsewhere")
    _, _, encoder = run(tmp_path / "elsewhere", tmp_path)
    assert encoder.count == 0


def test_a_changed_picture_is_encoded_again(folder, tmp_path):
    _, before, _ = run(folder, tmp_path)
    shutil.copy(folder / "001.png", folder / "004.png")
    (folder / "004.png").touch()
    _, after, _ = run(folder, tmp_path)
    assert before.keys[4] != after.keys[4]
    assert after.keys[4] == after.keys[1]


def test_another_vae_or_another_size_finds_nothing(folder, tmp_path):
    run(folder, tmp_path)
    _, _, encoder = run(folder, tmp_path, CountingEncoder("vae-2"))
    assert encoder.count == 9
    cache = LatentCache(tmp_path / "latents")
    other = CountingEncoder()
    bigger = plan_images(
        scan_folder(folder).records,
        Size(96, 96),
        rules=BucketRules(min_side=32, max_side=96, step=32),
    )
    cache_latents(bigger.images, cache, other.encoder)
    assert other.count == 3  # the squares grow; the others keep their size, so they are found


def test_a_broken_picture_is_skipped_with_its_name(folder, tmp_path):
    broken(folder / "004.png")
    _, cached, _ = run(folder, tmp_path)
    assert [item.path.name for item in cached.skipped] == ["004.png"]
    assert len(cached.keys) == 8


def broken(path):
    """Write an image that can be opened but not decoded."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def masked(folder, tmp_path):
    """Write a folder of masks for some images; return it, and the images as its subset."""
    masks = tmp_path / "masks"
    masks.mkdir()
    return masks, Subset(root=folder, masks=MaskRules(folder=masks))


def test_copies_of_a_broken_picture_are_skipped_by_name_too(folder, tmp_path):
    broken(folder / "004.png")
    for name in ("005.png", "006.png"):
        shutil.copy(folder / "004.png", folder / name)
    for _ in range(2):
        _, cached, _ = run(folder, tmp_path)
        assert [item.path.name for item in cached.skipped] == ["004.png", "005.png", "006.png"]
        assert len({item.reason for item in cached.skipped}) == 1
        assert len(cached.keys) == 6


def test_a_copy_takes_the_place_of_a_picture_whose_mask_is_broken(folder, tmp_path):
    masks, subset = masked(folder, tmp_path)
    for name in ("copy.png", "last.png"):
        shutil.copy(folder / "000.png", folder / name)
    (masks / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    (masks / "copy.png").write_bytes(b"\x89PNG\r\n\x1a\n another")
    for expected in (9, 0):
        cache, cached, encoder = run(folder, tmp_path, subset=subset)
        assert encoder.count == expected
        assert [item.path.name for item in cached.skipped] == ["000.png", "copy.png"]
        assert [image.record.path.name for image in cached.images][-1] == "last.png"
        assert cached.keys[-1].plain in cache


def goes_once_hashed(file, cache, monkeypatch):
    """A file disappears between its hash and its decoding."""
    real = cache.hashes.of

    def hashed_then_gone(*arguments, **named):
        digests = real(*arguments, **named)
        file.unlink()
        return digests

    monkeypatch.setattr(cache.hashes, "of", hashed_then_gone)


def test_a_copy_takes_the_place_of_a_picture_that_vanishes(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "004.png", folder / "copy.png")
    cache, plan = LatentCache(tmp_path / "latents"), plan_of(folder)
    goes_once_hashed(folder / "004.png", cache, monkeypatch)
    cached = cache_latents(plan.images, cache, CountingEncoder().encoder)
    assert [item.path.name for item in cached.skipped] == ["004.png"]
    assert [image.record.path.name for image in cached.images][-1] == "copy.png"


def test_a_picture_whose_latent_goes_meanwhile_is_named(folder, tmp_path, monkeypatch):
    run(folder, tmp_path)
    draw_images(tmp_path / "more", 1, seed=99)
    shutil.copy(tmp_path / "more" / "000.png", folder / "new.png")
    cache = LatentCache(tmp_path / "latents")
    lost = shard_files(tmp_path)[0].with_suffix(".json")
    names = json.loads(lost.read_text(encoding="utf-8"))["keys"]
    real = cache.write_shard

    def another_removes(*arguments):
        cache._moments.remove(lost)
        real(*arguments)

    monkeypatch.setattr(cache, "write_shard", another_removes)
    cached = cache_latents(plan_of(folder).images, cache, CountingEncoder().encoder)
    assert len(cached.skipped) == len(names) == 3
    assert {item.reason for item in cached.skipped} == {
        "its latents were removed from the cache while others were encoded"
    }
    assert len(cached.keys) == 7


def test_a_mask_that_cannot_be_read_is_not_taken_for_no_mask(folder, tmp_path, monkeypatch):
    masks, subset = masked(folder, tmp_path)
    Image.new("L", (64, 64), 0).save(masks / "000.png")
    real = HashFiles._one

    def unreadable(self, path):
        if path.parent == masks:
            return Failure("Input/output error", is_transient=True)
        return real(self, path)

    monkeypatch.setattr(HashFiles, "_one", unreadable)
    _, cached, _ = run(folder, tmp_path, subset=subset)
    assert [(item.path.name, item.reason) for item in cached.skipped] == [
        ("000.png", "its mask vanished or became unreadable")
    ]
    monkeypatch.undo()
    (masks / "000.png").unlink()
    cache, cached, _ = run(folder, tmp_path, subset=subset)
    assert cache.read_masks([cached.keys[0].mask]).min() == 255


def test_all_broken_is_an_error(folder, tmp_path):
    plan = plan_of(folder)
    for path in folder.glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match="None of the 9 images could be decoded"):
        cache_latents(plan.images, LatentCache(tmp_path / "latents"), CountingEncoder().encoder)


@pytest.mark.parametrize("damage", ["cut", "missing", "index", "entries"])
def test_a_damaged_shard_is_encoded_again(folder, tmp_path, damage):
    _, cached, _ = run(folder, tmp_path)
    shard = next((tmp_path / "latents").glob("shard-64x64-*.safetensors"))
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "missing":
        shard.unlink()
    elif damage == "index":
        shard.with_suffix(".json").write_text('{"format_ver', encoding="utf-8")
    else:
        index = json.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))
        index["keys"].pop()
        shard.with_suffix(".json").write_text(json.dumps(index), encoding="utf-8")
    cache, again, encoder = run(folder, tmp_path)
    assert encoder.count == 3  # the images of that one bucket
    assert again.keys == cached.keys
    assert cache.read([again.keys[0].plain])[0].shape == (1, 4, 8, 8)


def test_a_shard_without_index_does_not_exist(folder, tmp_path):
    """A process killed between tensors and index leaves such a shard."""
    run(folder, tmp_path)
    for index in (tmp_path / "latents").glob("shard-*.json"):
        index.unlink()
    _, _, encoder = run(folder, tmp_path)
    assert encoder.count == 9


def test_a_newer_format_is_refused(folder, tmp_path):
    run(folder, tmp_path)
    index = next((tmp_path / "latents").glob("shard-*.json"))
    stored = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**stored, "format_version": 99}), encoding="utf-8")
    with pytest.raises(DatasetError, match="newer Impasto"):
        LatentCache(tmp_path / "latents")


def test_a_full_disk_while_caching_keeps_what_was_finished(folder, tmp_path, monkeypatch):
    import errno

    from impasto.data.sharding import shard_store
    from impasto.errors import StorageError

    real, calls = shard_store.save_file, []

    def save(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(shard_store, "save_file", save)
    with pytest.raises(StorageError, match="disk is full"):
        run(folder, tmp_path)
    names = [p.name for p in (tmp_path / "latents").iterdir()]
    assert len([n for n in names if n.startswith("shard-")]) == 2  # one shard and its index
    assert not [n for n in names if n.endswith(".partial")]
    monkeypatch.undo()
    _, cached, encoder = run(folder, tmp_path)
    assert len(cached.keys) == 9
    assert encoder.count == 6


def test_mirror_images_are_entries_of_their_own(folder, tmp_path):
    (folder / "001.txt").write_text("a ball on the LEFT", encoding="utf-8")
    (folder / "002.txt").write_text("leftover, bright", encoding="utf-8")
    subset = Subset(root=folder, flips=True, flip_safe=("left", "right"))
    cache, cached, encoder = run(folder, tmp_path, subset=subset)
    assert encoder.count == 17
    for image, key in zip(cached.images, cached.keys, strict=True):
        if image.record.path.name == "001.png":
            assert key.flipped == ""
            continue
        plain, flipped = cache.read([key.plain])[0], cache.read([key.flipped])[0]
        torch.testing.assert_close(flipped, plain.flip(-1), atol=1e-3, rtol=1e-3)
    _, _, again = run(folder, tmp_path, subset=subset)
    assert again.count == 0
    _, _, unflipped = run(folder, tmp_path)
    assert unflipped.count == 0


def test_another_interpolation_is_another_latent(folder, tmp_path):
    run(folder, tmp_path)
    _, _, encoder = run(folder, tmp_path, subset=Subset(root=folder, interpolation="area"))
    assert encoder.count == 9


def test_masks_are_kept_beside_the_latents_and_follow_their_file(folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (64, 64), 0).save(masks / "000.png")
    subset = Subset(root=folder, masks=MaskRules(folder=masks))
    cache, cached, encoder = run(folder, tmp_path, subset=subset)
    assert encoder.count == 9
    assert cache.read_masks([cached.keys[0].mask]).max() == 0
    assert cache.read_masks([cached.keys[3].mask]).min() == 255
    Image.new("L", (64, 64), 255).save(masks / "000.png")
    cache, changed, encoder = run(folder, tmp_path, subset=subset)
    assert encoder.count == 0
    assert cache.read_masks([changed.keys[0].mask]).min() == 255


def overflowing(pixels):
    """Return moments that overflow for some images, as in half precision: those with much red."""
    mean, logvar = CountingEncoder().encode(pixels)
    mean[pixels[:, 0].mean((1, 2)) > pixels[:, 2].mean((1, 2))] = torch.nan
    return mean, logvar


def test_what_overflows_is_encoded_again_exactly(folder, tmp_path):
    exact = CountingEncoder()
    encoder = MomentsEncoder(overflowing, "half", 4, exact.encode)
    cache = LatentCache(tmp_path / "latents")
    cached = cache_latents(plan_of(folder).images, cache, encoder)
    assert 0 < exact.count < 9
    assert len(cached.keys) == 9
    assert all(torch.isfinite(cache.read([key.plain])[0]).all() for key in cached.keys)


def test_what_stays_infinite_is_skipped_by_name(folder, tmp_path):
    encoder = MomentsEncoder(overflowing, "half", 4)
    cached = cache_latents(plan_of(folder).images, LatentCache(tmp_path / "latents"), encoder)
    assert [item.path.name for item in cached.skipped] == ["000.png", "003.png", "006.png"]
    assert "NaN or infinite" in cached.skipped[0].reason
    assert len(cached.keys) == 6


def test_a_strict_policy_stops_at_the_first_fault(folder, tmp_path):
    plan = plan_of(folder)
    (folder / "004.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"004\.png: the file is empty"):
        cache_latents(
            plan.images,
            LatentCache(tmp_path / "latents"),
            CountingEncoder().encoder,
            on_error="stop",
        )


def test_worker_processes_make_the_same_latents(folder, tmp_path):
    cache, cached, _ = run(folder, tmp_path)
    other = LatentCache(tmp_path / "other")
    by_processes = cache_latents(
        plan_of(folder).images, other, CountingEncoder().encoder, workers=2
    )
    assert by_processes.keys == cached.keys
    for key in cached.keys:
        assert torch.equal(cache.read([key.plain])[0], other.read([key.plain])[0])


def test_what_changes_each_time_is_not_encoded_but_checked(folder, tmp_path):
    subset = Subset(root=folder, augmentation=Augmentation(random_crop=True))
    plan = plan_of(folder, subset)
    content = (folder / "004.png").read_bytes()
    (folder / "004.png").write_bytes(content[: len(content) // 2])
    encoder = CountingEncoder()
    cached = cache_latents(plan.images, LatentCache(tmp_path / "latents"), encoder.encoder)
    assert encoder.count == 0
    assert [item.path.name for item in cached.skipped] == ["004.png"]
    assert {key.plain for key in cached.keys} == {""}


def test_what_changes_each_time_is_decoded_once(folder, tmp_path, monkeypatch):
    subset = Subset(root=folder, augmentation=Augmentation(random_crop=True))
    broken(folder / "004.png")
    shutil.copy(folder / "005.png", folder / "copy.png")
    scan = decode_all(scan_folder(folder), memory=tmp_path / "decoded.json")
    assert len(scan.records) == 9
    (folder / "003.png").touch()
    decoded, real = [], rendering.decoded_size
    monkeypatch.setattr(
        rendering, "decoded_size", lambda record: (decoded.append(record.path.name), real(record))
    )
    for _ in range(2):
        _, cached, _ = run(folder, tmp_path, subset=subset)
        assert decoded == ["003.png"]
        assert [item.path.name for item in cached.skipped] == ["004.png"]
        assert len(cached.keys) == 9


def shard_files(tmp_path):
    return sorted((tmp_path / "latents").glob("shard-*.safetensors"))


@pytest.mark.parametrize("damage", ["a bit", "cut", "index", "nan"])
def test_verifying_finds_what_a_look_at_the_header_does_not(folder, tmp_path, damage):
    cache, cached, _ = run(folder, tmp_path)
    assert list(cache.verify(remove=False)) == [None, None, None]
    shard = shard_files(tmp_path)[1]
    content = bytearray(shard.read_bytes())
    if damage == "a bit":
        content[-5] ^= 4
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-10])
    elif damage == "index":
        shard.with_suffix(".json").write_text("{", encoding="utf-8")
    else:  # written in this state, with a matching hash
        keys = json.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))["keys"]
        bad = torch.full((len(keys), 4, 8, 8), torch.inf)
        shard.unlink()
        size = shard.name.split("-")[1].split("x")
        cache.write_shard(Size(int(size[0]), int(size[1])), keys, bad, bad)
    fresh = LatentCache(tmp_path / "latents")
    faults = [fault for fault in fresh.verify(remove=False) if fault is not None]
    assert len(faults) == 1
    assert shard.stem in str(faults[0].file)
    assert [fault is None for fault in fresh.verify(remove=True)].count(False) == 1
    assert list(LatentCache(tmp_path / "latents").verify(remove=False)) == [None, None]
    _, again, encoder = run(folder, tmp_path)
    assert encoder.count == 3
    assert again.keys == cached.keys


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_a_shard_that_the_disk_does_not_give_is_no_damaged_one(folder, tmp_path, ending):
    _, cached, _ = run(folder, tmp_path)
    file = shard_files(tmp_path)[1].with_suffix(ending)
    aside = file.rename(tmp_path / file.name)
    file.symlink_to(file)  # opening it fails with ELOOP
    cache = LatentCache(tmp_path / "latents")
    assert len(cache) == 6
    faults = [fault for fault in cache.verify(remove=True) if fault]
    assert [fault.is_unread for fault in faults] == [True]
    assert "cannot be read (Too many levels of symbolic links)" in faults[0].reason
    assert list(cache.prune(set(cached.keys))) == [(0, 0)] * 3
    assert len(list(cache.prune(set()))) == 3
    file.unlink()
    aside.rename(file)
    cache.refresh()
    assert len(cache) == 3
    assert list(LatentCache(tmp_path / "latents").verify(remove=False)) == [None]


def test_a_flipped_bit_is_found_where_it_is_read_and_made_anew(folder, tmp_path):
    _, cached, _ = run(folder, tmp_path)
    shard = shard_files(tmp_path)[1]
    keys = json.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))["keys"]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4  # of the last row
    shard.write_bytes(content)
    fresh = LatentCache(tmp_path / "latents")
    fresh.read(keys[:-1])
    with pytest.raises(DatasetError, match="has changed since it was written"):
        fresh.read(keys)
    assert not any(key in LatentCache(tmp_path / "latents") for key in keys)
    healed, again, encoder = run(folder, tmp_path)
    assert encoder.count == len(keys)
    assert again.keys == cached.keys
    healed.read(keys)


def test_pruning_does_not_pass_on_a_flipped_bit(folder, tmp_path):
    """A rewritten shard would get a new CRC-32, and look intact for ever."""
    _, cached, _ = run(folder, tmp_path)
    shard = shard_files(tmp_path)[1]
    keys = json.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))["keys"]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4  # of the last row
    shard.write_bytes(content)
    fresh = LatentCache(tmp_path / "latents")
    wanted = {key for key in cached.keys if key.plain != keys[0]}
    assert sum(count for count, _ in fresh.prune(wanted)) == 2
    left = LatentCache(tmp_path / "latents")
    assert [key in left for key in keys] == [False, *[True] * (len(keys) - 2), False]


def test_a_damaged_shard_that_cannot_be_removed_is_named(folder, tmp_path, monkeypatch):
    run(folder, tmp_path)
    shard = shard_files(tmp_path)[1]
    keys = json.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))["keys"]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4
    shard.write_bytes(content)

    def refuse(self, **_):
        raise PermissionError(errno.EROFS, "read-only file system")

    fresh = LatentCache(tmp_path / "latents")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DatasetError, match=r"could not be removed \(read-only file system\)"):
        fresh.read(keys)


def test_shards_of_before_without_sums_are_read(folder, tmp_path):
    _, cached, _ = run(folder, tmp_path)
    for shard in shard_files(tmp_path):
        index = shard.with_suffix(".json")
        stored = json.loads(index.read_text(encoding="utf-8"))
        del stored["crc32"]
        index.write_text(json.dumps(stored), encoding="utf-8")
    _, again, encoder = run(folder, tmp_path)
    assert encoder.count == 0
    assert again.keys == cached.keys


def test_pruning_keeps_what_is_wanted_and_nothing_else(folder, tmp_path):
    cache, cached, _ = run(folder, tmp_path)
    values = {key: cache.read([key.plain])[0].clone() for key in cached.keys}
    wanted = [key for i, key in enumerate(cached.keys) if i not in (0, 1, 4, 7)]
    results = list(cache.prune(wanted))
    assert sum(dropped for dropped, _ in results) == 4
    assert sum(freed for _, freed in results) > 0
    fresh = LatentCache(tmp_path / "latents")
    assert len(fresh) == 5
    for key in wanted:
        assert torch.equal(fresh.read([key.plain])[0], values[key])
    assert len(shard_files(tmp_path)) == 2  # one bucket is empty now
    assert [fault for fault in fresh.verify(remove=False) if fault] == []


def keys_in(shard):
    return json.loads(shard.with_suffix(".json").read_text(encoding="utf-8"))["keys"]


def without_room(monkeypatch):
    """Make the disk full from now on."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_store, "save_file", full)


def test_pruning_on_a_full_disk_drops_first_what_takes_no_room(folder, tmp_path, monkeypatch):
    cache, cached, _ = run(folder, tmp_path)
    first, second, _ = (keys_in(shard) for shard in shard_files(tmp_path))
    wanted = {key for key in cached.keys if key.plain in first[1:] + second[1:]}
    without_room(monkeypatch)
    with pytest.raises(StorageError, match="disk is full"):
        list(cache.prune(wanted))
    assert len(shard_files(tmp_path)) == 2
    assert len(LatentCache(tmp_path / "latents")) == 6


def test_a_shard_that_the_disk_stops_to_give_while_it_is_pruned_stays(
    folder, tmp_path, monkeypatch
):
    cache, cached, _ = run(folder, tmp_path)
    first, second, _ = (keys_in(shard) for shard in shard_files(tmp_path))
    wanted = {key for key in cached.keys if key.plain in first[1:] + second[1:]}
    look, looked = Shards._entries_of, set()

    def once(shards, index):
        if index in looked:
            return None
        looked.add(index)
        return look(shards, index)

    monkeypatch.setattr(Shards, "_entries_of", once)
    list(cache.prune(wanted))
    assert len(shard_files(tmp_path)) == 2
    assert set(first + second) <= {key for shard in shard_files(tmp_path) for key in keys_in(shard)}


def test_no_tensors_are_left_where_the_disk_is_full_at_their_keys(folder, tmp_path, monkeypatch):
    def full(path, _):
        raise storage_error(path, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(shard_store.files, "write_json", full)
    with pytest.raises(StorageError, match="disk is full"):
        run(folder, tmp_path)
    assert shard_files(tmp_path) == []


def test_tensors_that_nobody_finds_again_go_after_an_hour(folder, tmp_path):
    run(folder, tmp_path)
    orphan, young, whole = shard_files(tmp_path)
    for shard in (orphan, young):
        shard.with_suffix(".json").unlink()
    for shard in (orphan, whole):
        changed = shard.stat().st_mtime - 7200
        os.utime(shard, (changed, changed))
    size = orphan.stat().st_size
    assert LatentCache(tmp_path / "latents").remove_orphans() == size
    assert shard_files(tmp_path) == [young, whole]


def test_several_resolutions_share_a_folder(folder, tmp_path):
    """sd-scripts used the same name for both, and trained on the wrong latents."""
    cache, small, _ = run(folder, tmp_path)
    records = scan_folder(folder).records
    large = plan_images(
        records, Size(160, 160), rules=BucketRules(min_side=64, max_side=192, step=32)
    )
    other = cache_latents(large.images, cache, CountingEncoder().encoder)
    for cached in (small, other):
        for image, key in zip(cached.images, cached.keys, strict=True):
            height, width = image.bucket.hw
            assert cache.read([key.plain])[0].shape == (1, 4, height // 8, width // 8)


def test_a_process_that_is_killed_loses_only_two_shards(folder, tmp_path):
    """Latents written before are not encoded again."""
    draw_images(folder, 30, seed=3)
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
import test_latent_cache as tests
from impasto.data.caching import latent_cache, latent_writing
from impasto.data.caching.filling import cache_latents
latent_writing.SHARD_BYTES = 4 * 1024
class Dying(tests.CountingEncoder):
    def encode(self, pixels):
        if self.count >= 20:
            os.kill(os.getpid(), 9)
        return super().encode(pixels)
cache = latent_cache.LatentCache(Path({str(tmp_path / "latents")!r}))
cache_latents(tests.plan_of(Path({str(folder)!r})).images, cache, Dying(batch_size=2).encoder)
"""
    done = running.run("-c", program)
    assert done.returncode == -9, done.stderr
    _, cached, encoder = run(folder, tmp_path)
    assert len(cached.keys) == 30
    two_shards_and_a_batch = 2 * 4 + 2
    assert encoder.count <= 30 - (20 - two_shards_and_a_batch)


def test_shards_are_written_while_others_are_filled(folder, tmp_path, monkeypatch):
    """The first shard's write waits until a later batch is encoded, so it must not block."""
    monkeypatch.setattr(latent_writing, "SHARD_BYTES", 2 * 1024)
    went_on = threading.Event()
    encoder = CountingEncoder(batch_size=1)
    real_encode, real_write = encoder.encode, LatentCache.write_shard

    def encode(pixels):
        if encoder.count >= 4:
            went_on.set()
        return real_encode(pixels)

    def write(self, *arguments):
        assert went_on.wait(60)
        real_write(self, *arguments)

    monkeypatch.setattr(LatentCache, "write_shard", write)
    encoder.encoder = dataclasses.replace(encoder.encoder, encode=encode)
    _, cached, _ = run(folder, tmp_path, encoder)
    assert len(cached.keys) == 9


def test_a_batch_is_begun_before_the_one_before_it_is_awaited(folder, tmp_path, monkeypatch):
    order = []

    class Watched(Encode):
        def begin(self, batch):
            order.append("begin")
            return super().begin(batch)

        def finish(self, begun):
            order.append("finish")
            return super().finish(begun)

    monkeypatch.setattr(device_encoding, "Encode", Watched)
    run(folder, tmp_path, CountingEncoder(batch_size=3))
    assert order[:3] == ["begin", "begin", "finish"]
    assert order[-1] == "finish"
    assert order.count("begin") == order.count("finish")


def test_a_fault_in_writing_ends_it_in_words_and_keeps_what_was_written(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(latent_writing, "SHARD_BYTES", 2 * 1024)
    real, written = LatentCache.write_shard, []

    def write(self, bucket, keys, *columns):
        if written:
            raise StorageError("the disk is full")
        written.extend(keys)
        real(self, bucket, keys, *columns)

    monkeypatch.setattr(LatentCache, "write_shard", write)
    with pytest.raises(StorageError, match="the disk is full"):
        run(folder, tmp_path)
    assert len(LatentCache(tmp_path / "latents")) == len(written) == 2


def test_what_vanishes_between_plan_and_cache_is_named(folder, tmp_path):
    plan = plan_of(folder)
    (folder / "004.png").unlink()
    cached = cache_latents(
        plan.images, LatentCache(tmp_path / "latents"), CountingEncoder().encoder
    )
    assert [(i.path.name, i.reason) for i in cached.skipped] == [
        ("004.png", "vanished or became unreadable (No such file or directory)")
    ]
    assert len(cached.keys) == 8


def test_what_vanishes_before_it_is_decoded_is_named(folder, tmp_path, monkeypatch):
    plan = plan_of(folder)
    cache = LatentCache(tmp_path / "latents")
    goes_once_hashed(folder / "004.png", cache, monkeypatch)
    cached = cache_latents(plan.images, cache, CountingEncoder().encoder)
    assert [item.path.name for item in cached.skipped] == ["004.png"]
    assert "cannot be read" in cached.skipped[0].reason
