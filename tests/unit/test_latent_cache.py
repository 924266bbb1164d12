"""The latent cache: content decides, nothing is encoded twice, nothing broken is served."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import draw_pictures

from impasto.data import images
from impasto.data.latent_cache import LatentCache, MomentsEncoder, cache_latents, to_model_range
from impasto.data.plan import plan_images
from impasto.data.records import Size
from impasto.data.scan import scan_folder
from impasto.errors import DatasetError


class CountingEncoder:
    """Stands in for a VAE: moments follow from the pixels, and pictures are counted."""

    def __init__(self, fingerprint="vae-1", batch_size=4):
        self.count = 0
        self.encoder = MomentsEncoder(self.encode, fingerprint, batch_size)

    def encode(self, pixels):
        self.count += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([mean, mean[:, :1]], dim=1)
        return mean, torch.full_like(mean, -6.0)


def plan_of(folder):
    return plan_images(scan_folder(folder).records, Size(80, 80), min_side=32, max_side=96, step=32)


@pytest.fixture
def folder(tmp_path):
    return draw_pictures(tmp_path / "pictures", 9)


def run(folder, tmp_path, encoder=None):
    encoder = encoder or CountingEncoder()
    cache = LatentCache(tmp_path / "latents")
    return cache, cache_latents(plan_of(folder).images, cache, encoder.encoder), encoder


def test_moments_read_back_as_encoded(folder, tmp_path):
    cache, cached, encoder = run(folder, tmp_path)
    for image, key in zip(cached.images, cached.keys, strict=True):
        expected, _ = encoder.encode(to_model_range([images.read_pixels(image)]))
        mean, logvar = cache.read([key])
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
    shutil.copy(folder / "000.png", folder / "copy.png")  # the same content: nothing to do
    draw_pictures(tmp_path / "more", 1, seed=99)
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
        scan_folder(folder).records, Size(96, 96), min_side=32, max_side=96, step=32
    )
    cache_latents(bigger.images, cache, other.encoder)
    assert other.count == 3  # the squares grow; the others keep their size, so they are found


def test_a_broken_picture_is_set_aside_with_its_name(folder, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(noise).save(folder / "004.png")
    content = (folder / "004.png").read_bytes()
    (folder / "004.png").write_bytes(content[: len(content) // 2])
    _, cached, _ = run(folder, tmp_path)
    assert [item.path.name for item in cached.set_aside] == ["004.png"]
    assert len(cached.keys) == 8


def test_all_broken_is_an_error(folder, tmp_path):
    plan = plan_of(folder)
    for path in folder.glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match="None of the 9 pictures could be decoded"):
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
    assert encoder.count == 3  # the pictures of that one bucket
    assert again.keys == cached.keys
    assert cache.read([again.keys[0]])[0].shape == (1, 4, 8, 8)


def test_a_shard_without_index_does_not_exist(folder, tmp_path):
    """What a process killed between tensors and index leaves behind."""
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

    from impasto.data import shards
    from impasto.errors import StorageError

    real, calls = shards.save_file, []

    def save(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(shards, "save_file", save)
    with pytest.raises(StorageError, match="disk is full"):
        run(folder, tmp_path)
    names = [p.name for p in (tmp_path / "latents").iterdir()]
    assert len([n for n in names if n.startswith("shard-")]) == 2  # one shard and its index
    assert not [n for n in names if n.endswith(".partial")]
    monkeypatch.undo()
    _, cached, encoder = run(folder, tmp_path)
    assert len(cached.keys) == 9
    assert encoder.count == 6
