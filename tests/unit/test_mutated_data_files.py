"""Damaged dataset files: each reader returns a value, an error of Impasto's, or rebuilds.

Inputs are mutated by a fixed seed, as bytes and as JSON trees; `IMPASTO_FUZZ_SEED` and
`IMPASTO_FUZZ_ROUNDS` try others.
"""

import io
import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from impasto.data.caching.latent_cache import LatentCache
from impasto.data.caching.npz import read_npz, write_npz
from impasto.data.caching.text_store import TextStore
from impasto.data.columns.remembered import write_cached
from impasto.data.folders.metadata import read_metadata, write_metadata
from impasto.data.inspecting.likeness import PerceptualHashes
from impasto.data.loading.templates import read_templates
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import decode_all, scan_folder, scan_metadata
from impasto.errors import ImpastoError
from impasto.progress import SilentProgress
from impasto.sampling.prompt_files import read_prompt_file
from impasto.sampling.prompts import Prompt

SEED = int(os.environ.get("IMPASTO_FUZZ_SEED", "7"))
ROUNDS = int(os.environ.get("IMPASTO_FUZZ_ROUNDS", "120"))
ODD = [
    None, True, -1, 0, 1 << 70, 1.5, float("nan"), float("inf"), "", "x", "\ud83d", "\u2028",
    "../x", "C:\\x\\a.png", "\0", [], [[]], {}, {"a": 1}, [1, 2], ["x"] * 9, "9" * 5000,
]  # fmt: skip
DEEP = ("[" * 30_000, '{"a":' * 30_000, "[" * 3000 + "]" * 3000)


def mutated_tree(value, rng):
    """Return a JSON value with one of its parts replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        action = rng.random()
        if action < 0.15:
            changed.pop(key)
        elif action < 0.3:
            changed[rng.choice(["version", "", "\ud83d", "x" * 300, "a/../b"])] = changed.pop(key)
        else:
            changed[key] = mutated_tree(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:i] + value[i + 1 :]
        return [*value[:i], mutated_tree(value[i], rng), *value[i + 1 :]]
    return rng.choice(ODD)


def mutated(content: bytes, rng) -> bytes:
    kind = rng.random()
    if kind < 0.35:
        try:
            return json.dumps(mutated_tree(json.loads(content), rng)).encode()
        except ValueError:
            pass
    if kind < 0.42:
        place = rng.randrange(len(content) + 1)
        return content[:place] + rng.choice(DEEP).encode() + content[place:]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 4, 30])):
        if not changed:
            break
        place, action = rng.randrange(len(changed)), rng.random()
        if action < 0.5:
            changed[place] ^= 1 << rng.randrange(8)
        elif action < 0.7:
            del changed[place : place + rng.choice([1, 8, 200])]
        elif action < 0.85:
            changed[place:place] = rng.randbytes(rng.choice([1, 8, 64]))
        else:
            changed[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
    return (
        bytes(changed) if rng.random() < 0.9 else bytes(changed[: rng.randrange(len(changed) + 1)])
    )


def storm(read, name, *files):
    """Read files in many damaged forms; exceptions other than Impasto's own escape."""
    contents = [file.read_bytes() for file in files]
    rng = random.Random(f"{SEED}-{name}")
    for _ in range(ROUNDS):
        for file, content in zip(files, contents, strict=True):
            file.unlink(missing_ok=True)  # a file that is written over waits for the disk
            file.write_bytes(mutated(content, rng))
        try:
            read()
        except ImpastoError as error:
            str(error).encode("utf-8")  # a message that can be shown
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "sub/b.jpg"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (10, 99, 30)).save(path)
        path.with_suffix(".txt").write_text("cat, dog", encoding="utf-8")
    return tmp_path / "set"


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_metadata(folder, ending):
    file = folder / f"m{ending}"
    entry = {"caption": "one\ntwo", "tags": "x", "train_resolution": [64, 64], "score": [1, 2]}
    if ending == ".json":
        text = json.dumps({"a.png": entry, "sub/b": entry, "C:\\x\\a.png": {}})
    else:
        text = "".join(json.dumps({"image_path": k, **entry}) + "\n" for k in ("a.png", "b"))
    file.write_text(text, encoding="utf-8")

    def read():
        metadata = read_metadata(file)
        write_metadata(folder.parent / f"again{ending}", metadata.entries, backup=False)
        again = read_metadata(folder.parent / f"again{ending}")
        assert [e.key for e in again.entries] == [e.key for e in metadata.entries]
        for record in scan_metadata(metadata, folder).records:
            record.caption_text.encode("utf-8")

    storm(read, f"metadata{ending}", file)


