"""Names of commands, states and files are the same in every process, whatever its hash seed.

If this failed, an interrupted command would start again, images would be encoded twice, or a valid
state would be refused.
"""

import json
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from support.warm import running

from impasto.canonical import canonical, sort_key
from impasto.data.caching.text_store import TextStore
from impasto.randomness import derive_seed

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from impasto.annotate.captioners import PRESETS
from impasto.annotate.tags import CATEGORIES, GENERAL, Selection, Spelling, TagTable
from impasto.canonical import canonical
from impasto.config.load import build_run_config, dump_toml
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.caching.latent_cache import LatentKeys, latent_key, mask_key
from impasto.data.caching.text_store import TextStore
from impasto.randomness import derive_seed
from impasto.datasets.batching import build_epoch_sampler
from impasto.training.fingerprints.fingerprint import settings_fingerprint
from impasto.datasets.build import survey

folder, cache = sys.argv[1:]
config = build_run_config({
    "output_dir": "run", "model": {"path": "m"}, "training": {"max_steps": 4, "batch_size": 2},
    "dataset": {"image_dir": folder, "cache_dir": cache, "resolution": 128, "min_bucket_reso": 64,
                "shuffle_caption": True, "caption_tag_dropout_rate": 0.3,
                "flip_safe": ["left", "right", "links", "rechts"]},
    "validation": {"split": 0.2},
}, source="test")
found = survey(config)
table = TagTable(tuple("abcdefghi"), CATEGORIES, tuple(range(9)))
tags = Selection(0.1, own_thresholds=True).of(np.linspace(0, 1, 9), table)
sampler = build_epoch_sampler(config, found.plan, 2)
out = {
    "command": canonical(["tag", Path("m") / "x", Selection(), PRESETS["beam"],
                          Spelling(undesired=frozenset("abcdefgh"), replacements={"z": "y"})]),
    "tags": Spelling(rating="last", quality="first").write(tags),
    "settings": settings_fingerprint(config),
    "toml": dump_toml(config),
    "split": [record.name for record in found.split.held_out],
    "order": [record.name for record in found.split.training],
    "captions": [record.fixed_caption for record in found.split.training],
    "latents": [latent_key("x", image, "v") for image in found.plan.images],
    "masks": [mask_key("x", image, "m") for image in found.plan.images],
    "texts": TextStore(Path(cache), "x").key(range(77)),
    "batches": [[str(batch) for batch in sampler.optimizer_step(n).micro_batches]
                for n in range(3)],
    "seed": derive_seed(1, "a", 2, "caf\\u00e9"),
}
print(json.dumps(out, default=str))
"""


def outcome(folder, cache, **environment):
    done = running.run("-c", PROGRAM, folder, cache, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_two_hash_seeds_and_locales_give_the_same(tmp_path):
    from impasto.demo.recipe import PICTURES

    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(PICTURES.glob("00*"))[:24]:
        (folder / path.name).write_bytes(path.read_bytes())
    usual = outcome(folder, tmp_path / "a")  # with a random hash seed
    other = outcome(
        folder, tmp_path / "a", PYTHONHASHSEED="4242", LC_ALL="C", PYTHONUTF8="0", TZ="Asia/Tokyo"
    )
    assert usual == other
    assert usual["split"]


@dataclass
class Point:
    x: float
    tags: frozenset[str]


class Kind(Enum):
    A = "a"


def test_each_kind_of_value_has_one_text():
    value = {"b": {3, 1, 2}, "a": [Point(0.1, frozenset("qwertz")), (None, True)], "k": Kind.A}
    tags = ",".join(f'"\\"{letter}\\""' for letter in "eqrtwz")
    assert canonical(value) == (
        '{"\\"a\\"":[{"":"Point","tags":[' + tags + '],"x":0.1},[null,true]],'
        '"\\"b\\"":["1","2","3"],"\\"k\\"":"a"}'
    )
    assert canonical(PurePosixPath("a/b")) == canonical(PureWindowsPath("a\\b"))
    assert canonical({1: "a"}) != canonical({"1": "a"})
    assert canonical("é\udc92").isascii()
    for odd in (object(), b"bytes", Point):
        with pytest.raises(TypeError, match="no canonical text"):
            canonical(odd)


def test_keys_are_those_that_earlier_versions_made():
    """If keys differed from earlier versions', everything stored would be made again."""
    assert TextStore(Path("x"), "f").key([49406, 320, 49407]) == "29f504dc99e86988b46be8b565c5b166"
    assert derive_seed(42, "noise", 3, 1) == 784914671068532717


def test_images_come_in_one_order_on_every_system():
    below = ["a/c.png", "a b.png", "a.png", "Z.png", "a/B.png"]
    windows = [path.replace("/", "\\") for path in below]
    found = sorted(windows, key=lambda path: sort_key(path, "\\"))
    assert [path.replace("\\", "/") for path in found] == sorted(below, key=sort_key)
    assert sorted(below) == sorted(below, key=sort_key)
