"""Float8 products: the layers, their numbers, the machines, and the memory."""

import functools
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.data.records import Size
from impasto.errors import ConfigError, MissingDependencyError
from impasto.models.networks.loading import load_base_model
from impasto.models.writing.architectures import (
    Architecture,
    find_architecture,
    meta_model_of_architecture,
)
from impasto.training.builders.methods import build_trainable
from impasto.training.compute import float8
from impasto.training.compute.float8_linear import torchao_product
from impasto.training.compute.param_dtypes import copied_numel
from impasto.training.lifecycle.preflight import require_machine
from impasto.training.planning.memory import FootprintPredictor

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = torch.bfloat16
FLOAT8 = {"mixed_precision": "bf16", "compile": "full", "float8": True}

NEAR = 0.08
"""Of a product's norm: what rounding both sides to float8 may make of it. A side in e4m3 is off by
2^-4 at most and 2.6 % on average, one in e5m2 by twice as much; their squares add up to 5.8 %."""


def emulate(monkeypatch):
    """Let any device compute products from rounded numbers, in float32."""
    monkeypatch.setattr(float8, "_require_card", lambda device: None)
    product = functools.partial(float8.torchao_product, emulated=True)
    monkeypatch.setattr(float8, "torchao_product", product)


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao", reason="torchao, of the extra float8, is not installed")


class BasicTransformerBlock(nn.Module):
    """Layers with the names and size ratios of a transformer block, at any size."""

    def __init__(self):
        super().__init__()
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(32, 32, bias=False)})
        self.attn2 = nn.ModuleDict({"to_q": nn.Linear(32, 32), "to_k": nn.Linear(48, 32)})
        self.ff = nn.Linear(32, 48)
        self.odd = nn.Linear(32, 40)

    def forward(self, x):
        return self.ff(self.attn2["to_q"](self.attn1["to_q"](x)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"outside": nn.Linear(32, 32), "block": BasicTransformerBlock()})


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(float8, "SMALL_OUTPUT", 0)


def converted(network):
    float8.convert_layers(network, torchao_product(emulated=True))
    return network


def backward(network, values):
    network.zero_grad()
    given = values.clone().requires_grad_()
    with torch.autocast("cpu", BF16):
        output = network["block"](given)
    torch.autograd.backward(output.float().square().sum())
    learned = network["block"].named_parameters()
    gradients = {name: p.grad.clone() for name, p in learned if p.grad is not None}
    return {"output": output.detach(), "input": given.grad, **gradients}


EXPECTED = {
    "sd1": (58, {"ff.net.0.proj": 16, "attn1.to_q": 6, "attn2.to_q": 6, "ff.net.2": 6}),
    "sd2": (58, {"ff.net.0.proj": 16, "attn1.to_q": 6, "attn2.to_q": 6, "ff.net.2": 6}),
    "sdxl": (490, {"ff.net.0.proj": 70, "attn1.to_q": 60, "attn2.to_q": 60, "ff.net.2": 60}),
}
"""Layers in all, and some of them by what they do; the blocks of 320 and 640 channels have the
first layer of the feed-forward part alone."""


@pytest.mark.parametrize("architecture", EXPECTED)
def test_large_layers_of_transformer_blocks_are_chosen(architecture, torchao):
    """The layers are those that torchao would choose by size, except those of text or outside
    blocks."""
    unet = meta_model_of_architecture(find_architecture(architecture)).unet
    found = float8.float8_layers(unet)
    number, some = EXPECTED[architecture]
    roles = Counter(name.partition("transformer_blocks.")[2].partition(".")[2] for name in found)
    assert len(found) == number
    assert {role: roles[role] for role in some} == some
    assert not any("attn2.to_k" in name or "attn2.to_v" in name for name in found)
    from torchao.float8 import _auto_filter_for_recipe

    by_size = _auto_filter_for_recipe("tensorwise", [])
    in_blocks = {
        name
        for name, module in unet.named_modules()
        if "transformer_blocks" in name and by_size(module, name)
    }
    assert in_blocks - found.keys() == {n for n in in_blocks if n.endswith(("2.to_k", "2.to_v"))}
    assert found.keys() <= in_blocks


