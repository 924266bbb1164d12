"""Weights loaded block by block give the same results in any order that their marks allow."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.config.optimizer import OptimizerConfig
from impasto.errors import ConfigError
from impasto.models.networks.loading import load_base_model, load_meta_model
from impasto.models.trainable import FullFineTune, recomputed_blocks
from impasto.progress import SilentProgress
from impasto.training.builders.methods import build_trainable
from impasto.training.optim.chunked import ChunkedOptimizer, ChunkRules
from impasto.training.optim.copies import PlainCopies
from impasto.training.optim.ema import AsyncEmaUpdater, EmaWeights
from impasto.training.optim.finite_updates import NonFiniteError
from impasto.training.optim.mixed_precision import Precision
from impasto.training.optim.optimizers import build_optimizer
from impasto.training.optim.rounding import build_rounding
from impasto.training.optim.streaming import ALIGNMENT, BUFFERS, WeightStream
from impasto.training.optim.updates import UpdateInputs, build_update, gradient_hooks
from impasto.training.planning.memory import FootprintPredictor
from impasto.training.planning.transfers import copy_rate, transfers_of

CPU = torch.device("cpu")


@dataclass
class Work:
    """A copy that is made when it is waited for, or a point in the computation."""

    number: int
    copy: tuple[Tensor, Tensor] | None = None
    after: list["Work"] = field(default_factory=list)
    waited: int | None = None

    def newest_point(self) -> int:
        """Return the latest point in the computation that this comes after."""
        own = [self.number] if self.copy is None else []
        return max([*own, *(mark.newest_point() for mark in self.after)], default=-1)


class LateCopies:
    """Makes copies as late as their marks allow, which exposes each missing mark."""

    def __init__(self) -> None:
        self._number = 0
        self._loads: list[Work] = []
        self._stores: list[Work] = []
        self._used: dict[int, Work] = {}  # address of a buffer -> the last load into it

    def load(self, target: Tensor, source: Tensor, after: Any) -> Work:
        last = self._used.get(target.data_ptr())
        work = Work(self._next(), (target, source), list(after))
        if last is not None and last.waited is not None:  # no memory in use is overwritten
            assert work.newest_point() > last.waited
        self._used[target.data_ptr()] = work
        self._loads.append(work)
        return work

    def store(self, target: Tensor, source: Tensor, after: Any) -> Work:
        work = Work(self._next(), (target, source), list(after))
        waited = self._used[source.data_ptr()].waited
        assert waited is not None
        assert work.newest_point() > waited  # weights are taken back after their step
        self._stores.append(work)
        return work

    def mark(self) -> Work:
        return Work(self._next())

    def wait(self, mark: Work) -> None:
        self._make(mark)
        mark.waited = self._next()

    def finish(self) -> None:
        for work in list(self._stores):
            self._make(work)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _make(self, work: Work) -> None:
        for line in (self._loads, self._stores):
            if work in line:
                for earlier in line[: line.index(work) + 1]:  # a stream runs in order
                    line.remove(earlier)
                    for mark in earlier.after:
                        self._make(mark)
                    target, source = earlier.copy
                    with torch.no_grad():
                        target.copy_(source)


@pytest.fixture(params=["nano_model", "nano_sd2_model", "nano_sdxl_model"])
def each_model(request):
    return request.getfixturevalue(request.param)


def fine_tune(path, dtype=torch.float32, block_lrs=None):
    model = load_base_model(str(path), progress=SilentProgress())
    trainable = FullFineTune(model, lr=1e-3, block_lrs=block_lrs or {}, gradient_checkpointing=True)
    trainable.unet.to(dtype)
    return trainable


def arguments(unet, batch, generator):
    """Return the arguments of a U-Net of any family."""
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    more = {}
    if unet.config.addition_embed_type == "text_time":
        width = unet.config.projection_class_embeddings_input_dim
        sizes = 6 * unet.config.addition_time_embed_dim
        more["added_cond_kwargs"] = {
            "text_embeds": draw(batch, width - sizes), "time_ids": torch.full((batch, 6), 64.0),
        }  # fmt: skip
    return (
        (draw(batch, 4, 8, 8), torch.randint(0, 1000, (batch,), generator=generator)),
        {"encoder_hidden_states": draw(batch, 77, unet.config.cross_attention_dim), **more},
    )


def trained(path, copies, *, way="exact", dtype=torch.float32, kind="adamw", block_lrs=None,
            precision="no", spoilt=None):  # fmt: skip
    """Return weights and states after two steps, with the model inspected after each."""
    trainable = fine_tune(path, dtype, block_lrs)
    unet, parts = trainable.unet, trainable.modules
    blocks = recomputed_blocks(unet)
    stream = None
    if copies is not None:
        stream = WeightStream(trainable.network, blocks, CPU, copies)
        stream.allocate()
    rounding = build_rounding("stochastic", CPU) if dtype != torch.float32 else None
    rules = ChunkRules(rounding, each_alone=True)
    optimizer = build_optimizer(parts, OptimizerConfig(kind=kind, lr=1e-3), rules)
    parameters = [p for part in parts for p in part.parameters().values()]
    average = EmaWeights(
        {str(n): p for n, p in enumerate(parameters)}, 0.5, on_cpu=True, overlapped=False
    )
    computing = Precision(precision, CPU, caches_casts=stream is None)
    update = build_update(UpdateInputs(optimizer, parameters, computing, 0.5, way, stream))
    generator = torch.Generator().manual_seed(3)
    shown = []
    for step in range(2):
        optimizer.begin(step)
        given, named = arguments(unet, 2, generator)
        cast = lambda x: x.to(dtype) if x.is_floating_point() else x  # noqa: E731
        with computing.autocast():
            output = unet(cast(given[0]), given[1], **_each(named, cast)).sample
        loss = output.float().square().mean()
        if step == spoilt:
            loss = loss * float("nan")
        update.backward(loss)
        update.apply(loss)
        average.update(step)
        assert all(p.grad is None for p in parameters)
        with torch.no_grad(), average.swapped_in():
            shown.append(unet(cast(given[0]), given[1], **_each(named, cast)).sample)
    return {
        "weights": [p.detach().clone() for p in unet.parameters()],
        "shown": shown,
        "state": [v for entries in optimizer.state.values() for v in entries.values()],
    }


def _each(named, change):
    return {
        key: _each(value, change) if isinstance(value, dict) else change(value)
        for key, value in named.items()
    }


def assert_same(found, wanted):
    for key, values in wanted.items():
        assert len(found[key]) == len(values)
        for one, other in zip(found[key], values, strict=True):
            assert one == other if not isinstance(one, Tensor) else torch.equal(one, other), key


def test_every_family_learns_the_same_to_the_last_bit(each_model):
    plain = trained(each_model, None)
    assert_same(trained(each_model, LateCopies()), plain)
    if each_model.name == "nano":
        assert_same(trained(each_model, PlainCopies()), plain)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "way": "last_norm", "precision": "bf16",
            "block_lrs": {"down_blocks.0": 0.0, "up_blocks.0": 2e-3},
        },
        {"dtype": torch.bfloat16, "kind": "adafactor", "precision": "bf16"},
        {"precision": "fp16"},
    ],
    ids=["last norm, bf16, frozen blocks", "bf16 weights", "fp16"],
)  # fmt: skip
def test_ways_of_training_do_too(changes, nano_model):
    assert_same(trained(nano_model, LateCopies(), **changes), trained(nano_model, None, **changes))


def test_weights_are_whole_after_a_loss_that_is_not_finite(nano_model):
    with pytest.raises(NonFiniteError):
        trained(nano_model, LateCopies(), spoilt=1)


def test_what_is_on_the_device_is_three_blocks_and_what_is_in_none(nano_model):
    trainable = fine_tune(nano_model)
    blocks = recomputed_blocks(trainable.unet)
    inside = {p for block in blocks for p in block.parameters()}
    every = list(trainable.unet.parameters())
    assert sum(p.numel() for p in inside) > 0.6 * sum(p.numel() for p in every)
    WeightStream(trainable.network, blocks, CPU, PlainCopies()).allocate()
    own = {p.untyped_storage().data_ptr() for p in inside}
    most = []

    def look(*_):
        most.append({p for p in inside if p.untyped_storage().data_ptr() not in own})

    for module in blocks:
        module.register_forward_pre_hook(look)
    given, named = arguments(trainable.unet, 1, torch.Generator().manual_seed(1))
    trainable.unet(*given, **named)
    by_module = [set(module.parameters()) for module in blocks]
    assert len(most) == len(blocks)
    assert all(found in by_module for found in most)  # one block at a time
    assert not any(p.untyped_storage().data_ptr() not in own for p in inside)


def test_what_is_on_the_device_is_predicted(nano_model, train_config):
    levers = {"gradient_checkpointing": True, "optimizer_in_backward": "exact"}
    meter = FootprintPredictor(lambda: load_meta_model(nano_model), "cuda")
    taken = {
        streams: meter.least_bytes(train_config(training={**levers, "stream_weights": streams}))
        for streams in (False, True)
    }
    trainable = fine_tune(nano_model)
    blocks = recomputed_blocks(trainable.unet)
    stream = WeightStream(trainable.network, blocks, CPU, PlainCopies())
    stream.allocate()
    inside = sum(p.nbytes for block in blocks for p in block.parameters())
    buffers = sum(buffer.bytes.numel() for buffer in stream._buffers)
    saved = taken[False] - taken[True]
    gaps = BUFFERS * ALIGNMENT * max(len(list(block.parameters())) for block in blocks)
    assert inside - buffers <= saved <= inside - buffers + gaps


def test_copies_of_a_step_are_foretold(nano_model, train_config):
    blocks = recomputed_blocks(fine_tune(nano_model).unet)
    size = sum(p.nbytes for block in blocks for p in block.parameters())
    levers = {"gradient_checkpointing": True, "stream_weights": True}

    def foretold(way, **more):
        training = {**levers, "optimizer_in_backward": way, **more}
        config = train_config(training=training)
        trainable = build_trainable(config, load_meta_model(nano_model))
        return transfers_of(config, trainable, CPU, lambda _: 1e6)

    measured = foretold("exact")
    assert (measured.ram_bytes, measured.from_gpu_bytes) == (size, size)
    assert measured.to_gpu_bytes == 3 * size  # forward, for the norm, and for the steps
    assert measured.seconds == pytest.approx(3 * size / 1e6)
    assert foretold("last_norm").to_gpu_bytes == 2 * size
    assert foretold("exact", max_grad_norm=0.0).to_gpu_bytes == 2 * size
    assert transfers_of(train_config(), None, CPU) is None
    assert copy_rate(CPU) > 0


REFUSED = {
    "a CPU": ({}, Facts(device="cpu"), "on the CPU"),
    "one level": ({"checkpointed_levels": 1}, Facts(), "of all levels"),
    "kept activations": ({"gradient_checkpointing": False}, Facts(), "of all levels"),
    "kept gradients": ({"optimizer_in_backward": "off"}, Facts(), "needs optimizer_in_backward"),
    "compiled": ({"compile": "blocks"}, Facts(), "cannot be combined with compile"),
    "an average": ({"ema_decay": 0.9}, Facts(), "needs ema_on_cpu"),
    "another layout": ({"channels_last": True}, Facts(), "Remove channels_last"),
    "two processes": ({}, Facts(processes=2), "for one process"),
}


@pytest.mark.parametrize(("changes", "facts", "said"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_go_with(changes, facts, said, train_config):
    levers = {
        "gradient_checkpointing": True, "optimizer_in_backward": "exact", "stream_weights": True,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        require_compatible(train_config(training={**levers, **changes}), facts)


def test_paged_optimizers_and_hypernetworks_are_refused_by_name(train_config):
    levers = {
        "gradient_checkpointing": True, "optimizer_in_backward": "exact", "stream_weights": True,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="Use adamw8bit with offload_optimizer"):
        train_config(training=levers, optimizer={"kind": "paged_adamw8bit"})
    with pytest.raises(ConfigError, match="beside a hypernetwork"):
        train_config(training=levers, method={"kind": "hypernetwork"}, saving={"format": "a1111"})


def test_an_error_within_a_pass_leaves_weights_in_ram(nano_model):
    trainable = fine_tune(nano_model)
    before = [p.detach().clone() for p in trainable.unet.parameters()]
    blocks = recomputed_blocks(trainable.unet)
    stream = WeightStream(trainable.network, blocks, CPU, LateCopies())
    stream.allocate()

    given, named = arguments(trainable.unet, 1, torch.Generator().manual_seed(1))
    handle = blocks[3].register_forward_hook(_fail)
    with pytest.raises(torch.OutOfMemoryError):
        trainable.unet(*given, **named)
    handle.remove()
    output = trainable.unet(*given, **named).sample
    handle = blocks[2].register_forward_pre_hook(_fail)
    with pytest.raises(torch.OutOfMemoryError), stream.backward(changes=True):
        output.sum().backward()
    handle.remove()
    for parameter, wanted in zip(trainable.unet.parameters(), before, strict=True):
        assert torch.equal(parameter.detach(), wanted)
    trainable.unet(*given, **named)  # and continues


def test_weights_that_were_changed_in_ram_are_used():
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    WeightStream(network, list(network), CPU, LateCopies()).allocate()
    ones = torch.ones(1, 4)
    with torch.no_grad():
        network(ones)
        for parameter in network.parameters():
            parameter.fill_(2.0)
        assert torch.equal(network(ones), torch.full((1, 4), 64.0))


class Rebinding(torch.optim.SGD):
    """Steps a contiguous copy of a weight, which replaces it, as bitsandbytes' optimizers do."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = parameter.data.contiguous()
        super().step(closure)


