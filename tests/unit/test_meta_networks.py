"""Networks without values are those with values in all else."""

import pytest
import torch
from torch import nn

from impasto.models.families import SD1
from impasto.models.networks.making import empty_network, make_network, without_values


def layout(network):
    tensors = network.state_dict(keep_vars=True)
    return {name: (t.shape, t.dtype, t.requires_grad, type(t)) for name, t in tensors.items()}


@pytest.mark.parametrize("component", SD1.components, ids=SD1.names)
def test_they_have_the_same_tensors(component, nano_architecture):
    config = nano_architecture.by_name[component.name]
    empty = empty_network(component, config, "a test")
    assert layout(empty) == layout(make_network(component, config))
    assert all(tensor.is_meta for tensor in empty.parameters())


def test_first_weights_are_drawn_again_afterwards():
    with without_values():
        assert nn.Linear(2, 3).weight.is_meta
    assert torch.isfinite(nn.Linear(2, 3).weight).all()
    assert nn.Linear(64, 64).weight.std() > 0.01
