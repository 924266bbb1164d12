"""Predicted memory against the allocations of a real step, and choosing settings by it."""

import gc
import weakref
from functools import partial

import pytest
import torch
from flat_models import bare_architecture, flat_architecture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from impasto.config.cases import Facts
from impasto.data.loading.sampler import Group
from impasto.data.records import Size
from impasto.errors import OutOfMemoryError
from impasto.models.networks.loading import load_base_model, load_meta_model
from impasto.models.text.conditioning import ConditioningShape
from impasto.models.trainable import FullFineTune
from impasto.models.writing.architectures import meta_model_of_architecture
from impasto.training.parallel.shards import Sharding
from impasto.training.planning import phases
from impasto.training.planning.changes import with_fields
from impasto.training.planning.fake_step import FakeStep, decoding_peak
from impasto.training.planning.fitter import MemoryFitter, gib
from impasto.training.planning.levers import LADDER, offers
from impasto.training.planning.memory import FootprintPredictor
from impasto.training.planning.workload import Workload

SIZE = Size(128, 128)
KINDS = {
    "kept gradients": ({}, None, False, False),
    "checkpointing": ({"gradient_checkpointing": True}, None, True, False),
    "bf16": ({}, torch.bfloat16, False, False),
    "second backward": ({}, None, True, True),
    "second backward, checkpointing": ({"gradient_checkpointing": True}, None, True, True),
}


