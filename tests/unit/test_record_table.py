"""Records stored as columns are the same records, in the same order, in few bytes."""

import dataclasses
import hashlib
import pickle
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from impasto.data.caching.latent_keys import KeyTable, LatentKeys, join_keys
from impasto.data.loading.sampler import EpochSampler, Group
from impasto.data.planning.groups import Groups
from impasto.data.planning.plan import plan_images
from impasto.data.planning.planned_table import PlannedTable, join_planned
from impasto.data.record_table import RecordTable, join_records
from impasto.data.records import Box, Cut, FileStamp, ImageRecord, Size
from impasto.data.scanning.scan import Scan
from impasto.data.subsets import Subset

SUBSETS = (Subset(), Subset(dataset=1, repeats=3), Subset(dataset=1, class_tokens="a dog"))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
SIZES = st.builds(Size, st.integers(64, 2000), st.integers(64, 2000))
RECORDS = st.lists(
    st.builds(
        ImageRecord,
        path=st.integers(0, 30).map(lambda n: Path("set", f"蝶{n}.png")),
        size=SIZES,
        stamp=st.builds(FileStamp, st.integers(0, 2**62), st.integers(0, 2**62)),
        caption=TEXT,
        tags=TEXT,
        rotated=st.booleans(),
        wanted=st.none() | SIZES,
        subset=st.sampled_from(SUBSETS),
        cut=st.just(None),
        class_tokens=st.sampled_from(["", "a dog"]),
        extra_repeats=st.integers(0, 4),
    ),
    max_size=6,
)


NAMES = st.sampled_from(
    [
        "set/a.png", "set//b.png", "set/./c.png", "set/../d.png", "other/e.png", "/abs/f.png",
        "set/g@1/h.png", "set/cafe\u0301.png", "set/蝶.png", "set.png", "set/i.tar@512+9/j.png",
        "k",
    ]
)  # fmt: skip
ROOTS = st.sampled_from([Path(), Path("set"), Path("/abs"), Path("/"), Path("set/g@1")])


@settings(deadline=None)
@given(RECORDS, st.lists(st.tuples(NAMES, ROOTS), min_size=6, max_size=6), st.booleans())
def test_names_and_captions_are_those_of_the_records(records, places, as_given):
    """Scans give paths that are not written as `Path` writes them."""
    records = [
        dataclasses.replace(
            record, path=Path(name), subset=dataclasses.replace(record.subset, root=root)
        )
        for record, (name, root) in zip(records, places, strict=False)
    ]
    table = RecordTable.of(records)
    if as_given:
        names = [name for name, _ in places[: len(records)]]
        table = table.with_captions(
            [r.caption for r in records], [r.tags for r in records], [None] * len(names)
        )
        texts = table.texts.set_column(0, "path", pa.array(names, pa.large_string()))
        table = RecordTable(texts, None, table.numbers, table.uses)
    assert list(table.names_and_captions()) == [(r.name, r.caption_text) for r in records]
    assert table.fixed_captions() == [r.fixed_caption for r in records]


@settings(deadline=None)
@given(RECORDS, RECORDS, st.data())
def test_columns_and_their_plans_hold_the_same_records(one, other, data):
    assert_counted(one)
    assert_planned([part for part in (one, other) if part])
    cut = Cut(Size(900, 800), Box(5, 7, Size(64, 64)))
    one = [dataclasses.replace(r, size=Size(64, 64), cut=cut) for r in one[:1]] + one[1:]
    table = join_records([RecordTable.of(one), RecordTable.of(other)])
    both = [*one, *other]
    assert table == both
    assert [table[place] for place in range(len(both))] == both
    assert table[1:5] == both[1:5]
    picked = data.draw(st.lists(st.sampled_from(range(len(both))))) if both else []
    chosen = table.select(np.array(picked, dtype=np.int64))
    assert chosen == [both[place] for place in picked]
    assert chosen.repeats.tolist() == [both[place].repeats for place in picked]
    assert join_records([chosen, table]) == [*(both[place] for place in picked), *both]
    gone = [record.path for record in both[:2]]
    assert table.without(gone) == [r for r in both if r.path not in gone]


def assert_counted(records):
    """Require that counts of columns equal counts of records."""
    scan = Scan("x", RecordTable.of(records), (), ())
    paths = {r.path for r in records}
    worded = {r.path for r in records if r.caption_text.strip()}
    classed = {r.path for r in records if r.class_tokens and not r.own_caption_text.strip()}
    tally = scan.tally
    assert (tally.usable, tally.without_words) == (len(paths), len(paths) - len(worded))
    assert tally.by_class == len(classed)
    assert scan.multiline_captions == sum("\n" in r.caption_text for r in records)


def assert_planned(parts):
    """Require that plans as columns contain the same images."""
    plans = [plan_images(records, Size(512, 512)) for records in parts]
    images = [image for plan in plans for image in plan.images]
    joined = join_planned([plan.table for plan in plans])
    assert joined == images
    assert PlannedTable.of(images) == images
    assert list(joined.groups()) == [Group(i.record.subset.dataset, i.bucket) for i in images]
    assert joined.enlarged().tolist() == [i.resized.area > i.record.size.area for i in images]
    assert joined.cropped_fractions().tolist() == [i.cropped_fraction for i in images]
    counts = {}
    for image in images:
        counts[image.bucket] = counts.get(image.bucket, 0) + 1
    assert list(joined.bucket_counts().items()) == sorted(counts.items())


