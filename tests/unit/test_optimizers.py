"""Optimizers by name: each updates the weights, resumes bit for bit, and checks its arguments."""

import contextlib
import dataclasses
import functools
import importlib
import json

import pytest
import torch
from torch import nn

from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import write_safetensors
from impasto.config.optimizer import OptimizerConfig
from impasto.errors import ConfigError, MissingDependencyError, RunError
from impasto.models.trainable import TrainedModule
from impasto.optimizer_table import COUPLED
from impasto.training.compute.channels_last import keep_order
from impasto.training.optim import optimizers
from impasto.training.optim.chunked import ChunkedOptimizer, ChunkRules
from impasto.training.optim.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    evaluation_weights,
    find_row,
    require_weights_alone,
)
from impasto.training.optim.state import (
    optimizer_scalars,
    optimizer_tensors,
    parameter_names,
    require_savable,
    restore_optimizer,
)
from impasto.training.optim.trial import steps_weights_alone

pytestmark = [
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def part(**options) -> TrainedModule:
    """A weight large enough for 8-bit states, which start at 4,096 elements."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(4, 40, 3, padding=1), nn.Flatten(1), nn.Linear(640, 128), nn.Linear(128, 2)
    )
    return TrainedModule("unet", module, 1e-2, **options)


def test_those_of_the_collection_that_look_at_all_weights_are_known():
    """A new version of the library may add some, or change which ones step weights jointly."""
    found = set()
    for name, class_name in optimizers._collection_names().items():
        row = find_row(class_name)
        if row.looks_at_all_together:
            continue
        build = functools.partial(optimizers._load(row), lr=1e-2)
        with contextlib.suppress(Exception):  # those that need a closure, or a whole model
            found |= set() if steps_weights_alone(build, torch.device("cpu")) else {name}
    assert found == COUPLED


@pytest.mark.parametrize(
    "changes", [{"optimizer_in_backward": "exact"}, {"offload_optimizer": True}]
)
def test_weights_are_not_stepped_in_chunks_by_an_optimizer_that_looks_at_all(train_config, changes):
    with pytest.raises(ConfigError, match="Adai needs all weights at once, which excludes"):
        train_config(optimizer={"kind": "Adai"}, training=changes)


def test_a_class_of_ones_own_that_looks_at_all_weights_is_found_out():
    config = OptimizerConfig(kind=f"{__name__}.LooksAtAll")
    with pytest.raises(ConfigError, match=r"LooksAtAll needs all weights at once"):
        require_weights_alone(config, "training.offload_optimizer")
    require_weights_alone(config, "")
    require_weights_alone(OptimizerConfig(kind="torch.optim.Adam"), "training.offload_optimizer")


class LooksAtAll(torch.optim.SGD):
    """SGD by the sign of the sum of all gradients."""

    def step(self, closure=None):
        members = [p for group in self.param_groups for p in group["params"]]
        sign = sum(p.grad.sum() for p in members).sign()
        for parameter in members:
            parameter.grad.mul_(sign)
        return super().step(closure)


@pytest.mark.parametrize("kind", ["radam_schedule_free", "pytorch_optimizer.ScheduleFreeRAdam"])
@pytest.mark.parametrize("silent", [True, False])
def test_the_first_steps_of_radam_without_a_schedule_have_its_rate(kind, silent):
    """By the authors' code the steps are SGD's, or none; the library took them at a rate of 1."""
    config = OptimizerConfig(kind=kind, lr=1e-3, arguments={"silent_sgd_phase": silent})
    trained = part()
    trained = dataclasses.replace(trained, lr=config.lr)
    optimizer = build_optimizer([trained], config)
    before = [p.detach().clone() for p in trained.module.parameters()]
    trained.module(torch.ones(5, 4, 4, 4)).square().mean().backward()
    gradients = [p.grad.clone() for p in trained.module.parameters()]
    optimizer.step()
    optimizer.eval()
    for was, now, gradient in zip(before, trained.module.parameters(), gradients, strict=True):
        expected = was if silent else was - config.lr * gradient
        torch.testing.assert_close(now.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [kind for kind, row in OPTIMIZERS.items() if row.finds_lr])
def test_a_step_without_a_rate_leaves_no_trace_in_what_finds_its_rate(kind):
    """Steps with rate 0 change no state of rate finders, as in prodigyopt and dadaptation."""
    found = []
    for rates in ((0.0, 0.5, 1.0, 1.0), (0.5, 1.0, 1.0)):
        trained = dataclasses.replace(part(), lr=1.0)
        optimizer = build_optimizer([trained], config_of(kind))
        for seed, rate in zip(range(4 - len(rates), 4), rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            do_step(trained, optimizer, seed)
            assert bool(optimizer.state) == (rate > 0)
        found.append([p.detach() for p in trained.module.parameters()])
    assert all(map(torch.equal, *found))


def do_step(part, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    part.module(torch.randn((5, 4, 4, 4), generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def config_of(kind):
    finds = kind in OPTIMIZERS and OPTIMIZERS[kind].finds_lr
    return OptimizerConfig(kind=kind, lr=1.0 if finds else 1e-3)


@pytest.mark.parametrize("kind", [*OPTIMIZERS, "RAdam", "came", "adan", "adopt", "flashadamw"])
def test_each_moves_the_weights_and_resumes_bit_for_bit(kind, tmp_path):
    whole, begun, again = part(), part(), part()
    before = [p.detach().clone() for p in whole.parameters().values()]
    optimizer = build_optimizer([whole], config_of(kind))
    for seed in range(5):
        do_step(whole, optimizer, seed)
    assert not all(
        torch.equal(a, b) for a, b in zip(before, whole.parameters().values(), strict=True)
    )

    first = build_optimizer([begun], config_of(kind))
    for seed in range(3):
        do_step(begun, first, seed)
    require_savable(first)
    names = parameter_names([begun])
    lazy = {n: LazyTensor.of(t) for n, t in optimizer_tensors(first, names).items()}
    write_safetensors(tmp_path / "o.safetensors", lazy, {})
    scalars = json.loads(json.dumps(optimizer_scalars(first, names)))

    with torch.no_grad():
        for new, old in zip(again.parameters().values(), begun.parameters().values(), strict=True):
            new.copy_(old)
    second = build_optimizer([again], config_of(kind))
    tensors = open_tensor_file(tmp_path / "o.safetensors").tensors
    restore_optimizer(second, parameter_names([again]), tensors, scalars)
    for seed in range(3, 5):
        do_step(again, second, seed)
    for expected, found in zip(
        whole.parameters().values(), again.parameters().values(), strict=True
    ):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("kind", ["adamw8bit", "lion8bit"])
def test_eight_bit_states_are_eight_bits(kind):
    own = part()
    optimizer = build_optimizer([own], config_of(kind))
    do_step(own, optimizer, 0)
    large = own.module[2].weight
    assert optimizer.state[large]["state1"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        ("adamw8bit", ChunkRules()),
        ("lion8bit", ChunkRules()),
        ("adamw8bit", ChunkRules(each_alone=True)),
    ],
)
def test_eight_bit_steps_leave_weights_in_their_order_and_place(kind, rules):
    """bitsandbytes makes weights contiguous, and the steps must equal those of contiguous ones."""
    stepped = []
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        layer = nn.Conv2d(16, 32, 3).to(memory_format=order)
        optimizer = build_optimizer([TrainedModule("unet", layer, 1e-3)], config_of(kind), rules)
        keep_order(optimizer)
        place = layer.weight.data_ptr()
        for _ in range(2):
            optimizer.zero_grad()
            layer(torch.ones(1, 16, 4, 4)).square().sum().backward()
            optimizer.step()
        assert layer.weight.is_contiguous(memory_format=order)
        assert layer.weight.data_ptr() == place
        stepped.append(layer.weight.detach().clone())
    torch.testing.assert_close(*stepped, atol=2e-4, rtol=0)


@pytest.mark.parametrize("kind", ["adamw_schedule_free", "sgd_schedule_free"])
def test_looking_at_schedule_free_weights_does_not_change_the_run(kind):
    own = part()
    optimizer = build_optimizer([own], config_of(kind))
    for seed in range(3):
        do_step(own, optimizer, seed)
    trained = [p.detach().clone() for p in own.parameters().values()]
    with evaluation_weights(optimizer):
        meant = [p.detach().clone() for p in own.parameters().values()]
    assert not all(torch.equal(a, b) for a, b in zip(trained, meant, strict=True))
    now = own.parameters().values()
    assert all(torch.equal(a, b) for a, b in zip(trained, now, strict=True))
    do_step(own, optimizer, 4)


def test_blocks_have_their_own_rates():
    own = part(block_lrs={"2": 5e-3, "3": 2e-3})
    optimizer = build_optimizer([own], OptimizerConfig(lr=1e-2))
    rates = {
        parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert [rates[own.module[i].weight] for i in (0, 2, 3)] == [1e-2, 5e-3, 2e-3]
    assert len(rates) == 6


def test_arguments_reach_the_optimizer():
    config = OptimizerConfig(
        kind="prodigy", lr=1.0, betas=(0.8, 0.9), weight_decay=0.3, arguments={"d_coef": 0.7}
    )
    group = build_optimizer([part()], config).param_groups[0]
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.8, 0.9), 0.3)
    assert optimizers.find_row("AdamW8bit".lower()).name == "AdamW8bit"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "adamv"}, "is not an optimizer. Nearest: adam"),
        ({"kind": "AdEMAMix8bit"}, "Nearest: bitsandbytes.optim.AdEMAMix8bit;"),
        (
            {"arguments": {"beta": 1}},
            "does not take beta (the nearest is betas; accepted are amsgrad",
        ),
        ({"arguments": {"amsgrad": 3}}, "amsgrad is 3; expected something like False"),
        ({"kind": "adamw8bit", "arguments": {"min_8bit_size": "x"}}, "like 4096"),
        ({"kind": "prodigy", "betas": (0.9, 0.9, 0.9, 0.9)}, "expected something like"),
        ({"kind": "sgd_nesterov", "betas": (0.9, 0.99)}, "does not take betas"),
    ],
)
def test_what_an_optimizer_does_not_take_is_named(changes, words):
    with pytest.raises(ConfigError) as caught:
        build_optimizer([part()], OptimizerConfig(**changes))
    assert words in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(optimizers.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match="in the package bitsandbytes"):
        build_optimizer([part()], OptimizerConfig(kind="adamw8bit"))


def test_a_state_that_cannot_be_saved_is_refused_before_training():
    with pytest.raises(ConfigError, match=r"SOAP keeps .* which cannot be saved"):
        build_optimizer([part()], OptimizerConfig(kind="soap", lr=1e-3))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("emonavi", "EmoNavi keeps 'ema' for all weights together"),
        ("magma", "cannot be resumed exactly"),
        ("stablespam", "cannot be resumed exactly"),
        ("spectralsphere", "only supports 2D"),
    ],
)
def test_what_a_run_could_not_go_on_with_is_refused_before_training(kind, reason):
    with pytest.raises(ConfigError, match=reason):
        build_optimizer([part()], OptimizerConfig(kind=kind, lr=1e-3))


@pytest.mark.parametrize("saved_in_chunks", [True, False])
@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "ranger"])
def test_groups_may_be_cut_another_way_when_resumed(kind, saved_in_chunks):
    """When states become offloaded, the rates of blocks stay with their weights."""
    rates = {"2": 1e-3, "3": 0.0}

    def build(trained, *, in_chunks):
        groups = [{"params": list(own.values()), "lr": lr} for lr, own in trained.by_rate()]
        make = functools.partial(_class_of(kind), weight_decay=0.01)
        if not in_chunks:
            return make(groups)
        return ChunkedOptimizer(groups, make, ChunkRules(each_alone=False), chunk=700)

    def stepped(ways):
        trained = part(block_lrs=rates)
        optimizer = build(trained, in_chunks=ways[0])
        for seed, way in enumerate(ways):
            if seed and way != ways[seed - 1]:
                names = parameter_names([trained])
                tensors = {
                    n: LazyTensor.of(t.clone())
                    for n, t in optimizer_tensors(optimizer, names).items()
                }
                scalars = json.loads(json.dumps(optimizer_scalars(optimizer, names)))
                optimizer = build(trained, in_chunks=way)
                restore_optimizer(optimizer, names, tensors, scalars)
            do_step(trained, optimizer, seed)
        return [p.detach() for p in trained.module.parameters()]

    whole = stepped([saved_in_chunks] * 4)
    changed = stepped([saved_in_chunks] * 2 + [not saved_in_chunks] * 2)
    assert all(map(torch.equal, whole, changed))


def _class_of(kind):
    row = find_row(kind)
    return getattr(importlib.import_module(row.module), row.name)


def test_an_earlier_state_with_other_groups_is_taken_where_its_counters_agree():
    trained = part()
    optimizer = torch.optim.AdamW(trained.module.parameters(), lr=1e-3)
    do_step(trained, optimizer, 0)
    names = parameter_names([trained])
    tensors = {n: LazyTensor.of(t) for n, t in optimizer_tensors(optimizer, names).items()}
    scalars = optimizer_scalars(optimizer, names)
    del scalars["group_starts"]
    chunked = ChunkedOptimizer(
        [{"params": list(trained.module.parameters())}], torch.optim.AdamW, ChunkRules(), chunk=700
    )
    restore_optimizer(chunked, names, tensors, scalars)
    assert len(chunked.param_groups) > 1
    differing = {**scalars, "groups": [{"k": 1}, {"k": 2}]}
    with pytest.raises(RunError, match="offload_optimizer that it was started with"):
        restore_optimizer(chunked, names, tensors, differing)


@pytest.mark.parametrize(("fused", "device"), [(True, "meta"), (False, "cpu")])
def test_torch_counts_steps_where_it_does_without_waiting_for_the_device(fused, device):
    trained = part()
    optimizer = torch.optim.AdamW(trained.module.parameters(), lr=1e-3, fused=fused)
    do_step(trained, optimizer, 0)
    names = parameter_names([trained])
    tensors = {n: LazyTensor.of(t.clone()) for n, t in optimizer_tensors(optimizer, names).items()}
    scalars = optimizer_scalars(optimizer, names)
    restore_optimizer(optimizer, names, tensors, scalars, torch.device("meta"))
    states = list(optimizer.state.values())
    assert {state["step"].device.type for state in states} == {device}
    assert {state["exp_avg"].device.type for state in states} == {"meta"}


def test_names_are_found_however_they_are_written():
    assert find_row("AdamW").name == "AdamW"
    assert find_row("NAdam").module == "torch.optim"
    assert find_row("StableAdamW").module == "pytorch_optimizer"


@pytest.mark.parametrize(
    "kind", [*OPTIMIZERS, "pytorch_optimizer.AdaFactor", "torch.optim.Adafactor"]
)
def test_what_an_optimizer_keeps_is_known_beforehand(kind):
    """The size follows from the weights' shapes: Adafactor keeps 2.7 bytes per convolution
    weight."""
    module = nn.Sequential(
        nn.Conv2d(64, 64, 3, bias=False), nn.Linear(640, 128, bias=False), nn.Linear(128, 640)
    )
    config = OptimizerConfig(kind=kind, lr=1e-3)
    optimizer = build_optimizer([TrainedModule("unet", module, 1e-3)], config)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    found = sum(v.nbytes for v in kept if isinstance(v, torch.Tensor) and v.numel() > 1)
    row = find_row(kind)
    expected = sum(row.state_size(p.shape, config.given()) for p in module.parameters())
    assert expected == pytest.approx(found, rel=0.07 if row.has_8bit_states else 0.001)


def test_a_first_moment_of_adafactor_counts():
    row, shape = find_row("adafactor"), (64, 32)
    assert row.state_size(shape, {"beta1": 0.9}) - row.state_size(shape, {}) == 4 * 64 * 32
