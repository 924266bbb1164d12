"""Steps within the backward pass against the usual order, and states stored elsewhere."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from impasto.checkpoints.tensors import LazyTensor
from impasto.config.optimizer import OptimizerConfig
from impasto.errors import ConfigError
from impasto.models.trainable import TrainedModule
from impasto.training.optim.chunked import AT_ONCE, ChunkRules
from impasto.training.optim.finite_updates import NonFiniteError
from impasto.training.optim.mixed_precision import Precision
from impasto.training.optim.offload import OffloadedStates
from impasto.training.optim.optimizers import build_optimizer
from impasto.training.optim.rounding import build_rounding
from impasto.training.optim.state import (
    optimizer_scalars,
    optimizer_tensors,
    parameter_names,
    restore_optimizer,
)
from impasto.training.optim.updates import LAST_NORM, UpdateInputs, build_update

CPU = torch.device("cpu")
KINDS = ["adamw", "adamw8bit", "lion", "adafactor", "SGD"]
EACH = ChunkRules(each_alone=True)


class Net(nn.Module):
    """Layers, some of which are recomputed in the backward pass."""

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(96, 96) for _ in range(4))
        self.checkpointed = checkpointed

    def forward(self, x):
        for layer in self.layers:
            run = lambda y, layer=layer: torch.tanh(layer(y))  # noqa: E731
            x = checkpoint(run, x, use_reentrant=False) if self.checkpointed else run(x)
        return x


def trained(
    way, rules, *, kind="adamw", limit=0.1, updates=4, checkpointed=False, precision="no", size=3.0
):
    """Return weights and norms after some steps on the same data."""
    net = Net(checkpointed=checkpointed)
    if rules.rounding is not None:
        net.to(torch.bfloat16)
    part = TrainedModule("unet", net, 1e-3)
    optimizer = build_optimizer([part], OptimizerConfig(kind=kind, lr=1e-3), rules)
    computing = Precision(precision, CPU)
    parameters = list(part.parameters().values())
    update = build_update(UpdateInputs(optimizer, parameters, computing, limit, way))
    generator = torch.Generator().manual_seed(5)
    norms = []
    for step in range(updates):
        if rules.rounding is not None:
            optimizer.begin(step)
        x = torch.randn((8, 96), generator=generator)
        with computing.autocast():
            loss = (net(x.to(parameters[0].dtype)).float() * size).square().mean()
        update.backward(loss)
        norms.append(update.apply(loss))
        assert update.is_stepping  # until the step counter takes it back
        update.is_stepping = False
        optimizer.zero_grad()
    assert all(p.grad is None for p in parameters)
    return [p.detach().clone() for p in parameters], norms


def assert_same(found, wanted):
    for one, other in zip(found[0], wanted[0], strict=True):
        assert torch.equal(one, other)
    assert [n if n is None else float(n) for n in found[1]] == [
        n if n is None else float(n) for n in wanted[1]
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0, 0.1])
def test_stepping_in_the_backward_pass_changes_no_bit(kind, limit):
    plain = trained("off", AT_ONCE, kind=kind, limit=limit)
    assert_same(trained("exact", EACH, kind=kind, limit=limit), plain)
    if limit:
        assert float(plain[1][0]) > limit  # it was clipped


def test_checkpointed_layers_are_computed_again_for_each_pass():
    plain = trained("off", AT_ONCE)
    assert_same(trained("exact", EACH, checkpointed=True), plain)


def test_a_scaled_loss_gives_the_same_weights():
    plain = trained("off", AT_ONCE, precision="fp16", updates=6)
    assert_same(trained("exact", EACH, precision="fp16", updates=6), plain)


def test_an_overflow_passes_over_the_update_and_lowers_the_scale():
    weight = nn.Parameter(torch.ones(8))
    optimizer = build_optimizer(
        [TrainedModule("unet", Single(weight), 1.0)], OptimizerConfig(), EACH
    )
    precision = Precision("fp16", CPU)
    update = build_update(UpdateInputs(optimizer, [weight], precision, 1.0, "exact"))
    update.backward((weight * 1e35).sum())  # times the first scale of 65,536
    assert torch.equal(weight.detach(), torch.ones(8))
    assert precision.state() == {"scale": 2.0**15, "growth_tracker": 0.0}


def test_sixteen_bit_weights_step_in_the_backward_pass_too():
    rounding = build_rounding("kahan", CPU)  # by chance the order of the weights would count
    plain = trained("off", ChunkRules(rounding))
    assert_same(trained("exact", ChunkRules(rounding, each_alone=True)), plain)


def test_the_norm_of_the_update_before_limits_the_next():
    found, norms = trained(LAST_NORM, EACH, kind="SGD", updates=3)
    net = Net()
    part = TrainedModule("unet", net, 1e-3)
    generator = torch.Generator().manual_seed(5)
    last = None
    for step in range(3):
        x = torch.randn((8, 96), generator=generator)
        loss = (net(x) * 3.0).square().mean()
        grads = torch.autograd.grad(loss, list(part.parameters().values()))
        norm = torch.stack([g.norm() for g in grads]).norm()
        assert float(norms[step]) == pytest.approx(float(norm), rel=1e-6)
        factor = min(1.0, 0.1 / float(norm if last is None else last))
        with torch.no_grad():
            for p, g in zip(part.parameters().values(), grads, strict=True):
                p -= 1e-3 * factor * g
        last = norm
    for one, other in zip(found, part.parameters().values(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-7)


def test_the_last_norm_is_part_of_the_state():
    part = TrainedModule("unet", Net(), 1e-3)
    optimizer = build_optimizer([part], OptimizerConfig(), EACH)
    optimizer.param_groups[0][LAST_NORM] = torch.tensor(3.5)
    names = parameter_names([part])
    tensors = {k: LazyTensor.of(t) for k, t in optimizer_tensors(optimizer, names).items()}
    scalars = optimizer_scalars(optimizer, names)
    again = build_optimizer([part], OptimizerConfig(), EACH)
    restore_optimizer(again, names, tensors, scalars)
    assert float(again.param_groups[0][LAST_NORM]) == 3.5


class Single(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


@pytest.mark.parametrize("limit", [0, 1.0])
def test_a_loss_that_is_not_finite_changes_nothing(limit):
    weight = nn.Parameter(torch.ones(8))
    optimizer = build_optimizer(
        [TrainedModule("unet", Single(weight), 1.0)], OptimizerConfig(), EACH
    )
    update = build_update(UpdateInputs(optimizer, [weight], Precision("no", CPU), limit, "exact"))
    with pytest.raises(NonFiniteError) as found:
        update.backward(weight.sum() * float("nan"))
    assert found.value.weights_intact
    assert torch.equal(weight.detach(), torch.ones(8))


def test_a_gradient_that_is_not_finite_changes_nothing_where_it_is_measured_first():
    weight = nn.Parameter(torch.zeros(8))
    optimizer = build_optimizer(
        [TrainedModule("unet", Single(weight), 1.0)], OptimizerConfig(), EACH
    )
    update = build_update(UpdateInputs(optimizer, [weight], Precision("no", CPU), 1.0, "exact"))
    with pytest.raises(NonFiniteError) as found:
        update.backward(weight.sqrt().sum())  # its slope at 0 is infinite
    assert found.value.weights_intact
    assert torch.equal(weight.detach(), torch.zeros(8))


@pytest.mark.parametrize("kind", ["prodigy", "adamw_schedule_free"])
def test_optimizers_that_look_at_all_weights_are_refused(kind, train_config):
    with pytest.raises(ConfigError, match=r"optimizer_in_backward\. Remove that setting"):
        train_config(optimizer={"kind": kind}, training={"optimizer_in_backward": "exact"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("each_alone", [False, True])
def test_states_kept_elsewhere_change_no_bit(kind, each_alone):
    rules = ChunkRules(each_alone=each_alone, away=OffloadedStates(CPU))
    way = "exact" if each_alone else "off"
    assert_same(trained(way, rules, kind=kind), trained("off", AT_ONCE, kind=kind))


def test_states_kept_elsewhere_can_be_saved_and_put_back():
    def begun():
        part = TrainedModule("unet", Net(), 1e-3)
        rules = ChunkRules(away=OffloadedStates(CPU))
        return part, build_optimizer([part], OptimizerConfig(), rules)

    def update(part, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        part.module(torch.randn((8, 96), generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    part, optimizer = begun()
    for seed in range(4):
        update(part, optimizer, seed)
    first, early = begun()
    for seed in range(2):
        update(first, early, seed)
    names = parameter_names([first])
    tensors = {k: LazyTensor.of(v.clone()) for k, v in optimizer_tensors(early, names).items()}
    scalars = optimizer_scalars(early, names)
    second, late = begun()
    second.module.load_state_dict(first.module.state_dict())
    restore_optimizer(late, parameter_names([second]), tensors, scalars)
    for seed in range(2, 4):
        update(second, late, seed)
    for one, other in zip(part.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)
