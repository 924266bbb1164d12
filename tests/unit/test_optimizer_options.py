"""Each option of each optimizer has an effect, or is refused with the reason."""

import inspect
from functools import cache

import pytest
import torch
from torch import nn

from impasto.config.load import build_run_config
from impasto.config.optimizer import OptimizerConfig
from impasto.errors import ConfigError
from impasto.models.trainable import TrainedModule
from impasto.optimizer_table import OPTIMIZERS
from impasto.training.optim.optimizers import _load, build_optimizer
from impasto.training.optim.state import LrSetter

pytestmark = [
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SPEED_ONLY = {"foreach", "fused", "capturable"}
"""Options that select another way to compute the same values."""

BESIDE = {
    (kind, "fixed_decay"): {"weight_decouple": True}
    for kind in ("dadapt_adam", "dadapt_adagrad", "dadapt_lion", "dadapt_sgd")
}
BESIDE["dadapt_adagrad", "fixed_decay"] |= {"momentum": 0.5}
"""Other options that an option requires."""

NAMED = {"betas", "eps", "weight_decay"}


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(64, 80) * 0.1)
        self.line = nn.Parameter(torch.randn(64) * 0.1)


def walk(kind, given, *, decay, steps=30):
    """Return weights after some steps towards a target, with a rate that rises and falls."""
    finds = OPTIMIZERS[kind].finds_lr
    given = {"weight_decay": 0.1, **given} if decay else given
    named = {k: v for k, v in given.items() if k in NAMED and not isinstance(v, list)}
    rest = {k: v for k, v in given.items() if k not in named}
    config = OptimizerConfig(kind=kind, lr=1.0 if finds else 1e-2, **named, arguments=rest)
    module = Weights()
    optimizer = build_optimizer([TrainedModule("unet", module, config.lr)], config)
    setter = LrSetter(optimizer)
    torch.manual_seed(1)
    goal = [torch.randn_like(p) for p in module.parameters()]
    scale = 300 if finds and kind != "dadapt_adan" else 1  # finds a rate in these steps
    for step in range(steps):
        setter.set(min(1.0, 0.25 * (step + 1)) * (1 if step < 20 else 0.3))
        for parameter, target in zip(module.parameters(), goal, strict=True):
            noise = torch.randn_like(parameter) * (10.0 ** (step % 4 - 3))
            parameter.grad = (parameter.detach() - target) * scale * (3 if step == 7 else 1) + noise
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@cache
def usual_walk(kind, *, decay):
    """The weights without options, which the others are compared with."""
    return walk(kind, {}, decay=decay)


def other_values(name, default):
    if name == "betas":
        return [[b * 0.8 for b in default]]
    if name == "beta3":
        return [0.5]
    if name == "beta1":
        return [0.5]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, (tuple, list)):
        return [[(x or 0) * 1e3 + 1e-3 for x in default]]
    if name == "growth_rate":
        return [1.01]
    if isinstance(default, (int, float)):
        return [default * 1e5 or 0.3, default * 3 + 0.2, 0.5, 3, 7000]
    return [0.5]


def options():
    for kind, row in OPTIMIZERS.items():
        for name, parameter in inspect.signature(_load(row).__init__).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD or name in SPEED_ONLY | {"self"}:
                continue
            yield kind, name, row.defaults.get(name, parameter.default)


@pytest.mark.parametrize(("kind", "name", "default"), list(options()))
def test_each_option_has_an_effect_or_is_refused(kind, name, default):
    refusals = []
    for decay in (False, True) if name != "weight_decay" else (False,):
        try:
            usual = usual_walk(kind, decay=decay)
        except ConfigError as error:  # no weight decay
            refusals.append(str(error))
            continue
        for value in other_values(name, default):
            beside = BESIDE.get((kind, name), {})
            try:
                usual = walk(kind, beside, decay=decay) if beside else usual
                if not torch.equal(usual, walk(kind, {**beside, name: value}, decay=decay)):
                    return
            except (ConfigError, ValueError) as error:
                refusals.append(str(error))
            else:
                refusals.append(None)
    assert refusals
    assert all(refusals), f"{kind}: {name} has no effect, but is accepted"


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rates_of_parts_and_blocks_are_obeyed_or_refused(kind):
    finds = OPTIMIZERS[kind].finds_lr
    lr = 1.0 if finds else 1e-3
    one, other = Weights(), Weights()
    parts = [TrainedModule("unet", one, lr), TrainedModule("text_encoder", other, lr / 4)]
    config = OptimizerConfig(kind=kind, lr=lr)
    if finds:
        with pytest.raises(ConfigError, match=r"0\.25, 1 at the same time would have no effect"):
            build_optimizer(parts, config)
        return
    before = one.matrix.detach().clone()
    optimizer = build_optimizer(parts, config)
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        for name, parameter in one.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            other.get_parameter(name).grad = parameter.grad.clone()
        optimizer.step()
    moved, moved_less = ((m.matrix.detach() - before).norm() for m in (one, other))
    assert 0.2 < float(moved_less / moved) < 0.3


