"""Work on a dataset is done once, shows progress, and is counted in files.

If one of these failed, users with large datasets would wait for nothing, or get reports of copies
that do not exist.
"""

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from impasto import files
from impasto.config.load import build_run_config
from impasto.data.caching import npz_exchange
from impasto.data.caching.npz_exchange import import_npz
from impasto.data.inspecting import likeness
from impasto.data.inspecting.likeness import near_duplicates
from impasto.datasets.build import survey
from impasto.progress import SilentProgress


class Seen(SilentProgress):
    """Records messages."""

    def __init__(self):
        self.notes, self.stages = [], []

    def note(self, text):
        self.notes.append(text)

    @contextmanager
    def stage(self, name, total, unit="steps"):
        self.stages.append((name, total))
        yield lambda _: None


def config_of(folder, out, subsets):
    data = out.parent / "data.toml"
    rows = "".join(
        f"[[datasets.subsets]]\nimage_dir = '{folder}'\nnum_repeats = {n}\n" for n in subsets
    )
    data.write_text(f"[[datasets]]\nresolution = 64\n{rows}", encoding="utf-8")
    return build_run_config(
        {
            "output_dir": str(out),
            "model": {"path": "base"},
            "dataset": {"config": str(data), "cache_dir": str(out.parent / "derived")},
            "training": {"max_steps": 1},
            "validation": {"split": 0.2},
        },
        source="test",
    )


def test_copies_are_counted_by_files_and_read_once(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    for n in range(10):
        Image.new("RGB", (64, 64), (n * 20, 0, 0)).save(folder / f"{n}.bmp")
    shutil.copy(folder / "3.bmp", folder / "copy.bmp")
    config = config_of(folder, tmp_path / "run", [1, 2])
    seen = Seen()
    split = survey(config, seen).split
    assert len(split.training) + len(split.held_out) == 22
    assert [note for note in seen.notes if "copies of one" in note] == [
        "2 of 11 images are copies of one another, or look the same, in 1 group: each group is "
        "held out as a whole or not at all."
    ]
    assert ("Reading files", 11) in seen.stages

    def again(path, *_):
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(files, "sha256_of", again)
    held_out = survey(config, Seen()).split.held_out
    assert [r.path for r in held_out] == [r.path for r in split.held_out]


def test_without_latents_of_sd_scripts_no_image_is_looked_at_for_them(monkeypatch):
    monkeypatch.setattr(npz_exchange, "npz_candidates", lambda _: 1 / 0)
    seen = Seen()
    assert import_npz([object()] * 3, [None] * 3, {}, None, seen) == []
    assert seen.stages == []


def grouped_by_pairs(hashes, most_bits):
    groups = [{path} for path in hashes]
    for path, value in hashes.items():
        near = [g for g in groups if any((value ^ hashes[o]).bit_count() <= most_bits for o in g)]
        groups = [g for g in groups if g not in near] + [set().union(*near, {path})]
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_groups_of_near_hashes_are_those_of_all_pairs():
    rng = np.random.default_rng(5)
    hashes = {}
    for n in range(120):
        base = int(rng.integers(1 << 62)) if n % 4 == 0 else hashes[Path(f"{n - 1}")]
        flipped = sum(1 << int(bit) for bit in rng.choice(62, int(rng.integers(9)), replace=False))
        hashes[Path(f"{n}")] = base ^ flipped
    advanced = []
    found = near_duplicates(hashes, advanced.append)
    assert sorted(found) == grouped_by_pairs(hashes, likeness.NEAR_DUPLICATE_BITS)
    assert sum(advanced) == 120


def test_equal_hashes_are_compared_once(monkeypatch):
    """Thousands of similar images, such as frames of a film, have few different hashes."""
    compared = 0
    count = np.bitwise_count

    def counted(values):
        nonlocal compared
        compared += values.size
        return count(values)

    monkeypatch.setattr(np, "bitwise_count", counted)
    hashes = {Path(f"{n:05}"): n % 3 for n in range(5000)}
    assert [len(group) for group in near_duplicates(hashes, lambda _: None)] == [5000]
    assert compared == 9
