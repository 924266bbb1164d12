"""The order of the data: each picture once per epoch, on any number of processes, by arithmetic."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from impasto.data.records import Size
from impasto.data.sampler import EpochSampler

SHAPES = [Size(512, 512), Size(576, 448), Size(448, 576)]
SETS = st.lists(st.sampled_from(SHAPES), min_size=1, max_size=40)


def sampler(buckets, **changes):
    options = {"batch_size": 4, "seed": 3, **changes}
    return EpochSampler(buckets, **options)


@given(
    SETS,
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_each_picture_once_per_epoch(buckets, batch_size, accumulation, ranks, repeats, epoch):
    dealer = sampler(
        buckets,
        batch_size=batch_size,
        accumulation=accumulation,
        num_processes=ranks,
        repeats=repeats,
    )
    seen = Counter()
    for index in range(dealer.updates_per_epoch):
        step = epoch * dealer.updates_per_epoch + index
        positions = []
        for rank in range(ranks):
            update = dealer.update(step, rank)
            assert update.epoch == epoch
            for batch in update.micro_batches:
                assert len({buckets[i] for i in batch.indices}) == 1
                assert len(batch.indices) <= batch_size
                if not batch.is_padding:
                    seen.update(batch.indices)
                    positions += batch.positions
        assert sorted(positions) == list(range(update.size))
    assert seen == dict.fromkeys(range(len(buckets)), repeats)


@given(SETS, st.integers(1, 4), st.integers(0, 20))
def test_every_process_does_the_same_number_of_micro_batches(buckets, ranks, step):
    dealer = sampler(buckets, num_processes=ranks, accumulation=2)
    assert len({len(dealer.update(step, rank).micro_batches) for rank in range(ranks)}) == 1


@given(SETS, st.integers(0, 30))
def test_pictures_seen_by_arithmetic_equal_pictures_counted(buckets, step):
    dealer = sampler(buckets, accumulation=2)
    assert dealer.samples_before(step) == sum(dealer.update(s).size for s in range(step))


@given(SETS, st.integers(0, 9))
def test_a_new_sampler_continues_where_another_would_be(buckets, step):
    fresh, used = sampler(buckets), sampler(buckets)
    for earlier in range(step):
        used.update(earlier)
    assert fresh.update(step) == used.update(step)


@given(st.integers(1, 3))
def test_more_processes_make_the_same_updates_as_accumulation(ranks):
    """Two processes and four micro-batches of one process see the same pictures together."""
    buckets = SHAPES * 9
    alone = sampler(buckets, accumulation=ranks)
    together = sampler(buckets, num_processes=ranks)
    for step in range(alone.updates_per_epoch):
        expected = [b.indices for b in alone.update(step).micro_batches]
        found = [together.update(step, rank).micro_batches[0] for rank in range(ranks)]
        assert [b.indices for b in found if not b.is_padding] == expected


def test_epochs_differ_and_seeds_differ():
    buckets = [SHAPES[0]] * 12
    orders = [
        [b.indices for b in sampler(buckets, seed=seed).update(epoch * 3).micro_batches]
        for seed in (1, 2)
        for epoch in (0, 1)
    ]
    assert len({str(order) for order in orders}) == 4
