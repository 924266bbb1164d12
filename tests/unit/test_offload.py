"""Networks whose tensors wait in a file come back with the values that they had."""

import torch
from torch import nn

from impasto.models.offload import META, offload_to_file, on_device


def test_a_changed_tensor_is_not_narrowed(tmp_path):
    """A tensor that code changed since it was read from fp16 would lose what was changed."""
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