@pytest.mark.parametrize("kind", ["a2grad", "apollodqn", "DAdaptAdam", "pytorch_optimizer.Prodigy"])
def test_rates_that_other_optimizers_ignore_are_refused(kind):
    parts = [TrainedModule("unet", Weights(), 1e-3), TrainedModule("text_encoder", Weights(), 1e-4)]
    with pytest.raises(ConfigError, match="has one learning rate for all trained parts"):
        build_optimizer(parts, OptimizerConfig(kind=kind, lr=1e-3))


@pytest.mark.parametrize("kind", ["torch.optim.RAdam", "came", "torch.optim.adamw.AdamW"])
def test_other_optimizers_obey_rates(kind):
    parts = [TrainedModule("unet", Weights(), 1e-3), TrainedModule("text_encoder", Weights(), 1e-4)]
    optimizer = build_optimizer(parts, OptimizerConfig(kind=kind, lr=1e-3))
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 1e-4]


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("prodigy", {"d_coeff": 0.5}, "does not take d_coeff (the nearest is d_coef"),
        (
            "adamw",
            {"lr": 1.0},
            "optimizer.arguments.lr has no effect on optimizer.kind adamw: set optimizer.lr",
        ),
        ("alig", {}, "cannot be used with these settings: a first step failed with NoClosureError"),
        ("sgd8bit", {"nesterov": True}, "bitsandbytes' SGD has ordinary momentum only"),
        ("prodigy", {"beta3": "x"}, "cannot be used with these settings"),
        ("torch.optim.NoSuch", {}, "there is no such class"),
        ("no.such.Module", {}, "there is no such class"),
        ("torch.nn.Linear", {}, "which is not an optimizer"),
        (".Adam", {}, "there is no such class"),
    ],
)
def test_what_would_have_no_effect_is_refused(kind, arguments, words):
    with pytest.raises(ConfigError) as caught:
        build_optimizer(
            [TrainedModule("u", Weights(), 1e-3)], OptimizerConfig(kind=kind, arguments=arguments)
        )
    assert words in str(caught.value)


def test_trying_out_leaves_the_random_state():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_optimizer(
        [TrainedModule("unet", Weights(), 1e-3)], OptimizerConfig(kind="torch.optim.RAdam")
    )
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["betas", "eps", "weight_decay"])
def test_an_argument_that_is_a_setting_too_is_given_once(name):
    value = [0.5, 0.9] if name == "betas" else 0.1
    for given in ({name: value}, {"arguments": {name: value}}):
        OptimizerConfig.model_validate(given)
    with pytest.raises(ValueError, match=rf"{name} and arguments\.{name} are both given"):
        OptimizerConfig.model_validate({name: value, "arguments": {name: value}})


@pytest.mark.parametrize("kind", ["prodigy", "dadapt_adam", "dadapt_lion", "prodigyopt.Prodigy"])
@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ({"train_text_encoder": True, "text_encoder_lr": 0.25}, "text_encoder_lr"),
        ({"block_lrs": {"mid_block": 0.5}}, "block_lrs"),
    ],
)
def test_settings_refuse_rates_before_anything_is_loaded(kind, method, setting):
    tree = {"output_dir": "r", "model": {"path": "b"}, "dataset": {"image_dir": "p"}}
    tree |= {"training": {"max_steps": 1}, "optimizer": {"kind": kind, "lr": 1.0}, "method": method}
    with pytest.raises(ConfigError, match=rf"Remove method\.{setting}, or"):
        build_run_config(tree, source="test")
    tree["method"] = {"train_text_encoder": True, "text_encoder_lr": 1.0}
    build_run_config(tree, source="test")
