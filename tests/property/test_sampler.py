"""The order of the data: each image once per epoch, on any number of processes, by arithmetic."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from impasto.data.loading.sampler import EpochSampler, Group
from impasto.data.records import Size

SHAPES = [Size(512, 512), Size(576, 448), Size(448, 576)]
SETS = st.lists(st.sampled_from(SHAPES), min_size=1, max_size=40)


ORDERS = st.sampled_from(["shuffled", "proportional"])


def sampler(buckets, *, batch_size=4, repeats=1, **changes):
    options = {"seed": 3, **changes}
    if isinstance(repeats, int):
        repeats = [repeats] * len(buckets)
    groups = [Group(0, bucket) for bucket in buckets]
    return EpochSampler(
        groups, batch_sizes=dict.fromkeys(groups, batch_size), repeats=repeats, **options
    )


def test_a_full_batch_is_one_of_its_dataset_and_bucket():
    """A batch has one dataset and one bucket; a batch size never exceeds the number of showings."""
    square, wide = SHAPES[0], SHAPES[1]
    groups = [Group(0, square)] * 9 + [Group(1, square)] * 2 + [Group(0, wide)] * 2
    sizes = {Group(0, square): 4, Group(1, square): 1, Group(0, wide): 4}
    dealer = EpochSampler(groups, batch_sizes=sizes, seed=3, repeats=[1] * 12 + [2])
    found = {
        (len(batch.samples), groups[batch.samples[0].image], dealer.full_batch_size(batch))
        for step in range(dealer.steps_per_epoch)
        for batch in dealer.optimizer_step(step).micro_batches
    }
    assert found == {
        (4, Group(0, square), 4), (1, Group(0, square), 4),
        (1, Group(1, square), 1), (3, Group(0, wide), 3),
    }  # fmt: skip


def batches_of(dealer, ranks=1, epoch=0):
    """Return the images of each batch of an epoch, without padding samples."""
    steps = range(epoch * dealer.steps_per_epoch, (epoch + 1) * dealer.steps_per_epoch)
    return [
        [sample.image for sample in batch.samples]
        for step in steps
        for rank in range(ranks)
        for batch in dealer.optimizer_step(step, rank).micro_batches
        if not batch.is_padding
    ]


@given(
    st.lists(st.tuples(st.sampled_from(SHAPES), st.integers(1, 5)), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 2),
    ORDERS,
)
def test_each_picture_once_per_epoch_and_repeat(
    pictures, batch_size, accumulation, ranks, epoch, order
):
    buckets, repeats = zip(*pictures, strict=True)
    dealer = sampler(
        buckets,
        batch_size=batch_size,
        accumulation=accumulation,
        num_processes=ranks,
        repeats=repeats,
        order=order,
    )
    seen = Counter()
    for index in range(dealer.steps_per_epoch):
        step = epoch * dealer.steps_per_epoch + index
        positions = []
        for rank in range(ranks):
            optimizer_step = dealer.optimizer_step(step, rank)
            assert optimizer_step.epoch == epoch
            for batch in optimizer_step.micro_batches:
                assert len({buckets[sample.image] for sample in batch.samples}) == 1
                assert len(batch.samples) <= batch_size
                if not batch.is_padding:
                    seen.update(batch.samples)
                    positions += batch.positions
        assert sorted(positions) == list(range(optimizer_step.size))
    assert seen == {(i, r): 1 for i, times in enumerate(repeats) for r in range(times)}


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 6), st.integers(0, 3))
def test_repeats_meet_only_where_there_are_too_few_batches(repeats, batch_size, epoch):
    dealer = sampler([SHAPES[0]] * len(repeats), batch_size=batch_size, repeats=repeats)
    batches = batches_of(dealer, epoch=epoch)
    for picture, times in enumerate(repeats):
        most = max(batch.count(picture) for batch in batches)
        assert most == 1 or times > len(batches)


@given(st.integers(1, 40), st.integers(1, 9))
def test_without_repeats_only_the_last_batch_is_short(count, batch_size):
    sizes = sorted(map(len, batches_of(sampler([SHAPES[0]] * count, batch_size=batch_size))))
    assert sizes[1:] == [batch_size] * (len(sizes) - 1)


def test_data_sets_do_not_mix_and_keep_their_batch_sizes():
    groups = [Group(0, SHAPES[0])] * 7 + [Group(1, SHAPES[0])] * 7
    dealer = EpochSampler(groups, batch_sizes={g: (2, 5)[g.dataset] for g in groups}, seed=1)
    by_data_set = {0: [], 1: []}
    for batch in batches_of(dealer):
        numbers = {groups[picture].dataset for picture in batch}
        assert len(numbers) == 1
        by_data_set[numbers.pop()].append(len(batch))
    assert sorted(by_data_set[0]) == [1, 2, 2, 2]
    assert sorted(by_data_set[1]) == [2, 5]


def test_proportional_draws_give_each_process_its_share_and_different_buckets():
    buckets = [SHAPES[0]] * 80 + [SHAPES[1]] * 40
    dealer = sampler(buckets, num_processes=2, order="proportional")
    shares, differing = [], 0
    for step in range(dealer.steps_per_epoch):
        batches = [dealer.optimizer_step(step, rank).micro_batches[0] for rank in range(2)]
        shapes = {buckets[batch.samples[0].image] for batch in batches}
        differing += len(shapes) > 1
        shares.append([len(batch.samples) for batch in batches])
    assert [sum(column) for column in zip(*shares, strict=True)] == [60, 60]
    assert differing > 2


@given(SETS, st.integers(1, 4), st.integers(0, 20), ORDERS)
def test_every_process_does_the_same_number_of_micro_batches(buckets, ranks, step, order):
    dealer = sampler(buckets, num_processes=ranks, accumulation=2, order=order)
    assert len({len(dealer.optimizer_step(step, rank).micro_batches) for rank in range(ranks)}) == 1


@given(SETS, st.integers(0, 30))
def test_pictures_seen_by_arithmetic_equal_pictures_counted(buckets, step):
    dealer = sampler(buckets, accumulation=2)
    assert dealer.samples_before(step) == sum(dealer.optimizer_step(s).size for s in range(step))


@given(SETS, st.lists(st.integers(0, 30)))
def test_pictures_seen_are_counted_alike_in_any_order(buckets, steps):
    used = sampler(buckets, accumulation=2)
    counted = [used.samples_before(step) for step in steps]
    assert counted == [sampler(buckets, accumulation=2).samples_before(step) for step in steps]


@given(SETS, st.integers(0, 9))
def test_a_new_sampler_continues_where_another_would_be(buckets, step):
    fresh, used = sampler(buckets), sampler(buckets)
    for earlier in range(step):
        used.optimizer_step(earlier)
    assert fresh.optimizer_step(step) == used.optimizer_step(step)


@given(st.integers(1, 3))
def test_more_processes_make_the_same_updates_as_accumulation(ranks):
    """Two processes and four micro-batches of one process see the same images together."""
    buckets = SHAPES * 9
    alone = sampler(buckets, accumulation=ranks)
    together = sampler(buckets, num_processes=ranks)
    for step in range(alone.steps_per_epoch):
        expected = [b.samples for b in alone.optimizer_step(step).micro_batches]
        found = [together.optimizer_step(step, rank).micro_batches[0] for rank in range(ranks)]
        assert [b.samples for b in found if not b.is_padding] == expected


def test_epochs_differ_and_seeds_differ():
    buckets = [SHAPES[0]] * 12
    orders = [
        [b.samples for b in sampler(buckets, seed=seed).optimizer_step(epoch * 3).micro_batches]
        for seed in (1, 2)
        for epoch in (0, 1)
    ]
    assert len({str(order) for order in orders}) == 4
