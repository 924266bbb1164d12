"""sd-scripts' latents are used only for the unchanged image that they were made from."""

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_images
from PIL import Image

from impasto.data.caching.encoding import MomentsEncoder
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.caching.npz import read_npz, write_npz
from impasto.data.caching.npz_exchange import export_latents
from impasto.data.caching.wanted_keys import keys_of_plan
from impasto.data.engines.stages import Failure
from impasto.data.pixels import content_hashes
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import scan_folder
from impasto.data.subsets import Subset
from impasto.errors import DatasetError
from impasto.models.families import FAMILIES, SDXL
from impasto.progress import SilentProgress

SIDE = Size(64, 64)


def picture(path, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)
    return path


def planned(folder):
    subset = Subset(root=folder, reads_npz=True)
    return plan_images(
        scan_folder(folder, subset=subset).records, SIDE, rules=BucketRules(enable_bucket=False)
    ).images


def encode(pixels):
    mean = pixels[:, :1, ::8, ::8].repeat(1, 4, 1, 1)
    return mean, torch.zeros_like(mean)


def cached(folder, tmp_path):
    cache = LatentCache(tmp_path / "cache")
    return cache_latents(planned(folder), cache, MomentsEncoder(encode, "vae"), workers=0), cache


def latents():
    return np.full((4, 8, 8), 0.5, dtype=np.float32)


def make_older(path, seconds):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))


def test_latents_older_than_their_picture_are_named_and_made_anew(tmp_path):
    folder = tmp_path / "set"
    picture(folder / "a.png")
    file = write_npz(planned(folder)[0], latents(), None)
    make_older(file, 0.5)
    assert not isinstance(read_npz(file, planned(folder)[0]), Failure)
    make_older(file, 5)
    assert "older than a.png" in read_npz(file, planned(folder)[0]).reason
    result, _ = cached(folder, tmp_path)
    assert result.encoded == 1
    assert [item.path for item in result.refused] == [file]


def test_writing_drops_the_sizes_of_an_earlier_picture(tmp_path):
    folder = tmp_path / "set"
    picture(folder / "a.png")
    image = planned(folder)[0]
    file = write_npz(image, latents(), latents())
    make_older(file, 5)
    other = plan_images(
        [image.record], Size(128, 128), rules=BucketRules(enable_bucket=False)
    ).images[0]
    write_npz(other, np.zeros((4, 16, 16)), None)
    with np.load(file) as archive:
        assert "latents_16x16" in archive.files
        assert "latents_8x8" not in archive.files


@pytest.mark.parametrize("name", ["a_0064x0064_sd.npz", "a.npz"])
def test_one_file_for_two_pictures_is_used_for_none(tmp_path, name):
    folder = tmp_path / "set"
    for ending in ("png", "jpg"):
        picture(folder / f"a.{ending}")
    np.savez(folder / name, latents=latents())
    result, _ = cached(folder, tmp_path)
    assert result.encoded == 2
    assert len(result.refused) == 2
    assert "a.jpg" in result.refused[0].reason
    assert "a.png" in result.refused[0].reason


def test_two_pictures_of_one_name_get_no_file(tmp_path):
    folder = tmp_path / "set"
    for name in ("a.png", "a.jpg", "b.png", "sub/a.png"):
        picture(folder / name)
    result, cache = cached(folder, tmp_path)
    exported = export_latents(result, cache, SilentProgress())
    assert exported.written == 2
    assert {item.path.name for item in exported.refused} == {"a.png", "a.jpg"}
    assert {path.name for path in folder.rglob("*.npz")} == {
        "b_0064x0064_sd.npz", "a_0064x0064_sd.npz",
    }  # fmt: skip
    assert not list(folder.glob("a_*.npz"))


def test_a_name_too_long_for_an_npz_is_named(tmp_path):
    folder = tmp_path / "set"
    long = "x" * 240
    for name in (f"{long}.png", "b.png"):
        picture(folder / name)
    result, cache = cached(folder, tmp_path)
    exported = export_latents(result, cache, SilentProgress())
    assert exported.written == 1
    assert [item.path.stem for item in exported.refused] == [long]
    assert "which no file system allows" in exported.refused[0].reason


@pytest.mark.skipif(os.name == "nt", reason="creating links needs a privilege on Windows")
def test_links_are_followed_within_the_data_set_only(tmp_path):
    folder, outside = tmp_path / "set", tmp_path / "of-somebody.npz"
    for name in ("a.png", "b.png"):
        picture(folder / name)
    outside.write_bytes(b"not to be touched")
    (folder / "a_0064x0064_sd.npz").symlink_to("kept.npz")
    (folder / "b_0064x0064_sd.npz").symlink_to(outside)
    exported = export_latents(*cached(folder, tmp_path), SilentProgress())
    assert exported.written == 1
    assert [item.path.name for item in exported.refused] == ["b.png"]
    assert "leads out of the dataset" in exported.refused[0].reason
    assert outside.read_bytes() == b"not to be touched"
    assert (folder / "a_0064x0064_sd.npz").is_symlink()
    assert zipfile.is_zipfile(folder / "kept.npz")


def test_a_name_as_long_as_allowed_is_written(tmp_path):
    """A temporary name beside it would be too long."""
    folder = tmp_path / "set"
    picture(folder / ("x" * 235 + ".png"))
    file = write_npz(planned(folder)[0], latents(), None)
    assert len(file.name) > 237
    assert not isinstance(read_npz(file, planned(folder)[0]), Failure)


