"""Ten million records: plan, start of training, and memory; a second scan of a million files."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

from impasto.data.caching.latent_cache import CachedPlan, LatentCache
from impasto.data.caching.latent_keys import KeyTable
from impasto.data.caching.prepared import PreparedKeys
from impasto.data.columns.tables import TableFolder
from impasto.data.folders.found import STAMPS
from impasto.data.loading.sampler import EpochSampler
from impasto.data.planning.plan import Plan, plan_images
from impasto.data.record_columns import Use
from impasto.data.record_table import RecordTable
from impasto.data.records import Size
from impasto.data.scanning.probing import INDEX, INDEX_VERSION, Entries
from impasto.data.scanning.scan import scan_folder
from impasto.data.sharding.shard_files import stamp_of_shard
from impasto.data.sharding.shard_index import INDEX_SCHEMA, SHARDS_KEY
from impasto.data.sharding.shard_index import INDEX_VERSION as SHARDS_VERSION
from impasto.data.subsets import PLAIN

RECORDS = 10_000_000
FILES = 1_000_000
SHARDS = 5_000
SIDES = np.arange(384, 2048)
SOURCES = ("a vae", "a vae")
_AT_ONCE = 1 << 18


def measure(scratch: Path) -> dict[str, str]:
    scratch.mkdir(parents=True, exist_ok=True)
    if not (scratch / "ready").exists():
        write_tables(scratch)
        (scratch / "ready").touch()
    first = start(scratch)
    one = json.loads(first.stdout.readline())
    second = start(scratch)
    other = json.loads(second.stdout.readline())
    for process in (first, second):
        process.communicate("\n")
    return {
        "10,000,000 records: plan, s": f"{one['plan']:.1f}",
        "the same: index opened and its bytes compared, s": f"{one['index']:.1f}",
        "the same: latents' keys looked up, s": f"{one['keys']:.1f}",
        "the same: first epoch dealt, s": f"{one['dealt']:.1f}",
        "the same: start of training without the plan, s": f"{one['start'] - one['plan']:.1f}",
        "the same: memory of its own at most, MiB": f"{one['most']:,.0f}",
        "the same: RAM at most, mapped files included, MiB": f"{one['peak']:,.0f}",
        "the same: of its own while it trains, libraries included, MiB": f"{one['own']:,.0f}",
        "the same: of that, libraries, MiB": f"{one['libraries']:,.0f}",
        "a second process beside it: of its own beyond libraries, MiB": (
            f"{other['own'] - other['libraries']:,.0f}"
        ),
        "a step's batches from the epoch, microseconds": f"{one['step']:.0f}",
        **million_files(scratch / "files"),
    }


def start(scratch: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "bench.scale", str(scratch)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write_tables(scratch: Path) -> None:
    """Write the index of a scan, and the files that a latent cache stores for that many images."""
    rng = np.random.default_rng(0)
    index = TableFolder(scratch / "scan.table", INDEX, [INDEX_VERSION, "bench"])
    parts = [part_of_index(begin, rng) for begin in range(0, RECORDS, _AT_ONCE)]
    index.rewrite(pa.concat_tables(parts).slice(0, RECORDS))
    keys = rng.integers(1, 2**64 - 1, (RECORDS, 2), dtype=np.uint64)
    shards = scratch / "latents"
    shards.mkdir(exist_ok=True)
    each = RECORDS // SHARDS
    names = [f"shard-512x512-{n:016x}" for n in range(SHARDS)]
    for name in names:
        (shards / f"{name}.safetensors").write_bytes(b"x")
        (shards / f"{name}.json").write_text("{}", encoding="utf-8")
    order = np.argsort(keys[:, 0], kind="stable").astype(np.int32)
    columns = [keys[order, 0], keys[order, 1], order // each, order % each]
    columns.append(rng.integers(0, 2**32, RECORDS))
    table = pa.Table.from_arrays(list(map(pa.array, columns)), schema=INDEX_SCHEMA)
    stamps = {name: stamp_of_shard(shards / f"{name}.json") for name in names}
    described = json.dumps({name: (each, stamp, []) for name, stamp in stamps.items()}).encode()
    TableFolder(shards / "index.table", INDEX_SCHEMA, SHARDS_VERSION).replace_all(
        table, {SHARDS_KEY: described}
    )
    names_of = keys.astype(">u8").view(np.uint8).reshape(-1, 16)
    plan = planned(records_of(scratch))
    kept = CachedPlan(plan.images, KeyTable(RECORDS, {"plain": names_of}), (), 0)
    everyone = np.ones(RECORDS, dtype=np.bool_)
    PreparedKeys(shards / "prepared", plan.table, SOURCES).write(kept, everyone)


def part_of_index(begin: int, rng: np.random.Generator) -> pa.Table:
    count = _AT_ONCE
    stamps = [pa.array(np.full(count, begin + number)) for number in range(STAMPS)]
    sides = [pa.array(rng.choice(SIDES, count).astype(np.int32)) for _ in range(2)]
    names = [f"/data/images/{n // 1000:05d}/{n:08d}.jpg" for n in range(begin, begin + count)]
    words = [f"a photograph of number {n}, in the style of many others" for n in range(count)]
    texts = [pa.array(column, pa.large_string()) for column in (names, words, [""] * count)]
    rotated = pa.array(np.zeros(count, np.uint8))
    arrays = [texts[0], *stamps, *sides, rotated, texts[1], texts[2], texts[2]]
    return pa.Table.from_arrays(arrays, schema=INDEX)


def records_of(scratch: Path) -> RecordTable:
    """Return the records of an index, as a scan makes them from unchanged files."""
    table = TableFolder(scratch / "scan.table", INDEX, [INDEX_VERSION, "bench"]).read()
    entries = Entries(table, np.arange(len(table)))
    names = {"size_bytes": "stamp0", "mtime_ns": "stamp1"}
    columns = ("width", "height", "size_bytes", "mtime_ns", "rotated")
    numbers = {name: entries.column(names.get(name, name)) for name in columns}
    numbers["use"] = np.broadcast_to(np.int32(0), len(table))
    return RecordTable(entries.texts, None, numbers, [Use(PLAIN, "")], distinct=True)


def planned(records: RecordTable) -> Plan:
    return plan_images(records, Size(512, 512))


def million_files(folder: Path) -> dict[str, str]:
    index = folder.with_suffix(".json")
    if not (folder / "ready.md").exists():
        write_files(folder)
        (folder / "ready.md").touch()
    began = time.perf_counter()
    scan_folder(folder, index=index)
    first = time.perf_counter() - began
    took = []
    for _ in range(3):
        began = time.perf_counter()
        scan_folder(folder, index=index)
        took.append(time.perf_counter() - began)
    return {
        f"{FILES:,} files with captions: first scan, s": f"{first:.0f}",
        "the same: second scan, best of 3, s": f"{min(took):.1f}",
    }


def write_files(folder: Path) -> None:
    image = folder.parent / "image.jpg"
    Image.new("RGB", (64, 48)).save(image)
    content = image.read_bytes()
    for number in range(FILES):
        inner = folder / f"{number // 1000:04d}"
        if number % 1000 == 0:
            inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{number:07d}.jpg").write_bytes(content)
        (inner / f"{number:07d}.txt").write_text(f"image number {number}", encoding="utf-8")


def own_memory() -> float:
    """Return this process's memory in MiB without shared pages, such as mapped files."""
    info = psutil.Process().memory_info()
    return float(info.rss - info.shared) / 2**20