def test_sides_that_are_no_multiples_of_16_are_left_out(network, any_size):
    assert set(float8.float8_layers(network)) == {
        "block.attn1.to_q", "block.attn2.to_q", "block.ff",
    }  # fmt: skip


def test_the_parameters_and_their_names_stay_the_same_objects(network, any_size, torchao):
    before = dict(network.named_parameters())
    network["block"].attn1.eval()
    converted(network)
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    kinds = Counter(type(module).__name__ for module in network.modules())
    assert (kinds["Float8Linear"], kinds["Linear"]) == (3, 3)
    assert not network["block"].attn1["to_q"].training
    assert network["block"].ff.training


@pytest.mark.parametrize("rows", [(2, 16), (77,), (3, 21)], ids=str)
def test_numbers_are_near_those_of_bf16(rows, network, any_size, torchao):
    values = torch.randn(*rows, 32, generator=torch.Generator().manual_seed(1))
    plain = backward(network, values)
    found = backward(converted(network), values)
    assert found.keys() == plain.keys()
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (plain[name].shape, plain[name].dtype)
        apart = (tensor - plain[name]).float().norm() / plain[name].float().norm()
        depth = 3 if name in ("output", "input") or "attn" in name else 1
        assert 0.001 < apart < NEAR * depth**0.5, name


def test_rows_are_filled_up_to_a_multiple_of_16_and_change_nothing(any_size, torchao):
    """77 positions are padded to 80; a single layer, so that no other rounding interferes."""
    by_torchao, seen = torchao_product(emulated=True), []

    def product(rows, weight):
        seen.append(rows.shape)
        return by_torchao(rows, weight)

    layer = float8.Float8Linear(nn.Linear(32, 48, bias=False), product)
    values = torch.randn(7, 11, 32)
    wanted = by_torchao(values.reshape(77, 32), layer.weight).reshape(7, 11, 48)
    of_weight = torch.autograd.grad(wanted.square().sum(), layer.weight)[0]
    found = layer(values)
    assert seen == [(80, 32)]
    assert torch.equal(found, wanted)
    again = torch.autograd.grad(found.square().sum(), layer.weight)[0]
    assert torch.allclose(again, of_weight, rtol=1e-5, atol=1e-6)


def test_rows_come_in_the_type_that_is_computed_in():
    """A product's input is kept for the backward pass: in 16 bits, as autocast keeps it."""
    seen = []

    def product(rows, weight):
        seen.append((rows.dtype, weight.dtype))
        return rows @ weight.t().to(rows.dtype)

    layer = float8.Float8Linear(nn.Linear(16, 16), product)
    assert layer(torch.randn(16, 16)).dtype is torch.float32
    with torch.autocast("cpu", BF16):
        assert layer(torch.randn(16, 16)).dtype is BF16
    assert seen == [(torch.float32, torch.float32), (BF16, torch.float32)]


def test_eval_mode_computes_as_without_float8(network, any_size, torchao):
    values = torch.randn(5, 32)
    wanted = network["block"].eval()(values)
    assert torch.equal(converted(network)["block"](values), wanted)
    assert not torch.equal(network["block"].train()(values), wanted)


def test_a_network_without_large_layers_is_refused(network, monkeypatch):
    emulate(monkeypatch)
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="none of its linear layers has over 1024 outputs"):
        float8.use_float8(network, CPU)


def card(monkeypatch, capability, hip=None):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA RTX")
    monkeypatch.setattr(torch.version, "hip", hip)


def test_a_card_has_to_multiply_float8(monkeypatch):
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="and this run has none"):
        float8.require_float8(CPU)
    card(monkeypatch, (8, 6))
    with pytest.raises(ConfigError, match=r"NVIDIA RTX has 8\.6"):
        float8.require_float8(CUDA)
    card(monkeypatch, (9, 4), hip="7.0")
    with pytest.raises(ConfigError, match="is an AMD card"):
        float8.require_float8(CUDA)
    for capability in ((8, 9), (9, 0), (12, 0)):
        card(monkeypatch, capability)
        float8.require_float8(CUDA)