def test_what_an_optimizer_puts_in_the_place_of_a_weight_is_taken_back():
    layers = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)))
    layers.to(memory_format=torch.channels_last)
    before = [p.detach().clone() for p in layers.parameters()]
    stream = WeightStream(layers, list(layers), CPU, LateCopies())
    stream.allocate()
    optimizer = ChunkedOptimizer(
        [{"params": list(layers.parameters()), "lr": 0.1}],
        lambda groups: Rebinding(groups, lr=0.1),
        ChunkRules(each_alone=True),
    )

    def run(layer, x):
        return checkpoint(layer, x, use_reentrant=False)

    x = torch.ones(1, 4, 8, 8)
    for layer in layers:
        x = run(layer, x)
    parameters = list(layers.parameters())
    with gradient_hooks(parameters, optimizer.step_parameter), stream.backward(changes=True):
        x.sum().backward()
    for parameter, old in zip(layers.parameters(), before, strict=True):
        assert not torch.equal(parameter.detach(), old)
        assert parameter.stride() == old.stride()


def test_a_forward_pass_that_fails_under_the_average_spoils_no_weight(nano_model):
    trainable = fine_tune(nano_model)
    blocks = recomputed_blocks(trainable.unet)
    WeightStream(trainable.network, blocks, CPU, LateCopies()).allocate()
    parameters = dict(trainable.unet.named_parameters())
    average = EmaWeights(parameters, 0.5, on_cpu=True, overlapped=False)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(1.0)
    wanted = [p.detach().clone() for p in parameters.values()]
    given, named = arguments(trainable.unet, 1, torch.Generator().manual_seed(1))
    inner = next(module for module in blocks[2].modules() if isinstance(module, nn.Linear))
    handle = inner.register_forward_pre_hook(_fail)
    with torch.no_grad(), average.swapped_in(), pytest.raises(torch.OutOfMemoryError):
        trainable.unet(*given, **named)
    handle.remove()
    with torch.no_grad():
        trainable.unet(*given, **named)
    for parameter, value in zip(parameters.values(), wanted, strict=True):
        assert torch.equal(parameter.detach(), value)