def test_the_scans_index_and_what_was_decoded(folder, tmp_path):
    index, memory = tmp_path / "scan.json", tmp_path / "decoded.json"

    def read():
        scan = decode_all(scan_folder(folder, index=index), memory=memory)
        assert len(scan.records) + len(scan.skipped) >= 2
        json.dumps(plan_images(scan.records, Size(64, 64)).mean_cropped_fraction)

    def read_former():
        for table in tmp_path.glob("*.table"):
            shutil.rmtree(table)
        read()

    read()
    tables = [next((tmp_path / name).iterdir()) for name in ("scan.table", "decoded.table")]
    storm(read, "tables of a scan", *tables)
    rows = {str(folder / "a.png"): [[1, 2, 3, 4, 0, 0], [64, 64, 0, "cat", ""]]}
    write_cached(index, [5, f"{folder.absolute()} .caption .txt"], rows)
    write_cached(memory, [3, 3], {str(folder / "a.png"): [1, 2, "bad"]})
    storm(read_former, "former tables of a scan", index, memory)
    assert len(decode_all(scan_folder(folder, index=index), memory=memory).records) == 2


def test_hashes_and_looks(folder, tmp_path):
    hashes, looks = tmp_path / "hashes.json", tmp_path / "looks.json"
    records = scan_folder(folder).records

    def read():
        digests = ContentHashes(hashes).of({r.path: r.stamp for r in records})
        PerceptualHashes(looks).of(records, digests, SilentProgress())

    def read_former():
        for table in tmp_path.glob("*.table"):
            shutil.rmtree(table)
        read()

    read()
    tables = [next((tmp_path / name).iterdir()) for name in ("hashes.table", "looks.table")]
    storm(read, "tables of hashes", *tables)
    write_cached(hashes, [2], {str(r.path): [1, 2, "ab" * 32] for r in records})
    write_cached(looks, [3, 3], {"ab" * 32: 7})
    storm(read_former, "former tables of hashes", hashes, looks)


def test_npz(folder):
    image = plan_images(
        scan_folder(folder).records, Size(64, 64), rules=BucketRules(enable_bucket=False)
    ).images[0]
    values = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    file = write_npz(image, values, values[..., ::-1])

    def read():
        read_npz(file, image)
        write_npz(image, values, None)

    storm(read, "npz", file)
    packed = io.BytesIO()
    np.savez_compressed(packed, arr_0=values)
    file.write_bytes(packed.getvalue())
    storm(lambda: read_npz(file, image), "old npz", file)


@pytest.mark.parametrize("part", ["json", "safetensors"])
def test_the_latent_cache(tmp_path, part):
    keys = ["a" * 32, "b" * 32]
    cache = LatentCache(tmp_path)
    cache.write_shard(Size(64, 64), keys, torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8))
    cache.write_masks(Size(64, 64), keys, torch.zeros(2, 1, 8, 8, dtype=torch.uint8))

    def read():
        opened = LatentCache(tmp_path)
        for key in keys:
            if key in opened:
                opened.read([key])
        list(opened.verify(remove=False))

    storm(read, f"latents {part}", next(tmp_path.glob(f"*.{part}")))


@pytest.mark.parametrize("part", ["json", "safetensors"])
def test_the_text_store(tmp_path, part):
    TextStore(tmp_path, "print").write([(1, 2, 3)], torch.ones(1, 3, 4))

    def read():
        store = TextStore(tmp_path, "print")
        if (1, 2, 3) in store:
            store.read((1, 2, 3))

    storm(read, f"text {part}", next(tmp_path.glob(f"*.{part}")))


PROMPTS = {
    ".txt": "a cat --n dog --w 512 --h 512 --d 1 --s 9 --l 7.5 --ss ddim\n# no\na house\n",
    ".json": '["a cat --w 64", {"prompt": "x", "width": 64, "seed": 3, "scale": 7.5}]',
    ".toml": '[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "x"\nseed = 3\n',
}


@pytest.mark.parametrize("ending", PROMPTS)
def test_prompts(tmp_path, ending):
    file = tmp_path / f"p{ending}"
    file.write_text(PROMPTS[ending], encoding="utf-8")

    def read():
        for prompt in read_prompt_file(file, Prompt("")):
            assert prompt.text is not None
            prompt.text.encode("utf-8")

    storm(read, f"prompts{ending}", file)


def test_templates(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("a photo of [name], [filewords]\n[filewords]\n", encoding="utf-8")
    storm(lambda: read_templates([], file, "x"), "templates", file)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".avif", ".tif"])
def test_images(tmp_path, ending):
    whole = io.BytesIO()
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    picture.save(whole, Image.registered_extensions()[ending])
    rng = random.Random(f"{SEED}-image{ending}")
    for number in range(ROUNDS):
        (tmp_path / f"{number}{ending}").write_bytes(mutated(whole.getvalue(), rng))
    (tmp_path / f"whole{ending}").write_bytes(whole.getvalue())  # or none might be left to train on
    scan = decode_all(scan_folder(tmp_path))
    assert len(scan.records) + len(scan.skipped) == ROUNDS + 1
    for skipped in scan.skipped:
        skipped.reason.encode("utf-8")