def as_a_process(scratch: Path) -> None:
    """Start as training does, print the times, and stay until a line is read from stdin."""
    found: dict[str, Any] = {"libraries": own_memory()}
    seen: list[float] = []
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(0.02):
            seen.append(own_memory())

    threading.Thread(target=watch, daemon=True).start()
    begun = time.perf_counter()

    def done(name: str, since: float) -> float:
        found[name] = time.perf_counter() - since
        return time.perf_counter()

    records = records_of(scratch)
    cache = LatentCache(scratch / "latents")
    now = done("index", begun)
    plan = planned(records)
    now = done("plan", now)
    kept = PreparedKeys(cache.folder / "prepared", plan.table, SOURCES).read(cache)
    if kept is None:
        raise SystemExit("the stored keys do not match these records")
    images, keys = kept.table, kept.keys
    del plan
    now = done("keys", now)
    groups = images.groups()
    sizes = dict.fromkeys(groups.table, 16)
    sampler = EpochSampler(groups, batch_sizes=sizes, repeats=images.records.repeats, seed=1)
    del groups
    sampler.optimizer_step(0)
    done("dealt", now)
    found["start"] = time.perf_counter() - begun
    sampler.optimizer_step(sampler.steps_per_epoch - 1)
    time.sleep(5)  # the next epoch is shuffled meanwhile
    began = time.perf_counter()
    for step in range(1000):
        for sample in sampler.optimizer_step(step).micro_batches[0].samples:
            found["last"] = (keys[sample.image].plain, images[sample.image].record.caption)
    found["step"] = (time.perf_counter() - began) * 1e3
    found["own"] = own_memory()
    watching.set()
    found["most"] = max(seen)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps(found), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    as_a_process(Path(sys.argv[1]))
