"""Files beside images and derived from them, read with damage; see `readers.py`."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile

import numpy as np
import torch
from damaged_formats import Evil, damaged_tensors, picture
from mutations import damaged_bytes, damaged_json, damaged_lines


class Npz:
    """Latents in sd-scripts' .npz format."""

    def __init__(self, folder):
        latents = np.random.default_rng(0).standard_normal((4, 8, 8)).astype(np.float32)
        self.entries = {
            "latents_8x8": latents,
            "latents_flipped_8x8": latents,
            "original_size_8x8": np.array([64, 64]),
            "crop_ltrb_8x8": np.array([0, 0, 64, 64]),
        }

    def read(self, rng, folder):
        from impasto.data.caching.npz import read_npz
        from impasto.data.engines.stages import Failure
        from impasto.data.planning.plan import BucketRules, plan_images
        from impasto.data.records import Size
        from impasto.data.scanning.scan import scan_folder

        picture(folder / "a.png")
        planned = plan_images(
            scan_folder(folder).records, Size(64, 64), rules=BucketRules(enable_bucket=False)
        )
        buffer = io.BytesIO()
        how = rng.random()
        if how < 0.4:
            np.savez(buffer, **self.entries)
            content = damaged_bytes(rng, buffer.getvalue())
        else:
            with zipfile.ZipFile(buffer, "w") as file:
                for name, array in self.entries.items():
                    file.writestr(f"{name}.npy", self._member(rng, array, folder))
            content = buffer.getvalue()
        target = folder / "a_0064x0064_sd.npz"
        target.write_bytes(content)
        found = read_npz(target, planned.images[0])
        if not isinstance(found, Failure):
            assert found.latents.shape == (4, 8, 8), "a wrong shape was accepted"
            assert np.isfinite(found.latents).all(), "values that are not finite were accepted"

    def _member(self, rng, array, folder):
        other = [
            np.zeros((4, 8, 8), complex), np.array(3.0), np.array(["a"]), np.zeros((0, 8, 8)),
            np.full((4, 8, 8), np.nan), np.zeros((4, 8, 8), np.int64), np.zeros(2, "M8[s]"),
        ]  # fmt: skip
        if rng.random() < 0.3:
            array = rng.choice(other)
        buffer = io.BytesIO()
        np.save(buffer, array)
        whole = buffer.getvalue()
        if rng.random() < 0.1:
            evil = np.array([Evil(folder)], dtype=object)
            buffer = io.BytesIO()
            np.save(buffer, evil, allow_pickle=True)
            return buffer.getvalue()
        if rng.random() < 0.4:
            texts = ["(4, 8, 8000000000000)", "(-4, 8, 8)", "(4, 8)", "((((" * 500, "(1<<40,)"]
            return whole.replace(b"(4, 8, 8)", rng.choice(texts).encode())
        return damaged_bytes(rng, whole) if rng.random() < 0.3 else whole


class TextNpz:
    """Text encoder outputs in sd-scripts' format, written by Impasto."""

    def __init__(self, folder):
        from impasto.data.caching.text_npz import TextShape, write_text_npz

        numbers = np.random.default_rng(0).standard_normal
        self.shape, target = TextShape(77, (3, 4), 5), folder / "a_te_outputs.npz"
        write_text_npz(target, [numbers((77, 3)), numbers((77, 4))], numbers(5), (1,) * 154)
        self.whole = target.read_bytes()
        with np.load(target) as arrays:
            self.entries = dict(arrays)

    def read(self, rng, folder):
        from impasto.data.caching.text_npz import read_text_npz
        from impasto.data.engines.stages import Failure

        target = folder / "a_te_outputs.npz"
        if rng.random() < 0.5:
            target.write_bytes(damaged_bytes(rng, self.whole))
        else:
            other = [
                np.zeros(5, complex), np.array(3.0), np.array(["a"]), np.full(5, np.nan),
                np.zeros((0, 3)), np.zeros((77, 3), np.int64), np.zeros(2, "M8[s]"),
            ]  # fmt: skip
            np.savez(target, **self.entries | {rng.choice(list(self.entries)): rng.choice(other)})
        found = read_text_npz(target, self.shape)
        if not isinstance(found, Failure):
            assert found.packed.shape == (77 * 7 + 5,), "a wrong shape was accepted"
            assert np.isfinite(found.packed).all(), "values that are not finite were accepted"