def test_without_torchao_the_command_is_said(monkeypatch):
    card(monkeypatch, (9, 0))
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="Install it with:") as caught:
        float8.require_float8(CUDA)
    assert caught.value.extra == "float8"


def test_a_run_on_a_cpu_is_refused_before_it_begins(train_config):
    with pytest.raises(ConfigError, match=r"training\.float8 needs an NVIDIA card"):
        require_machine(train_config(training={**FLOAT8, "compile": "blocks"}))


REFUSED = {
    "float32": ({"training": {"mixed_precision": "no"}}, "this run computes in float32"),
    "fp16": ({"training": {"mixed_precision": "fp16"}}, "this run computes in fp16"),
    "uncompiled": ({"training": {"compile": "off"}}, "needs compile"),
    "streamed": (
        {
            "training": {
                "stream_weights": True, "gradient_checkpointing": True,
                "optimizer_in_backward": "exact",
            }
        },
        "cannot be combined with stream_weights",
    ),
    "hypernetwork": (
        {"method": {"kind": "hypernetwork"}, "saving": {"format": None}},
        "not for a hypernetwork",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_go_together_say_so(name, train_config):
    changes, words = REFUSED[name]
    changes = {**changes, "training": {**FLOAT8, **changes.get("training", {})}}
    with pytest.raises(ConfigError, match=words):
        train_config(**changes)


def test_sharded_models_and_devices_without_bf16_refuse_it(train_config):
    config = train_config(training={**FLOAT8, "mixed_precision": "auto"})
    require_compatible(config, Facts(device="cuda", processes=2, precision="bf16", sharding=""))
    with pytest.raises(ConfigError, match="this run computes in fp16"):
        require_compatible(config, Facts(precision="fp16"))
    for sharding in ("FSDP", "DeepSpeed"):
        with pytest.raises(ConfigError, match=rf"{sharding}, .* training\.float8: remove it"):
            require_compatible(config, Facts(processes=2, sharding=sharding))


def one_block():
    """SD 1.5 with only its widest level: few operations, and layers that are large enough."""
    sd1 = find_architecture("sd1")
    unet, vae, text_encoder = sd1.configs
    fewer = {
        "block_out_channels": [1280],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "layers_per_block": 1,
    }
    return Architecture(sd1.family, ({**unet, **fewer}, vae, text_encoder))


def test_its_memory_is_predicted(train_config):
    """There are no 16-bit copies of float32 weights, and the same products are counted.

    The batch is large enough that memory peaks at the start of the backward pass.
    """
    meter = FootprintPredictor(partial(meta_model_of_architecture, one_block()), "cuda")
    bf16 = {**FLOAT8, "float8": False}
    plain, found = (
        meter.all_phases(train_config(training=t), Size(512, 512), 8)[0] for t in (bf16, FLOAT8)
    )
    unet = meta_model_of_architecture(one_block()).unet
    copies = 2 * sum(layer.weight.numel() for layer in float8.float8_layers(unet).values())
    assert copies > 0
    assert found.flops == plain.flops
    assert found.weights == plain.weights
    in_moment = plain.activations + plain.gradients - found.activations - found.gradients
    assert 0.9 * copies < in_moment < 1.1 * copies


def test_layers_in_float8_have_no_copies_of_weights(train_config):
    model = meta_model_of_architecture(find_architecture("sd1"))
    copied, both = (
        train_config(training={**FLOAT8, "weight_copies": True, "float8": float8_too})
        for float8_too in (False, True)
    )
    trainable = build_trainable(copied, model)
    left_out = copied_numel(copied, trainable) - copied_numel(both, trainable)
    layers = float8.float8_layers(trainable.unet).values()
    assert left_out == sum(p.numel() for layer in layers for p in layer.parameters())


def test_a_real_unet_saves_the_same_tensors(nano_model, any_size, monkeypatch, torchao):
    emulate(monkeypatch)
    monkeypatch.setattr(float8, "ALIGNMENT", 8)
    unet = load_base_model(str(nano_model)).unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    float8.use_float8(unet, CPU)
    after = unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
