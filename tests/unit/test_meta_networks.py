"""Networks without values equal those with values in everything else."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from impasto.models.families import SD1
from impasto.models.networks.making import MAKERS, empty_network, make_network, without_values


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


def test_networks_are_imported_without_remarks_on_packages_that_they_do_not_use(
    tmp_path, monkeypatch, caplog
):
    """Python callers see no import warnings either, but later messages of these loggers."""
    loud = "import logging\nlogging.getLogger('torchao.kernel').warning('no library')\n"
    (tmp_path / "loud_library.py").write_text(f"{loud}class Network: ...\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    level = logging.getLogger("torchao.kernel").level
    monkeypatch.setitem(MAKERS, "loud_library", lambda kind, config: kind())
    component = replace(SD1.unet, library="loud_library", class_name="Network")
    assert type(make_network(component, {})).__name__ == "Network"
    assert "no library" not in caplog.text
    assert logging.getLogger("torchao.kernel").level == level
