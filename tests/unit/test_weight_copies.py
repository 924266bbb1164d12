"""16-bit copies of weights, made once a step: where they are, and gradients through them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.data.loading.sampler import Group
from impasto.errors import ConfigError
from impasto.models.networks.loading import load_meta_model
from impasto.training.builders.methods import build_trainable
from impasto.training.compute import precision as native_precision
from impasto.training.compute.param_dtypes import build_weight_copies, copied_numel
from impasto.training.optim.weight_copies import WeightCopies, layers_to_copy
from impasto.training.planning.fitter import MARGIN, MemoryFitter
from impasto.training.planning.memory import FootprintPredictor
from impasto.training.trainer import train

BF16 = torch.bfloat16


class Casts(TorchDispatchMode):
    """Counts tensors cast to another width."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))


def backward(network, copies, values):
    with copies.swapped_in():
        with torch.autocast("cpu", BF16):
            output = network(values)
        torch.autograd.backward(output.float().square().sum())


def gradients(network):
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def test_they_stand_in_for_what_is_multiplied_and_nothing_is_cast_any_more(network):
    copies = WeightCopies(layers_to_copy(network), BF16)
    weights = list(network.parameters())
    copies.refresh()
    values = torch.randn(3, 6).to(BF16)
    with copies.swapped_in():
        assert [p.dtype for p in network.parameters()] == 2 * [BF16] + 2 * [torch.float32] + 2 * [
            BF16
        ]
        assert torch.equal(network[0].weight, weights[0].to(BF16))
        with torch.autocast("cpu", BF16), Casts() as with_copies:
            network(values)
    with torch.autocast("cpu", BF16), Casts() as without:
        network(values)
    assert without.count - with_copies.count == 4
    assert all(p is weight for p, weight in zip(network.parameters(), weights, strict=True))


def test_gradients_are_autocasts_over_several_backward_passes(network):
    copies = WeightCopies(layers_to_copy(network), BF16)
    found = []
    for used in (WeightCopies([], BF16), copies):
        network.zero_grad()
        used.refresh()
        for seed in (1, 2):
            values = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
            backward(network, used, values)
        found.append(gradients(network))
    plain, copied = found
    assert plain.keys() == copied.keys()
    assert all(torch.equal(plain[name], copied[name]) for name in plain)
    assert all(gradient.dtype is torch.float32 for gradient in copied.values())


def test_the_weights_are_back_after_a_failure(network):
    copies = WeightCopies(layers_to_copy(network), BF16)
    weight = network[0].weight
    with pytest.raises(ZeroDivisionError), copies.swapped_in():
        raise ZeroDivisionError
    assert network[0].weight is weight


def test_a_weight_without_a_gradient_gets_none(network):
    copies = WeightCopies(layers_to_copy(network), BF16)
    copies.refresh()
    with copies.swapped_in():
        torch.autograd.backward(network[0](torch.ones(1, 6, dtype=BF16)).float().sum())
    assert network[0].weight.grad is not None
    assert network[2].weight.grad is None
    backward(network, copies, torch.ones(1, 6))  # one has a gradient already, the other has none
    assert network[2].weight.grad is not None


def test_a_failure_in_the_backward_pass_leaves_no_gradients(network):
    """Memory has run out, and casting the gradients would need more."""
    copies = WeightCopies(layers_to_copy(network), BF16)
    copies.refresh()
    with pytest.raises(ZeroDivisionError), copies.swapped_in():
        torch.autograd.backward(network(torch.ones(1, 6, dtype=BF16).float().to(BF16)).sum())
        held = list(network.parameters())
        assert held[0].grad is not None
        raise ZeroDivisionError
    assert all(parameter.grad is None for parameter in held[:2])
    assert network[0].weight.grad is None


def test_settings_without_them_copy_nothing(train_config):
    unet = SimpleNamespace(unet=nn.Sequential(nn.Linear(2, 2)))
    weight = unet.unet[0].weight
    with build_weight_copies(train_config(), unet).swapped_in():
        assert unet.unet[0].weight is weight
    config = train_config(training={"weight_copies": True, "mixed_precision": "bf16"})
    with build_weight_copies(config, unet).swapped_in():
        assert unet.unet[0].weight.dtype is BF16
    assert copied_numel(config, unet) == 6
    assert copied_numel(train_config(), unet) == 0


