"""NaN or infinite losses and gradients: they reach no weight, and no state is saved with them."""

import json
import math

import pytest
import torch
from torch import nn

from impasto.checkpoints.reading import open_tensor_file
from impasto.config.optimizer import OptimizerConfig
from impasto.errors import NonFiniteLossError
from impasto.models.trainable import TrainedModule
from impasto.training import trainer
from impasto.training.optim.chunked import AT_ONCE, ChunkRules
from impasto.training.optim.finite_updates import FiniteUpdates, NonFiniteError, are_finite
from impasto.training.optim.mixed_precision import Precision
from impasto.training.optim.optimizers import build_optimizer
from impasto.training.optim.updates import UpdateInputs, build_update
from impasto.training.saving.saver import Saver

CPU = torch.device("cpu")
EACH = ChunkRules(each_alone=True)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.ones(8)) for _ in range(2))


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "SGD"])
@pytest.mark.parametrize("way", ["off", "exact", "last_norm"])
@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_an_infinite_gradient_of_a_finite_loss_is_not_applied(kind, way, limit):
    net = Two()
    rules = AT_ONCE if way == "off" else EACH
    optimizer = build_optimizer(
        [TrainedModule("unet", net, 1e-3)], OptimizerConfig(kind=kind), rules
    )
    update = build_update(
        UpdateInputs(optimizer, list(net.parameters()), Precision("no", CPU), limit, way)
    )
    for step in range(2):
        with torch.no_grad():
            net.first.fill_(0.0 if step else 1.0)
        before = net.second.detach().clone()
        loss = net.first.sqrt().sum() + net.second.square().sum()  # the square root's slope at 0
        if step == 0:
            update.backward(loss)
            update.apply(loss)
            update.is_stepping = False
            continue
        assert math.isfinite(loss.item())
        with pytest.raises(NonFiniteError) as found:
            update.backward(loss)
            update.apply(loss)
    assert torch.equal(net.first.detach(), torch.zeros(8))
    assert are_finite(net.parameters())
    assert all(p.grad is None for p in net.parameters())
    assert not update.is_stepping or not found.value.weights_intact
    if found.value.weights_intact:
        assert torch.equal(net.second.detach(), before)


def test_a_fault_is_counted_from_where_it_was():
    updates = FiniteUpdates(CPU)
    for value in (1.0, float("nan"), 2.0, 3.0):
        updates.require(torch.tensor(value))
        updates.stepped()
    with pytest.raises(NonFiniteError) as found:
        updates.require_applied()
    assert found.value.passed_over == 3  # the second one, and all later ones
    assert found.value.weights_intact


def test_a_fault_found_while_weights_change_tears_them():
    updates = FiniteUpdates(CPU)
    before = updates.begin_to_step()
    updates.require_all(torch.tensor([1.0, float("inf")]))
    updates.stepped(before)
    with pytest.raises(NonFiniteError) as found:
        updates.require_applied()
    assert not found.value.weights_intact


def test_updates_that_were_applied_are_not_looked_at_again():
    updates = FiniteUpdates(CPU)
    for _ in range(2):
        updates.require(torch.tensor(1.0))
        updates.stepped()
        updates.require_applied()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, -3e38], True),
        ([1.0, float("nan")], False),
        ([float("-inf")], False),
        ([], True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_looked_at(values, expected, dtype):
    assert are_finite([torch.ones(2), torch.tensor(values, dtype=dtype)]) == expected
    assert are_finite([torch.arange(3), torch.tensor([], dtype=dtype)])


def test_no_state_is_made_of_weights_that_are_not_finite(train_config, monkeypatch):
    """An optimizer may break weights by itself; the earlier state remains the only one."""
    real = Saver.save_state

    def save(self, done, best, **options):
        if done == 2:
            with torch.no_grad():
                next(iter(self._session_state.names)).view(-1)[0] = float("nan")
        real(self, done, best, **options)

    monkeypatch.setattr(Saver, "save_state", save)
    config = train_config(saving={"state_every_steps": 1, "keep_states": 1})
    with pytest.raises(NonFiniteLossError, match=r"After 2 steps .* adamw made them so"):
        trainer.train(config)
    kept = sorted((config.output_dir / "states").iterdir())
    assert [folder.name for folder in kept] == ["step-00000001"]
    tensors = open_tensor_file(kept[0] / "weights.safetensors").tensors
    assert are_finite(tensor.read() for tensor in tensors.values())
    status = json.loads((config.output_dir / "status.json").read_text(encoding="utf-8"))
    assert status["phase"] == "failed"