class Journals:
    """The journals that `dataset undo` reverts, and that `dataset clean` continues from."""

    def __init__(self, folder):
        self.whole = folder / "whole"
        self.whole.mkdir()
        for name in ("a", "b", "c"):
            picture(self.whole / f"{name}.png")
            (self.whole / f"{name}.txt").write_text("blue_eyes,  blue eyes, 1girl\n", "utf-8")
        self._run(self.whole, "clean", "--yes")
        journals = self.whole / ".impasto" / "annotations"
        (self.journal,) = [p.relative_to(self.whole) for p in journals.glob("*.jsonl")]

    def read(self, rng, folder):
        target = folder / "data"
        shutil.copytree(self.whole, target)
        outside = folder / "outside.txt"
        outside.write_text("not of this dataset", "utf-8")
        file = target / self.journal
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        file.write_bytes(damaged_lines(rng, rows))
        try:
            self._run(target, *rng.choice([("undo",), ("undo", "--force"), ("clean", "--yes")]))
        finally:
            assert outside.read_text("utf-8") == "not of this dataset"

    def _run(self, folder, verb, *options):
        import click

        from impasto.cli.main import impasto

        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(click.ClickException):
            impasto.main(["dataset", verb, str(folder), *options], standalone_mode=False)


class Caches:
    """Shards, their indices, content hashes, and the scan index."""

    KEYS = tuple(f"{n:032x}" for n in range(3))

    def __init__(self, folder):
        from impasto.data.caching.latent_cache import LatentCache
        from impasto.data.records import Size
        from impasto.data.scanning.scan import scan_folder

        self.whole = folder / "data"
        self.whole.mkdir()
        picture(self.whole / "a.png")
        (self.whole / "a.txt").write_text("cat", "utf-8")
        cache = LatentCache(self.whole / "latents")
        torch.manual_seed(0)
        self.values = torch.randn(3, 4, 8, 8)
        cache.write_shard(Size(64, 64), self.KEYS, self.values, self.values)
        records = scan_folder(self.whole, index=self.whole / "latents" / "scan.json").records
        cache.hashes.of({record.path: record.stamp for record in records})

    def read(self, rng, folder):
        from impasto.data.caching.latent_cache import LatentCache
        from impasto.data.scanning.scan import scan_folder

        target = folder / "data"
        shutil.copytree(self.whole, target)
        file = rng.choice([p for p in sorted((target / "latents").iterdir()) if p.is_file()])
        content = file.read_bytes()
        if file.suffix == ".json":
            text = content.decode().replace(str(self.whole), str(target))
            file.write_bytes(damaged_json(rng, json.loads(text)))
        else:
            file.write_bytes(damaged_tensors(rng, content))
        cache = LatentCache(target / "latents")
        scan = scan_folder(target, index=target / "latents" / "scan.json")
        cache.hashes.of({record.path: record.stamp for record in scan.records})
        there = [key for key in self.KEYS if key in cache]
        if there:
            mean, _ = cache.read(there)
            expected = self.values.half()[[self.KEYS.index(key) for key in there]]
            is_as_written = torch.equal(mean, expected)
        found = [fault for fault in cache.verify(remove=True) if fault is not None]
        assert not there or is_as_written or found, "verify does not detect changed values"


class ScanIndices:
    """The index that speeds up a second scan; it is used only where it can be right."""

    def __init__(self, folder):
        self.whole = folder / "data"
        self.whole.mkdir()
        for name in ("a", "b"):
            picture(self.whole / f"{name}.png")
            (self.whole / f"{name}.txt").write_text("cat", "utf-8")

    def read(self, rng, folder):
        from impasto.data.scanning.scan import scan_folder

        index = folder / "scan.json"
        scan_folder(self.whole, index=index)
        (segment,) = (folder / "scan.table").iterdir()
        segment.write_bytes(damaged_bytes(rng, segment.read_bytes()))
        for record in scan_folder(self.whole, index=index).records:
            assert isinstance(record.size.width, int)
            assert isinstance(record.caption_text, object)


class MetadataFiles:
    """Metadata of sd-scripts, JSON and JSON lines."""

    def __init__(self, folder):
        self.entries = {
            "a.png": {"caption": "a cat", "tags": "cat, sitting", "train_resolution": [64, 64],
                      "image_size": [64, 64]},
            "sub/b": {"tags": "dog"}, "c": {"caption": "x", "other": {"k": [1, 2]}},
        }  # fmt: skip

    def read(self, rng, folder):
        from impasto.data.folders.metadata import read_metadata, write_metadata
        from impasto.data.scanning.scan import scan_metadata

        (folder / "sub").mkdir()
        for name in ("a.png", "sub/b.png", "c.png"):
            picture(folder / name)
        if rng.random() < 0.5:
            file = folder / "m.json"
            file.write_bytes(damaged_json(rng, self.entries))
        else:
            file = folder / "m.jsonl"
            rows = [{"image_path": key, **entry} for key, entry in self.entries.items()]
            file.write_bytes(damaged_lines(rng, rows))
        metadata = read_metadata(file)
        scan_metadata(metadata, folder)
        again = folder / f"again{file.suffix}"
        write_metadata(again, metadata.entries)
        read_metadata(again)