def test_several_processes_refuse_them(train_config):
    config = train_config(training={"weight_copies": True, "mixed_precision": "bf16"})
    with pytest.raises(ConfigError, match="this run has 2"):
        require_compatible(config, Facts(processes=2))


def test_a_device_that_computes_in_float32_refuses_them_before_a_run_begins(
    train_config, monkeypatch
):
    monkeypatch.setattr(native_precision, "computed_kind", lambda _: "no")
    config = train_config(
        training={"weight_copies": True, "mixed_precision": "auto", "memory": "auto"}
    )
    with pytest.raises(ConfigError, match="no effect on products in float32"):
        train(config)
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"mixed_precision": "no"}}, "training.mixed_precision no computes"),
        ({"training": {"mixed_precision": "bf16", "weight_dtype": "bf16"}}, "need no copies"),
        (
            {"training": {"mixed_precision": "bf16", "optimizer_in_backward": "exact"}},
            "frees each gradient at once",
        ),
        (
            {"training": {"mixed_precision": "bf16"}, "method": {"kind": "hypernetwork"}},
            "no effect with a hypernetwork",
        ),
    ],
)
def test_settings_that_do_not_go_together_say_so(train_config, changes, words):
    changes["saving"] = {"format": None}
    changes["training"]["weight_copies"] = True
    with pytest.raises(ConfigError, match=words):
        train_config(**changes)


def test_their_memory_is_predicted_and_advised_to_be_given_up(train_config, nano_model):
    from impasto.data.records import Size

    def meta_model():
        return load_meta_model(str(nano_model))

    meter = FootprintPredictor(meta_model, "cuda")

    def footprint(config):
        return max(meter.all_phases(config, Size(64, 64), 1), key=lambda m: m.gradients)

    settings = {"mixed_precision": "bf16", "batch_size": 1}
    learns = {"train_text_encoder": True}  # so that it cannot leave the GPU, which costs less
    without = train_config(training=settings, method=learns)
    config = train_config(training={**settings, "weight_copies": True}, method=learns)
    numbers = copied_numel(config, build_trainable(config, meta_model()))
    total = sum(p.numel() for p in meta_model().unet.parameters())
    assert 0.9 * total < numbers < total
    assert footprint(config).weights - footprint(without).weights == 2 * numbers
    size = Size(64, 64)
    least = meter.footprint(without, size, 1).total
    assert meter.footprint(config, size, 1).total > least
    fitting = MemoryFitter(meter, "cuda", Group(0, size), int(least / MARGIN) + 1)
    assert "This would make it fit: training.weight_copies = false" in fitting.advice(config)


@pytest.mark.parametrize("copies", [False, True])
def test_gradients_of_batches_before_are_there_in_the_next(train_config, nano_model, copies):
    from impasto.data.records import Size

    def training(steps):
        config = train_config(training={
            "mixed_precision": "bf16", "weight_copies": copies,
            "gradient_accumulation_steps": steps,
        })  # fmt: skip
        meter = FootprintPredictor(lambda: load_meta_model(str(nano_model)), "cuda")
        return meter.all_phases(config, Size(64, 64), 1)[0]

    one, two = training(1), training(2)
    numbers = sum(p.numel() for p in load_meta_model(str(nano_model)).unet.parameters())
    assert one.gradients < two.gradients == 4 * numbers
    assert two.activations >= one.activations


def test_a_fake_step_makes_no_casts_of_copies(train_config, nano_model):
    from impasto.data.records import Size

    def step(**training):
        config = train_config(training={"mixed_precision": "bf16", **training})
        trainable = build_trainable(config, load_meta_model(str(nano_model)))
        meter = FootprintPredictor(lambda: load_meta_model(str(nano_model)), "cuda")
        return meter._step(config, trainable, Size(64, 64), 1)

    plain, copied = step(), step(weight_copies=True)
    assert copied.peak_bytes < plain.peak_bytes