def bomb(file):
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("latents.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 34,)}
        )


DAMAGE = {
    "no zip": lambda file: file.write_bytes(b"PK\3\4 broken"),
    "empty": lambda file: file.write_bytes(b""),
    "one array": lambda file: np.save(file.open("wb"), np.zeros(3)),
    "objects": lambda file: np.savez(file, latents=np.array([{}], dtype=object)),
    "text": lambda file: np.savez(file, latents=np.array(["x"])),
    "a number": lambda file: np.savez(file, latents=latents(), original_size=np.int64(3)),
    "whole numbers": lambda file: np.savez(file, latents=np.zeros((4, 8, 8), dtype=np.int32)),
    "16 gigabytes": bomb,
    "a folder": lambda file: file.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_damaged_file_is_named_and_the_picture_encoded(tmp_path, damage):
    folder = tmp_path / "set"
    picture(folder / "a.png")
    picture(folder / "b.png", (80, 64))
    DAMAGE[damage](folder / "a.npz")
    result, _ = cached(folder, tmp_path)
    assert result.encoded == 2
    assert len(result.refused) == (damage != "a folder")


def test_a_file_that_cannot_be_read_is_named_and_the_picture_encoded(tmp_path, monkeypatch):
    picture(tmp_path / "set" / "a.png")
    (image,) = planned(tmp_path / "set")
    file = write_npz(image, latents(), None)
    real = Path.open

    def opened(self, *arguments, **named):
        if self == file:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", opened)
    plan, _ = cached(tmp_path / "set", tmp_path)
    assert plan.encoded == 1
    assert [(item.path, item.reason) for item in plan.refused] == [
        (file, "cannot be read (Permission denied)")
    ]


def test_sdxl_has_names_of_its_own_and_takes_none_of_sd(tmp_path):
    """kohya-ss/sd-scripts, `library/strategy_sd.py` of 48d368f: `_sdxl.npz` beside `_sd.npz`."""
    folder = draw_images(tmp_path / "pictures", 1)
    (image,) = planned(folder)
    size = image.record.whole
    stem = f"{image.record.path.stem}_{size.width:04d}x{size.height:04d}"
    encoder = MomentsEncoder(encode, "vae", npz_endings=SDXL.npz_endings)

    def filled(name, encoder):
        cache = LatentCache(tmp_path / name)
        result = cache_latents([image], cache, encoder, workers=0)
        return result, cache, cache.read([result.keys[0].plain])[0][0].numpy()

    write_npz(image, latents(), None)
    assert [file.name for file in folder.glob("*.npz")] == [f"{stem}_sd.npz"]
    result, cache, values = filled("encoded", encoder)
    assert result.encoded == 1
    assert not np.allclose(values, 0.5)
    assert np.allclose(filled("sd", MomentsEncoder(encode, "vae"))[2], 0.5)

    exported = export_latents(result, cache, SilentProgress(), SDXL.npz_endings)
    assert exported.written == 1
    own = folder / f"{stem}_sdxl.npz"
    with np.load(own) as arrays:
        assert np.array_equal(arrays["latents"], values)
        assert arrays["latents_8x8"].shape == (4, 8, 8)
        assert arrays["latents_8x8"].dtype == np.float32
        assert arrays["original_size_8x8"].tolist() == list(image.record.size.wh)
    assert np.allclose(read_npz(folder / f"{stem}_sd.npz", image).latents, 0.5)
    write_npz(image, latents() / 2, None, SDXL.npz_endings)
    result, _, values = filled("taken", encoder)
    assert result.encoded == 0
    assert np.allclose(values, 0.25)


def test_families_say_what_their_latents_are_called():
    assert {family.key: family.npz_endings[0] for family in FAMILIES} == {
        "sd1": "_sd", "sd2-base": "_sd", "sd2-v": "_sd", "sdxl": "_sdxl", "sdxl-v": "_sdxl",
    }  # fmt: skip


def test_pruning_keeps_latents_of_sd_scripts_and_writes_nothing_to_know_them(tmp_path):
    """The disk may be full, so nothing is imported before there is space."""
    folder = tmp_path / "set"
    for name in ("a.png", "b.png"):
        picture(folder / name)
    write_npz(planned(folder)[0], latents(), None)
    result, cache = cached(folder, tmp_path)
    assert (len(cache), result.encoded) == (2, 1)
    wanted = keys_of_plan(planned(folder), cache, "vae", SilentProgress())
    assert sum(dropped for dropped, _ in cache.prune(wanted)) == 0

    list(cache.prune([]))
    keys_of_plan(planned(folder), cache, "vae", SilentProgress())
    assert len(LatentCache(tmp_path / "cache")) == 0


def test_latents_of_sd_scripts_that_cannot_be_read_end_pruning(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    picture(folder / "a.png")
    file = write_npz(planned(folder)[0], latents(), None)
    _, cache = cached(folder, tmp_path)
    read = content_hashes.files.sha256_of
    os.utime(file, ns=(1, 1))  # so that it is read again

    def refuse(path):
        if path == file:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(content_hashes.files, "sha256_of", refuse)
    with pytest.raises(DatasetError, match=r"1 file of the dataset cannot be read.*_sd\.npz"):
        keys_of_plan(planned(folder), cache, "vae", SilentProgress())
