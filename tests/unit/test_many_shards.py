"""A cache of very many shards: few mappings, small folders, and one file read at the start."""

import numpy as np
import pytest
import torch
from test_latent_cache import CountingEncoder, plan_of

from impasto import files
from impasto.data.caching import latent_orders, latent_writing, prepared
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.caching.latent_keys import LatentKeys
from impasto.data.records import Size
from impasto.data.sharding import mapped_shards, shard_index, shard_store, shards
from impasto.data.sharding.key_set import KeySet
from impasto.errors import DatasetError

SIDE = Size(64, 64)
KEYS = [f"{n:032x}" for n in range(1, 25)]
VALUES = {key: torch.full((4, 8, 8), float(n)) for n, key in enumerate(KEYS)}


def write(cache, keys):
    values = torch.stack([VALUES[key] for key in keys])
    cache.write_shard(SIDE, keys, values, values)


def filled(folder, each=2):
    cache = LatentCache(folder)
    for start in range(0, len(KEYS), each):
        write(cache, KEYS[start : start + each])
    return cache


def is_right(cache, keys=KEYS):
    mean, logvar = cache.read(keys)
    return torch.equal(mean, logvar) and mean[:, 0, 0, 0].tolist() == [
        float(KEYS.index(key)) for key in keys
    ]


def test_a_set_of_names_holds_what_was_put_into_it_and_no_other():
    random = np.random.default_rng(0)
    rows = random.integers(0, 3, (500, 16), dtype=np.uint8)  # many zeros, also at the ends
    rows[0] = 0
    wanted = {row.tobytes().hex() for row in rows[1:]}
    others = {row.tobytes().hex() for row in random.integers(0, 3, (500, 16), dtype=np.uint8)}
    keys = [*wanted, *others, "0" * 32, "no name", "ab", "0" * 31 + "é"]
    assert KeySet(rows).holds(keys) == [key in wanted for key in keys]
    assert KeySet(rows[:0]).holds(keys) == [False] * len(keys)
    assert KeySet(rows).holds([]) == []


def test_only_so_many_shards_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_shards, "MAPPED_SHARDS", 3)
    filled(tmp_path)
    cache = LatentCache(tmp_path)
    for keys in (KEYS, KEYS[::-1], KEYS[5:9]):
        assert is_right(cache, keys)
        assert len(cache._moments._mapped) == 3
    assert list(cache.verify(remove=False)) == [None] * 12


