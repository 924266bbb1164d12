"""Weights pulled towards their initial values (`optimizer.start_decay`)."""

import pytest
import torch
from torch import nn

from impasto.config.cases import Facts
from impasto.config.compatibility import require_compatible
from impasto.config.load import build_run_config
from impasto.errors import ConfigError
from impasto.training.optim.start_pull import StartPull


def still_optimizer(*weights, lr=0.1, kind=torch.optim.SGD, **options):
    """An optimizer whose steps change nothing while gradients are 0."""
    parameters = [nn.Parameter(torch.tensor(w)) for w in weights]
    return kind(parameters, lr=lr, **options), parameters


def test_what_nothing_renews_shrinks_by_a_share_of_the_rate():
    optimizer, (moved,) = still_optimizer([1.0, 2.0])
    StartPull(optimizer, 0.5)
    with torch.no_grad():
        moved += 8.0
    for _ in range(20):
        moved.grad = torch.zeros(2)
        optimizer.step()
    torch.testing.assert_close(
        moved.detach() - torch.tensor([1.0, 2.0]), torch.full((2,), 8 * 0.95**20)
    )


def test_with_a_gradient_it_is_adamw_and_then_the_pull():
    """The pull is not the gradient of a loss term, which AdamW would divide."""
    gradients = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    optimizer, (weight,) = still_optimizer([0.3, -1.0, 2.0], kind=torch.optim.AdamW)
    StartPull(optimizer, 2.0)
    plain, (own,) = still_optimizer([0.3, -1.0, 2.0], kind=torch.optim.AdamW)
    start = own.detach().clone()
    for gradient in gradients:
        weight.grad, own.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        plain.step()
        with torch.no_grad():
            own -= 0.1 * 2.0 * (own - start)
    torch.testing.assert_close(weight, own)


@pytest.mark.parametrize("learns", [True, False])
def test_a_group_without_gradients_stays(learns):
    """A text encoder that does not learn yet, or no longer, has no gradients."""
    first, later = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [later]}], lr=0.1)
    StartPull(optimizer, 0.5)
    with torch.no_grad():
        first += 1
        later += 1
    first.grad, later.grad = torch.zeros(1), torch.zeros(1) if learns else None
    optimizer.step()
    assert (first.item() < 2, later.item() < 2) == (True, learns)


class Still(torch.optim.Optimizer):
    """Changes nothing; takes `found_inf` as fused optimizers on a GPU do."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self, closure=None):
        pass


def test_what_is_passed_over_stays():
    optimizer, (learning, waiting) = still_optimizer([1.0], [1.0], kind=Still)
    StartPull(optimizer, 1.0)
    with torch.no_grad():
        learning += 1
        waiting += 1
    learning.grad = torch.zeros(1)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert (learning.item(), waiting.item()) == (2.0, 2.0)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert learning.item() == pytest.approx(1.9)
    assert waiting.item() == 2.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"kind": "prodigy", "lr": 0.5}}, "optimizer.kind prodigy"),
        ({"training": {"weight_dtype": "bf16", "mixed_precision": "bf16"}}, "weight_dtype bf16"),
        ({"optimizer": {"lr": 1.0}}, ""),
        ({"training": {"optimizer_in_backward": "exact"}}, "optimizer_in_backward"),
    ],
)
def test_what_it_does_not_go_with_is_named(changes, words):
    values = {
        "output_dir": "run",
        "model": {"path": "m"},
        "dataset": {"image_dir": "."},
        "training": {"max_steps": 1, **changes.get("training", {})},
        "optimizer": {"start_decay": 1.0, **changes.get("optimizer", {})},
    }
    with pytest.raises(ConfigError, match=f"start_decay .*{words}"):
        require_compatible(build_run_config(values, source="test"), Facts())