class TensorBytes(TorchDispatchMode):
    """Tracks the peak of bytes in tensors that operators returned and that are alive together.

    Memory inside a kernel depends on the CPU and is not counted. Dead tensors are removed only when
    the sum would reach a new peak.
    """

    def __init__(self, there_before):
        super().__init__()
        self.peak = self._at_most = 0
        self._seen = {}
        self._before = {tensor.untyped_storage().data_ptr() for tensor in there_before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                address = storage.data_ptr()
                if address not in self._before:
                    _, former = self._seen.get(address, (None, 0))
                    self._seen[address] = (weakref.ref(storage), storage.nbytes())
                    self._at_most += storage.nbytes() - former
        if self._at_most > self.peak:
            self._seen = {p: seen for p, seen in self._seen.items() if seen[0]() is not None}
            self._at_most = sum(size for _, size in self._seen.values())
            self.peak = max(self.peak, self._at_most)
        return output


def allocated_peak(work, there_before):
    """Return the peak bytes of real tensors that `work` creates and holds at once."""
    gc.collect()
    with TensorBytes(there_before) as found:
        work()
    return found.peak


@pytest.mark.parametrize("name", KINDS)
def test_a_fake_step_tells_what_a_step_allocates_and_computes(name, nano_model, deeper_model):
    """Bytes and operations agree, also if a second backward pass recomputes activations."""
    options, autocast, frees, twice = KINDS[name]
    folder = nano_model if autocast is None else deeper_model
    unet = FullFineTune(load_base_model(folder), lr=1e-4, **options).unet
    width = unet.config["cross_attention_dim"]
    latents, t, states = torch.randn(8, 4, 16, 16), torch.zeros(8).long(), torch.randn(8, 77, width)

    def step():
        handles = [
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
            for p in unet.parameters()
            if frees
        ]
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            output = unet(latents, t, encoder_hidden_states=states).sample
        loss = (output.float() - latents).square().mean()
        if twice:
            loss.backward(retain_graph=True)
        loss.backward()
        for handle in handles:
            handle.remove()

    operations = FlopCounterMode(display=False)
    with operations:  # and first calls of kernels
        step()
    unet.zero_grad()
    real = allocated_peak(step, [latents, t, states, *unet.parameters(), *unet.buffers()])
    meta_model = FullFineTune(load_meta_model(folder), lr=1e-4, **options)
    fake_step = FakeStep(
        meta_model.network,
        told(width),
        autocast,
        frees_gradients=frees,
        has_second_backward=twice,
    )
    cost = fake_step.step(SIZE, 8)
    assert cost.peak_bytes == pytest.approx(real, rel=0.01)
    assert cost.flops == operations.get_total_flops()
    if frees:
        assert cost.gradient_bytes == 0


def told(width):
    return ConditioningShape(77, width)


@pytest.fixture
def bare_model(nano_architecture):
    """Return a function that builds meta models of few operations, for choices by memory."""
    return partial(meta_model_of_architecture, bare_architecture(nano_architecture))


@pytest.fixture
def flat_model(nano_architecture):
    """Return a function that builds meta models with attention and a middle block."""
    return partial(meta_model_of_architecture, flat_architecture(nano_architecture))


EXACT, LAST_NORM = ({"optimizer_in_backward": way} for way in ("exact", "last_norm"))
RECOMPUTING, FP16 = {"gradient_checkpointing": True}, {"mixed_precision": "fp16"}


@pytest.mark.parametrize(
    ("training", "beside", "times"),
    [
        (EXACT, LAST_NORM, 5 / 3),
        (EXACT | RECOMPUTING, LAST_NORM | RECOMPUTING, 7 / 4),
        (EXACT | {"max_grad_norm": 0}, LAST_NORM, 1),
        (EXACT | {"max_grad_norm": 0} | FP16, FP16, 5 / 3),
    ],
)
def test_a_second_backward_pass_takes_its_time(training, beside, times, train_config, bare_model):
    """A second backward pass adds two thirds of the time, or three quarters with recomputation."""
    meter = FootprintPredictor(bare_model, "cpu")

    def cost(settings):
        return meter.footprint(
            train_config(training={"mixed_precision": "no", **settings}), SIZE, 2
        )

    assert cost(training).flops / cost(beside).flops == pytest.approx(times, rel=0.03)
    assert cost(training).operations / cost(beside).operations == pytest.approx(times, rel=0.05)


def test_no_size_is_shown_as_nothing():
    assert [gib(size * 2**20) for size in (20, 102, 103, 600)] == [
        "20 MiB", "102 MiB", "0.1 GiB", "0.6 GiB"
    ]  # fmt: skip


def test_decoding_takes_memory_by_its_area(bare_model):
    small, large = (decoding_peak(bare_model().vae, Size(side, side), 1) for side in (128, 256))
    assert large == pytest.approx(4 * small, rel=0.1)


def test_as_on_a_gpu_norms_are_float32(bare_model):
    def peak(*, as_on_gpu):
        meta_model = FullFineTune(bare_model(), lr=1e-4)
        width = meta_model.network.config["cross_attention_dim"]
        return FakeStep(
            meta_model.network,
            told(width),
            torch.bfloat16,
            as_on_gpu=as_on_gpu,
            frees_gradients=True,
        ).step(SIZE, 8)

    assert peak(as_on_gpu=True).peak_bytes > 1.1 * peak(as_on_gpu=False).peak_bytes


def fitting(train_config, meta_model, device="cuda", budget=0):
    config = train_config()
    meter = FootprintPredictor(meta_model, device)
    return MemoryFitter(meter, device, Group(0, SIZE), budget), config


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_rung_takes_more(device, train_config, bare_model):
    """The exception is a second backward pass, for which activations are kept: more than
    gradients."""
    ladder, config = fitting(train_config, bare_model, device)
    config = with_fields(config, "training", {"ema_decay": 0.9})
    others = ("mixed_precision", "exact")
    for rung in LADDER[device]:
        if offers(rung, config) and not any(other in rung.text() for other in others):
            changed = with_fields(config, *next(iter(rung.changes.items())))
            assert ladder.footprint(changed).total <= ladder.footprint(config).total, rung.text()


def test_fewer_rungs_are_taken_where_more_memory_is_there(train_config, bare_model):
    ladder, config = fitting(train_config, bare_model)
    found = ladder.footprint(config)
    whole = found.total - found.workspace
    taken = []
    for share in (1.2, 0.9, 0.6, 0.4):
        budget = int((found.workspace + share * whole) / 0.95)
        one = MemoryFitter(ladder.meter, "cuda", ladder.group, budget)
        chosen, rungs = one.choose_levers(config, keep_asked=False)
        assert one.fits(chosen)
        assert not any(one.fits(_without(config, rungs, rung)) for rung in rungs)
        taken.append(len(rungs))
    assert taken[0] == 0
    assert taken == sorted(taken)


def test_what_is_kept_in_ram_has_to_fit_there(train_config, bare_model):
    ladder, config = fitting(train_config, bare_model)
    levers = {
        "gradient_checkpointing": True, "optimizer_in_backward": "exact", "stream_weights": True,
        "offload_optimizer": True, "ema_decay": 0.9, "ema_on_cpu": True,
    }  # fmt: skip
    streamed = with_fields(config, "training", levers)
    kept = ladder.meter.ram(streamed)
    assert kept.keys() == {"streamed weights", "optimizer state", "average"}
    weights = kept["average"] // 2  # the average in float32, and the weights during its validation
    assert 2 * weights <= kept["optimizer state"] <= 4 * weights  # rounded up to powers of two
    assert kept["streamed weights"] < weights
    assert ladder.meter.ram(config) == {}
    assert FootprintPredictor(bare_model, "cpu").ram(streamed) == {}
    large = 1 << 40
    total = sum(kept.values())
    small = MemoryFitter(ladder.meter, "cuda", ladder.group, large, ram=total // 2)
    assert small.require_fit(config) is None
    with pytest.raises(OutOfMemoryError, match="of GPU data in RAM"):
        small.require_fit(streamed)
    close = MemoryFitter(ladder.meter, "cuda", ladder.group, large, ram=total)
    assert "That is close: close other programs" in close.require_fit(streamed)
    roomy = MemoryFitter(ladder.meter, "cuda", ladder.group, large, ram=large)
    assert roomy.require_fit(streamed) is None


def test_rungs_that_move_what_no_ram_is_free_for_are_not_taken(train_config, bare_model):
    ladder, config = fitting(train_config, bare_model)
    nothing = MemoryFitter(ladder.meter, "cuda", ladder.group, 0, ram=0)
    everything = MemoryFitter(ladder.meter, "cuda", ladder.group, 0, ram=1 << 40)
    words = [
        " ".join(rung.text() for rung in one.choose_levers(config, keep_asked=True)[1])
        for one in (nothing, everything)
    ]
    for setting in ("offload_optimizer", "stream_weights"):
        assert setting not in words[0]
        assert setting in words[1]
    assert "optimizer_in_backward" in words[0]


def test_graphs_of_steps_are_given_up_for_memory_and_for_what_they_exclude(
    train_config, bare_model
):
    """Step graphs are dropped alone if that suffices, and before 8-bit states, which exclude
    them."""
    ladder, _ = fitting(train_config, bare_model)
    config = train_config(
        training={"cuda_graphs": "step", "mixed_precision": "bf16", "cache_text_to_disk": True},
        optimizer={"kind": "adamw"},
        dataset={"vae_batch_size": 1},
    )
    plain = with_fields(config, "training", {"cuda_graphs": "off"})
    budget = int(ladder.footprint(plain).total / 0.95) + 4096
    enough = MemoryFitter(ladder.meter, "cuda", ladder.group, budget)
    assert not enough.fits(config)
    _, (rung,) = enough.choose_levers(config, keep_asked=False)
    assert rung.text() == 'training.cuda_graphs = "off"'
    chosen, _ = ladder.choose_levers(config, keep_asked=False)  # no amount of memory is enough
    assert (chosen.training.cuda_graphs, chosen.optimizer.kind) == ("off", "adamw8bit")
    assert chosen.training.optimizer_in_backward != "off"
    asked, _ = ladder.choose_levers(config, keep_asked=True)
    assert (asked.training.cuda_graphs, asked.optimizer.kind) == ("step", "adamw")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_fits_at_no_size_is_told_without_a_step(device, train_config, bare_model, monkeypatch):
    """Settings that never fit are refused without a simulated step for each of ten rungs."""
    ladder, config = fitting(train_config, bare_model, device)
    for changes in ({}, {"cuda_graphs": "step"}, {"optimizer_in_backward": "exact"}):
        changed = with_fields(config, "training", changes)
        least = ladder.meter.least_bytes(changed)
        assert 0 < least <= ladder.footprint(changed).total
        enough = MemoryFitter(ladder.meter, device, ladder.group, int(1.1 * least))
        assert enough.fits(changed) == (ladder.footprint(changed).total <= 0.95 * enough.budget)

    def no_step(*_):
        raise AssertionError("a step was looked at")

    monkeypatch.setattr(FakeStep, "step", no_step)
    monkeypatch.setattr(phases, "_FOUND", {})
    none, _ = fitting(train_config, bare_model, device)
    assert not none.fits(config)


def _without(config, rungs, left_out):
    for rung in rungs:
        if rung is not left_out:
            for section, fields in rung.changes.items():
                config = with_fields(config, section, fields)
    return config


def test_several_processes_keep_their_gradients(train_config, bare_model):
    one, config = fitting(train_config, bare_model)
    several = MemoryFitter(one.meter, "cuda", one.group, 0, Facts(processes=2))
    for ladder, steps_alone in ((one, True), (several, False)):
        chosen, _ = ladder.choose_levers(config, keep_asked=False)
        assert (chosen.training.optimizer_in_backward != "off") == steps_alone


def test_the_largest_batch_is_the_largest(train_config, bare_model):
    ladder, config = fitting(train_config, bare_model, "cpu")
    for wanted in (1, 3, 7):
        budget = int(ladder.footprint(config, wanted).total / 0.95) + 4096
        one = MemoryFitter(ladder.meter, "cpu", ladder.group, budget)
        assert one.batch_that_fits(config, most=50) == wanted
    assert one.batch_that_fits(config, most=5) == 5


def test_fake_steps_are_remembered(train_config, bare_model, tmp_path, monkeypatch):
    config, record = train_config(), tmp_path / "footprints.json"
    meta_models = []

    def meta_model():
        meta_models.append(1)
        return bare_model()

    def footprint():
        monkeypatch.setattr(phases, "_FOUND", {})  # as if in another process
        meta_models.clear()
        return FootprintPredictor(meta_model, "cpu", record).footprint(config, SIZE, 2)

    first = footprint()
    assert len(meta_models) == 2  # for inspection, and for the step
    assert footprint() == first
    assert len(meta_models) == 1
    record.write_text("{", encoding="utf-8")  # almost nothing
    assert footprint() == first
    assert len(meta_models) == 2


def test_a_meta_model_is_made_for_a_fake_step_and_shared_with_others(
    train_config, bare_model, monkeypatch
):
    """Building a full-size one takes a second: ladders of ten rungs would build fifty."""
    monkeypatch.setattr(phases, "_FOUND", {})  # results of other tests in this process
    meta_models = []

    def meta_model():
        meta_models.append(1)
        return bare_model()

    workload = Workload(encoded=SIZE, validation=Group(0, SIZE))
    meter = FootprintPredictor(meta_model, "cuda", workload=workload)
    previews = {"prompts": ["a ball"], "width": 128, "height": 128}
    settings = {"previews": previews, "validation": {"split": 0.3, "every_steps": 2}}
    plain = meter.footprint(train_config(**settings), SIZE, 2)
    assert len(meta_models) == 1 + 3  # for inspection; for the step, validation and previews
    assert meter.footprint(train_config(**settings), SIZE, 2) == plain
    offloaded = {"training": {"offload_optimizer": True}}
    meter.footprint(train_config(**settings, **offloaded), SIZE, 2)
    assert len(meta_models) == 1 + 3
    checkpointed = {"training": {"gradient_checkpointing": True}}
    meter.footprint(train_config(**settings, **checkpointed), SIZE, 2)
    assert len(meta_models) == 1 + 4


def test_a_learning_text_encoder_and_previews_count(train_config, bare_model):
    meter = FootprintPredictor(bare_model, "cpu")
    plain, *_ = meter.all_phases(train_config(), SIZE, 4)
    text, *_ = meter.all_phases(train_config(method={"train_text_encoder": True}), SIZE, 4)
    assert text.optimizer > plain.optimizer
    assert text.activations > plain.activations
    drawing = {"prompts": ["x"], "width": 1024, "height": 1024}
    shown = meter.footprint(train_config(previews=drawing), SIZE, 1)
    assert shown.phase == "drawing previews of 1024x1024"


def test_shares_of_a_model_take_less(train_config, flat_model):
    """Each process holds its part of the trained weights; ZeRO also keeps a copy of what it
    updates."""
    config = train_config(training={"ema_decay": 0.9}, optimizer={"kind": "adamw"})

    def of(shares):
        return FootprintPredictor(flat_model, "cpu", sharding=shares).footprint(config, SIZE, 2)

    whole, fsdp, zero = (
        of(Sharding()),
        of(Sharding(4, 4, 4)),
        of(Sharding(1, 4, 4, has_master_weights=True)),
    )
    learning = whole.optimizer // 8
    assert whole.weights - fsdp.weights == pytest.approx(3 * learning, abs=4096)
    assert fsdp.optimizer == zero.optimizer == whole.optimizer // 4
    assert fsdp.gradients == zero.gradients == whole.gradients // 4
    assert (fsdp.average, zero.average) == (whole.average // 4, whole.average)
    assert zero.weights - whole.weights == pytest.approx(learning, abs=4096)
    assert whole.activations < fsdp.activations  # gathered blocks


def test_what_needs_whole_weights_is_not_offered_where_the_model_is_sharded(train_config):
    asked = train_config(optimizer={"kind": "adamw"}, training={"ema_decay": 0.9})
    cases = (Facts(processes=1), Facts(processes=2), Facts(processes=2, sharding="FSDP"))

    def offered(setting):
        rungs = [rung for rung in LADDER["cuda"] if setting in rung.text()]
        return [any(offers(rung, asked, facts) for rung in rungs) for facts in cases]

    assert offered("optimizer_in_backward") == [True, False, False]
    assert offered("adamw8bit") == [True, True, False]
    assert offered("weight_dtype") == [True, True, False]
    assert offered("gradient_checkpointing") == [True, True, True]


def test_frozen_blocks_take_what_they_are_read_in(train_config, flat_model):
    meter = FootprintPredictor(flat_model, "cpu")
    half = {"training": {"weight_dtype": "bf16", "mixed_precision": "bf16"}}
    whole = meter.footprint(train_config(**half), SIZE, 2)
    frozen = meter.footprint(train_config(**half, method={"block_lrs": {"mid_block": 0}}), SIZE, 2)
    assert frozen.weights == whole.weights
    assert frozen.optimizer < whole.optimizer