def test_keys_as_columns_are_the_same_keys():
    names = ["", *(hashlib.sha256(bytes([n])).hexdigest()[:32] for n in range(9))]
    keys = [LatentKeys(names[n], names[n % 3], names[n % 2]) for n in range(10)]
    table = KeyTable.of(keys)
    assert table == keys
    assert not table.all_plain
    assert table[1:].all_plain
    assert join_keys([table[:4], KeyTable.of([LatentKeys(names[3])]), table[4:]]) == [
        *keys[:4], LatentKeys(names[3]), *keys[4:]
    ]  # fmt: skip


def test_an_image_takes_at_most_120_bytes_of_a_process():
    """Not counted are paths and captions, which stay in a file that all processes map."""
    count = 20_000
    rng = np.random.default_rng(0)
    records = RecordTable.of(
        [
            ImageRecord(Path(f"set/{n}.png"), Size(int(w), int(h)), FileStamp(n, n), "a cat")
            for n, (w, h) in enumerate(rng.integers(256, 1024, (count, 2)))
        ]
    )
    plan = plan_images(records, Size(512, 512)).table
    keys = KeyTable.of([LatentKeys(f"{n + 1:032x}", f"{n + 2:032x}") for n in range(count)])
    groups = plan.groups()
    sampler = EpochSampler(groups, batch_sizes=dict.fromkeys(groups.table, 16), seed=1)
    sampler.optimizer_step(0)
    dealt = [sampler._deals.of(epoch) for epoch in (0, 1, 2)]
    arrays = [*records.numbers.values(), plan.codes, *keys.columns.values(), groups.codes]
    arrays += [dealer.members for dealer in sampler._dealers]
    arrays += [a for deal in dealt for a in (deal.images, deal.starts, deal.rounds)]
    assert sum(array.nbytes for array in arrays) / count <= 120


def test_the_order_is_that_of_earlier_versions():
    """Digests of epochs, recorded when records were lists of objects."""
    buckets = [Size(512, 512), Size(576, 448), Size(448, 576)]
    groups = [Group(n % 2, buckets[n * n % 3]) for n in range(300)]
    found = {}
    for order in ("shuffled", "proportional"):
        for name, repeats in (("once", None), ("often", [1 + n % 4 for n in range(300)])):
            sampler = EpochSampler(
                Groups.of(groups),
                batch_sizes={group: 5 + group.dataset for group in groups},
                seed=7,
                repeats=repeats,
                accumulation=2,
                num_processes=3,
                order=order,
            )
            digest = hashlib.sha256()
            for step in range(2 * sampler.steps_per_epoch):
                for rank in range(3):
                    digest.update(repr(sampler.optimizer_step(step, rank)).encode())
            found[order, name] = digest.hexdigest()[:16]
    assert found == GOLDEN


def test_the_next_epoch_is_dealt_ahead_and_is_the_same():
    from impasto.data.loading import sampler as module

    groups = Groups((Group(0, Size(64, 64)),), np.zeros(module._AHEAD_FROM, dtype=np.int32))
    sizes = {groups.table[0]: 1000}
    ahead, fresh = (EpochSampler(groups, batch_sizes=sizes, seed=3) for _ in range(2))
    for epoch in range(3):
        step = epoch * ahead.steps_per_epoch
        assert ahead.optimizer_step(step) == fresh.optimizer_step(step)
        assert ahead._deals._known.keys() == {max(0, epoch - 1), epoch, epoch + 1}
        fresh = EpochSampler(groups, batch_sizes=sizes, seed=3)


def test_an_epoch_is_dealt_once_though_loaders_are_in_the_next_already():
    from impasto.data.loading import sampler as module

    dealt = []
    deals = module._Deals(lambda epoch: dealt.append(epoch) or epoch, ahead=True)
    for epoch in (0, 1, 0, 1, 0, 1, 2, 1, 2):
        assert deals.of(epoch) == epoch
    assert deals.of(3) == 3
    assert sorted(dealt)[:4] == [0, 1, 2, 3]


def test_tables_that_records_were_asked_of_are_freed_at_once_and_can_be_sent():
    records = RecordTable.of(
        [ImageRecord(Path(f"{n}.png"), Size(64, 64), FileStamp(n, n), "a cat") for n in range(9)]
    )
    plan = plan_images(records, Size(64, 64)).table
    for table in (records, plan):
        first = table[0]
        part = table.select(np.arange(3))
        assert part[0] == first
        assert repr(list(pickle.loads(pickle.dumps(part)))) == repr(list(part))
        gone = weakref.ref(part)
        del part
        assert gone() is None  # without garbage collection of cycles


GOLDEN = {
    ("shuffled", "once"): "4f984e9b38016a41",
    ("shuffled", "often"): "70f6262ddbc0f8fa",
    ("proportional", "once"): "24d2c2ee6aa7b613",
    ("proportional", "often"): "fc887152e1bd759c",
}  # fmt: skip