def _fail(*_):
    raise torch.OutOfMemoryError("no more")


def test_an_average_of_streamed_weights_is_taken_beside_the_next_step():
    """Weights already in RAM are read there, and not changed until they were read."""
    weights = [torch.ones(4), torch.full((3,), 2.0)]
    updater, seen = AsyncEmaUpdater(), []
    updater.take(weights, lambda there: seen.extend(t.clone() for t in there))
    updater.wait_on_device()
    updater.flush()
    assert [t.tolist() for t in seen] == [w.tolist() for w in weights]


def test_ram_is_pinned_in_few_pieces_that_hardly_waste_any(monkeypatch):
    pieces = []
    monkeypatch.setattr(
        "impasto.training.optim.streaming.pinned_bytes",
        lambda size, *_, **__: (pieces.append(size), torch.empty(size, dtype=torch.uint8))[1],
    )
    monkeypatch.setattr("impasto.training.optim.streaming.ARENA", 1 << 16)
    network = nn.ModuleList(nn.Linear(30 + n, 40) for n in range(60))
    stream = WeightStream(network, list(network), CPU, PlainCopies())
    stream.allocate()
    rounded = sum(1 << (size - 1).bit_length() for size in pieces)  # rounded as in PyTorch
    assert len(pieces) < 15
    assert stream.host_bytes <= rounded < 1.25 * stream.host_bytes


def test_tensors_keep_their_layout_and_begin_where_kernels_want_them():
    layer = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    strides = [p.stride() for p in layer.parameters()]
    WeightStream(nn.Sequential(layer), [layer], CPU, PlainCopies()).allocate()
    assert [p.stride() for p in layer.parameters()] == strides
    first, second = (p.data_ptr() for p in layer.parameters())
    assert (second - first) % ALIGNMENT == 0
    assert BUFFERS == 3