def test_folders_stay_small_and_all_is_found_verified_and_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARDS_IN_A_FOLDER", 4)
    filled(tmp_path)
    assert len(list(tmp_path.glob("shard-*.json"))) == 4
    inner = list(tmp_path.glob("??/shard-*.json"))
    assert len(inner) == 8
    left = inner[0].with_name(f".x.{'0-0-000000'}.00000000.partial")
    left.write_bytes(b"half")
    cache = LatentCache(tmp_path)
    cache.remove_leftovers()
    assert is_right(cache)
    content = bytearray(inner[3].with_suffix(".safetensors").read_bytes())
    content[-5] ^= 4
    inner[3].with_suffix(".safetensors").write_bytes(content)
    bad = [fault for fault in LatentCache(tmp_path).verify(remove=True) if fault]
    assert [fault.file for fault in bad] == [inner[3].with_suffix(".safetensors")]
    cache = LatentCache(tmp_path)
    there = [key for key in KEYS if key in cache]
    assert len(there) == len(KEYS) - 2
    wanted = [LatentKeys(key) for key in there[::3]]
    assert sum(count for count, _ in cache.prune(wanted)) == len(there) - len(wanted)
    assert is_right(LatentCache(tmp_path), [key.plain for key in wanted])
    assert len(LatentCache(tmp_path)) == len(wanted)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache with a copy of its keys."""
    monkeypatch.setattr(shard_index, "KEPT_FROM", 3)
    filled(tmp_path).keep_index()
    assert len(list((tmp_path / "index.table").iterdir())) == 1
    return tmp_path


def test_a_start_reads_the_copy_of_the_keys_and_no_other_file(kept, monkeypatch):
    monkeypatch.setattr(shard_store, "read_index", lambda file: pytest.fail(f"{file} was read"))
    cache = LatentCache(kept)
    assert len(cache) == len(KEYS)
    assert is_right(cache)
    assert "0" * 32 not in cache
    names = np.frombuffer(bytes.fromhex("".join(KEYS)), np.uint8).reshape(-1, 16)
    assert cache.has_all(names)
    assert not cache.has_all(np.concatenate([names, names[:1] ^ 128]))
    with pytest.raises(KeyError):
        cache.read(["f" * 32])


def test_what_is_written_later_and_by_others_is_found_too(kept):
    extra = dict(zip((f"{n:032x}" for n in range(900, 906)), VALUES.values(), strict=False))
    one, other = LatentCache(kept), LatentCache(kept)
    values = torch.stack(list(extra.values()))
    other.write_shard(SIDE, list(extra), values, values)
    one.write_shard(SIDE, KEYS[:3], values[:3], values[:3])  # they exist: nothing is written
    assert all(key in one for key in extra)
    assert len(list(kept.glob("shard-*.json"))) == 13
    for _ in range(2):
        fresh = LatentCache(kept)
        assert len(fresh) == len(KEYS) + 6
        assert is_right(fresh)
        fresh.keep_index()


def test_a_shard_that_is_gone_or_another_is_not_believed(kept):
    first, second, *_ = sorted(kept.glob("shard-*.safetensors"))
    first.unlink()
    first.with_suffix(".json").unlink()
    second.write_bytes(second.read_bytes()[:-8])
    cache = LatentCache(kept)
    assert len(cache) == len(KEYS) - 4
    there = [key for key in KEYS if key in cache]
    assert len(there) == len(KEYS) - 4
    assert is_right(cache, there)


def test_a_changed_value_is_noticed_by_the_sums_of_the_copy(kept):
    shard = sorted(kept.glob("shard-*.safetensors"))[5]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4
    shard.write_bytes(content)
    cache = LatentCache(kept)
    with pytest.raises(DatasetError, match="has changed since it was written"):
        for key in KEYS:
            cache.read([key])
    assert len(LatentCache(kept)) == len(KEYS) - 2


def test_a_shard_that_was_encoded_again_is_not_compared_with_former_sums(kept):
    """The shard has the same name and length, but another device may have given other bits."""
    shard = sorted(kept.glob("shard-*.safetensors"))[5]
    writer = LatentCache(kept)
    key = next(key for key in KEYS if writer._moments._index.find([key])[0][0] == shard.stem)
    keys = shard_store.read_index(shard.with_suffix(".json")).keys
    assert key in keys
    writer._moments.remove(shard.with_suffix(".json"))
    other = torch.stack([VALUES[name] + 0.25 for name in keys])
    writer.write_shard(SIDE, keys, other, other)
    assert shard.exists()
    mean, _ = LatentCache(kept).read(keys)
    assert torch.equal(mean, other.half())


def test_a_key_in_two_shards_does_not_keep_the_copy_from_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "KEPT_FROM", 3)
    cache = LatentCache(tmp_path)
    for keys in (KEYS[:4], KEYS[4:8], [KEYS[8], KEYS[1], KEYS[9], KEYS[5], KEYS[10]]):
        values = {"mean": torch.stack([VALUES[key] for key in keys]).half()}
        cache._moments._write(str(SIDE), keys, {**values, "logvar": values["mean"].clone()})
    cache.keep_index()
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(shard_store, "read_index", lambda file: pytest.fail(f"{file} was read"))
            fresh = LatentCache(tmp_path)
            assert is_right(fresh, KEYS[:11])
        monkeypatch.setattr(shard_index.ShardIndex, "is_behind", True)
        fresh._moments.keep_index()
    assert is_right(LatentCache(tmp_path), KEYS[:11])


@pytest.mark.parametrize("damage", ["cut", "bits", "gone"])
def test_a_damaged_copy_costs_time_and_nothing_else(kept, damage):
    copy = max((kept / "index.table").iterdir())
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        copy.unlink()
    else:
        copy.write_bytes(content if damage == "bits" else content[:-9])
    cache = LatentCache(kept)
    assert is_right(cache)
    cache.keep_index()
    assert is_right(LatentCache(kept))


def test_shards_are_so_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_writing, "SHARD_BYTES", 5 * 1024)  # an entry here has 1 KiB
    from conftest import draw_images

    folder = draw_images(tmp_path / "set", 36)
    cache = LatentCache(tmp_path / "latents")
    planned = plan_of(folder).images
    done = cache_latents(planned, cache, CountingEncoder().encoder)
    sizes = [len(shard_store.read_index(index).keys) for index in cache._moments.indices()]
    assert sum(sizes) == len(done.keys)
    assert max(sizes) <= 6
    assert len(sizes) < 12


def test_keys_are_kept_though_an_image_cannot_be_decoded(tmp_path, monkeypatch):
    from conftest import draw_images

    monkeypatch.setattr(prepared, "KEPT_FROM", 5)
    folder = draw_images(tmp_path / "set", 9)
    planned, encoder = plan_of(folder).images, CountingEncoder().encoder
    whole = (folder / "004.png").read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)
    (folder / "004.png").write_bytes(broken)
    cache = LatentCache(tmp_path / "latents")
    first = cache_latents(planned, cache, encoder)
    assert [item.path.name for item in first.skipped] == ["004.png"]
    with monkeypatch.context() as patch:
        patch.setattr(cache.hashes, "of", lambda *_, **__: pytest.fail("hashes were asked for"))
        again = cache_latents(planned, cache, encoder)
    assert (again.images, again.keys) == (first.images, first.keys)
    assert again.skipped == first.skipped
    with pytest.raises(DatasetError, match=r"004\.png.*on_error"):
        cache_latents(planned, cache, encoder, on_error="stop")


def test_what_may_be_decoded_another_time_is_not_remembered(tmp_path, monkeypatch):
    from conftest import draw_images

    monkeypatch.setattr(prepared, "KEPT_FROM", 5)
    folder = draw_images(tmp_path / "set", 9)
    planned, encoder = plan_of(folder).images, CountingEncoder().encoder
    cache = LatentCache(tmp_path / "latents")
    (folder / "004.png").rename(tmp_path / "away.png")
    assert len(cache_latents(planned, cache, encoder).keys) == 8
    (tmp_path / "away.png").rename(folder / "004.png")
    assert len(cache_latents(planned, cache, encoder).keys) == 9


def test_prepared_keys_that_another_process_removes_end_nothing(tmp_path, monkeypatch):
    from conftest import draw_images

    monkeypatch.setattr(prepared, "KEPT_FROM", 5)
    monkeypatch.setattr(prepared.tables, "REMOVED_AFTER_NS", -1)
    folder = draw_images(tmp_path / "set", 9)
    cache = LatentCache(tmp_path / "latents")
    others = [tmp_path / "latents" / "prepared" / f"{n}.table" for n in range(6)]
    for other in others:
        other.mkdir(parents=True)
    really = type(folder).glob

    def found_and_gone(path, pattern):
        there = list(really(path, pattern))
        if pattern == "*.table":
            others[5].rmdir()
        return iter(there)

    planned, encoder = plan_of(folder).images, CountingEncoder().encoder
    with files.dry_run(), monkeypatch.context() as patch:
        patch.setattr(prepared.TableFolder, "replace_all", lambda *_: None)
        cache_latents(planned, cache, encoder)
    assert all(other.is_dir() for other in others)
    monkeypatch.setattr(type(folder), "glob", found_and_gone)
    cache_latents(planned, cache, encoder)
    assert len(list(really(others[0].parent, "*.table"))) == prepared._MOST


def test_hashes_are_tidied_once_after_all_portions(tmp_path, monkeypatch):
    from conftest import draw_images

    from impasto.data.columns import keyed

    tidied = []
    really = keyed.KeyedTable._tidy
    monkeypatch.setattr(keyed.KeyedTable, "_tidy", lambda own: tidied.append(1) or really(own))
    monkeypatch.setattr(latent_orders, "PORTION", 1)
    folder = draw_images(tmp_path / "set", 18)
    cache = LatentCache(tmp_path / "latents")
    assert len(cache_latents(plan_of(folder).images, cache, CountingEncoder().encoder).keys) == 18
    assert tidied == [1]


def test_the_keys_of_a_large_dataset_are_kept_and_mapped(tmp_path, monkeypatch):
    from conftest import draw_images

    monkeypatch.setattr(prepared, "KEPT_FROM", 5)
    folder = draw_images(tmp_path / "set", 9)
    cache = LatentCache(tmp_path / "latents")
    encoder = CountingEncoder()
    first = cache_latents(plan_of(folder).images, cache, encoder.encoder)
    with monkeypatch.context() as patch:
        patch.setattr(cache.hashes, "of", lambda *_, **__: pytest.fail("hashes were asked for"))
        again = cache_latents(plan_of(folder).images, cache, encoder.encoder)
    assert (again.images, again.keys) == (first.images, first.keys)
    assert list(again.identities) == list(first.identities)
    assert again.keys.columns["plain"].base is not None  # mapped, not copied
    (folder / "000.txt").write_text("other words", encoding="utf-8")
    other = CountingEncoder("another vae")
    for planned, of in ((plan_of(folder), encoder), (plan_of(folder), other)):
        renewed = cache_latents(planned.images, cache, of.encoder)
        assert len(renewed.keys) == 9
    assert other.count == 9
    index = next(iter(cache._moments.indices()))
    cache._moments.remove(index)
    fresh = LatentCache(tmp_path / "latents")
    encoded = cache_latents(plan_of(folder).images, fresh, encoder.encoder).encoded
    encoded += cache_latents(plan_of(folder).images, fresh, other.encoder).encoded
    assert encoded > 0
