"""Networks whose tensors are offloaded to a file return with the same values."""

import copy
import shutil
from functools import partial

import pytest
import torch
from torch import nn

from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import write_safetensors
from impasto.errors import ModelError
from impasto.models.networks.casting import cast_network
from impasto.models.networks.keeping import META
from impasto.models.networks.loading import load_base_model
from impasto.models.networks.offload import (
    is_waiting,
    keep_in_file,
    keep_in_ram,
    keep_stored_types,
    offload_to_file,
    on_device,
    wait_again,
    wake,
)
from impasto.models.networks.vae import weights_fingerprint
from impasto.models.reading.completeness import named_as_in
from impasto.models.reading.opening import OpenOptions
from impasto.models.text.text_states import TextStates
from impasto.models.writing.conversion import convert_model

CPU = torch.device("cpu")


def test_a_changed_tensor_is_not_narrowed(tmp_path):
    """A tensor changed by code after it was read from fp16 would lose the change."""
    network = nn.Linear(3, 2)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.copy_(tensor.half())
        network.weight[0, 0] += 1e-5
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert not torch.equal(expected["weight"].half().float(), expected["weight"])
    stored = dict.fromkeys(expected, torch.float16)
    waiting = offload_to_file(network, tmp_path / "waiting", stored)
    assert network.weight.device == META
    types = {name: tensor.dtype for name, tensor in waiting.items()}
    assert types == {"weight": torch.float32, "bias": torch.float16}
    with on_device(network, torch.device("cpu")):
        assert all(tensor.dtype == torch.float32 for tensor in network.parameters())
        assert all(torch.equal(t, expected[name]) for name, t in network.state_dict().items())
    assert network.weight.device == META


@pytest.fixture
def halves(nano_model, tmp_path):
    """A model that is stored in fp16."""
    folder = tmp_path / "halves"
    dtypes = dict.fromkeys(ComponentKind, torch.float16)
    convert_model(str(nano_model), folder, "diffusers", dtypes, OpenOptions())
    return folder


def waiting_model(folder, keeper):
    """Return a base model whose VAE and text encoders are offloaded."""
    keepers = {name: partial(keeper, name) for name in ("vae", "text_encoder")}
    return load_base_model(folder, waiting=lambda _: keepers)


@pytest.mark.parametrize("place", ["RAM", "file"])
def test_what_waits_is_what_is_read_at_once(halves, place, tmp_path):
    """Values, cache hashes, and exports are the same, without the model's files."""

    def keep(name, tensors):
        if place == "RAM":
            return keep_in_ram(tensors)
        return keep_in_file(tensors, tmp_path / f"{name}.safetensors")

    plain, model = load_base_model(halves), waiting_model(halves, keep)
    shutil.rmtree(halves)
    assert model.stored == plain.stored
    for name, network in plain.networks.items():
        other = model.networks[name]
        assert is_waiting(other) == (name != "unet")
        assert weights_fingerprint(other) == weights_fingerprint(network)
        if name != "unet":
            kept = model.contents.components[name]
            assert kept.keys() == plain.contents.components[name].keys()
            assert {tensor.dtype for tensor in kept.values()} == {torch.float16}
            with on_device(other, CPU):
                own = other.state_dict()
                assert own.keys() == network.state_dict().keys()
                assert all(torch.equal(own[n], t) for n, t in network.state_dict().items())
            assert is_waiting(other)


def test_a_cast_copy_of_what_waits_is_that_of_its_values(halves):
    """Images are encoded this way if the VAE is not in float32."""
    plain = load_base_model(halves)
    model = waiting_model(halves, lambda _, tensors: keep_in_ram(tensors))
    cast = cast_network(copy.deepcopy(model.vae), torch.bfloat16)
    expected = cast_network(copy.deepcopy(plain.vae), torch.bfloat16)
    before = weights_fingerprint(expected)
    assert weights_fingerprint(cast) == before
    wake(cast, CPU)
    assert weights_fingerprint(cast) == before
    assert wait_again(cast)
    assert is_waiting(cast)
    assert is_waiting(model.vae)


def test_encoders_that_wait_come_when_asked_and_go_again(halves):
    model = waiting_model(halves, lambda _, tensors: keep_in_ram(tensors))
    states = TextStates.of(model).to_device(CPU)
    assert states.are_waiting
    with states.awake(CPU):
        assert not states.are_waiting
    assert states.are_waiting
    others = TextStates.of(load_base_model(halves))
    others.leave_device()
    assert not others.are_waiting
    assert next(others.parameters()).device == CPU


def test_a_damaged_network_is_refused_though_it_waits(halves, tmp_path):
    from impasto.checkpoints.reading import open_tensor_file

    (file,) = (halves / "vae").glob("*.safetensors")
    found = open_tensor_file(file)
    tensors = {name: LazyTensor.of(tensor.read()) for name, tensor in found.tensors.items()}
    bad = tensors["decoder.conv_in.bias"].read().clone()
    bad[0] = float("nan")
    tensors["decoder.conv_in.bias"] = LazyTensor.of(bad)
    write_safetensors(file, tensors, {}, unchecked=tensors.keys())
    for keeper in (
        lambda _, tensors: keep_in_ram(tensors),
        lambda name, tensors: keep_in_file(tensors, tmp_path / name),
    ):
        with pytest.raises(ModelError, match=r"decoder\.conv_in\.bias holds NaN"):
            waiting_model(halves, keeper)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_layers_that_widen_themselves_compute_the_same_bits(nano_model, tmp_path, stored):
    """Frozen text encoders beside a GPU take half the bytes, and give float32's states."""
    folder = tmp_path / "stored"
    dtypes = dict.fromkeys(ComponentKind, stored)
    convert_model(str(nano_model), folder, "diffusers", dtypes, OpenOptions())
    plain = load_base_model(folder)
    model = waiting_model(folder, lambda _, tensors: keep_in_ram(tensors))
    network = model.networks["text_encoder"]
    before = weights_fingerprint(network)
    keep_stored_types(network)
    assert weights_fingerprint(network) == before  # of float32, as used in cache keys
    ids = torch.arange(154).reshape(2, 77)
    states = TextStates.of(model)
    with states.awake(CPU), torch.no_grad():
        assert {p.dtype for p in network.parameters()} == {stored}
        found = states(ids)
    expected = TextStates.of(plain)(ids)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    states.stay_on(CPU)
    assert not is_waiting(network)
    assert not wait_again(network)
    assert torch.equal(states(ids), expected)
    kept = model.contents.components["text_encoder"]
    inside = dict(network.state_dict())
    assert {tensor.dtype for tensor in kept.values()} == {stored}
    for name, tensor in kept.items():
        own = inside[named_as_in(inside, name)]
        assert tensor.read().data_ptr() == own.data_ptr()  # and nothing else references them
    exported = {name: tensor.read() for name, tensor in kept.items()}
    assert exported.keys() == plain.contents.components["text_encoder"].keys()
    for name, tensor in plain.contents.components["text_encoder"].items():
        assert torch.equal(exported[name].float(), tensor.read())


def test_a_network_of_other_layers_does_not_widen_itself(halves):
    model = waiting_model(halves, lambda _, tensors: keep_in_ram(tensors))
    keep_stored_types(model.vae)
    with on_device(model.vae, CPU):
        assert {p.dtype for p in model.vae.parameters()} == {torch.float32}
