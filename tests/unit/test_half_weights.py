"""16-bit weights: rounding without loss, on average or exactly, and float32 steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from impasto.config.optimizer import OptimizerConfig
from impasto.errors import ConfigError
from impasto.models.trainable import TrainedModule
from impasto.training.optim.chunked import ChunkedOptimizer, ChunkRules
from impasto.training.optim.mixed_precision import Precision
from impasto.training.optim.optimizers import build_optimizer
from impasto.training.optim.rounding import build_rounding, stochastically_rounded

CPU = torch.device("cpu")
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def neighbours(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the neighbours of a value, found by trying all 65,536 numbers."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()].double()
    return float(finite[finite <= value].max()), float(finite[finite >= value].min())


@HALVES
@given(value=st.floats(-60000, 60000, width=32), seed=st.integers(0, 100))
def test_stochastic_rounding_takes_one_of_the_two_around(dtype, value, seed):
    generator = torch.Generator().manual_seed(seed)
    rounded = float(stochastically_rounded(torch.tensor([value]), dtype, generator))
    assert rounded in neighbours(value, dtype)


@HALVES
@pytest.mark.parametrize("value", [0.0501, -0.0501, 3e-6, -7.3e-8, 1.0, 1234.567])
def test_stochastic_rounding_is_right_on_average(dtype, value):
    count = 200_000
    values = torch.full((count,), value)
    rounded = stochastically_rounded(values, dtype, torch.Generator().manual_seed(3)).double()
    low, high = neighbours(float(values[0]), dtype)
    deviation = (high - low) / 2 / count**0.5
    assert float(rounded.mean()) == pytest.approx(float(values[0]), abs=5 * deviation + 1e-12)


@HALVES
def test_what_fits_stays(dtype):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()]
    again = stochastically_rounded(finite.float(), dtype, torch.Generator().manual_seed(0))
    assert torch.equal(again, finite)


def small_updates(rounding: str, dtype: torch.dtype) -> float:
    """Return the fraction of 1,000 equal updates that is applied; each is 1/60 of bfloat16's
    step."""
    weights = nn.Parameter(torch.full((1000,), 0.05, dtype=dtype))
    optimizer = ChunkedOptimizer(
        [{"params": [weights], "lr": 4e-6}],
        lambda groups: torch.optim.SGD(groups, lr=4e-6),
        ChunkRules(build_rounding(rounding, CPU)),
    )
    before = float(weights.detach().double().mean())
    for step in range(1000):
        optimizer.begin(step)
        weights.grad = torch.ones_like(weights)
        optimizer.step()
        optimizer.zero_grad()
    return (before - float(weights.detach().double().mean())) / (1000 * 4e-6)


@HALVES
def test_small_updates_add_up(dtype):
    assert small_updates("stochastic", dtype) == pytest.approx(1, abs=0.05)
    assert small_updates("kahan", dtype) == pytest.approx(1, abs=0.05)
    assert small_updates("nearest", dtype) == 0


RATES = {"3": 1e-4}


def parts(dtype, **block_lrs):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 300), nn.GELU(), nn.Linear(300, 300), nn.Linear(300, 2))
    return TrainedModule("unet", module.to(dtype), 1e-3, block_lrs)


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "adamw8bit", "came", "RAdam"])
@pytest.mark.parametrize("chunk", [1, 1 << 30], ids=["one by one", "all at once"])
def test_a_step_equals_the_one_in_float32(kind, chunk):
    """Weights and gradients that fit 16 bits give the same float32 result, then rounded."""
    config = OptimizerConfig(kind=kind, lr=1e-3)
    narrow, wide = parts(torch.bfloat16, **RATES), parts(torch.bfloat16, **RATES)
    wide.module.float()
    plain = build_optimizer([wide], config)
    groups = [{"params": list(p.values()), "lr": lr} for lr, p in narrow.by_rate()]
    build = type(plain)
    options = {"fused": True} if kind == "adamw" else {}
    if kind == "adafactor":
        options = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
    rounded = ChunkedOptimizer(
        groups,
        lambda g: build(g, lr=1e-3, **options),
        ChunkRules(build_rounding("nearest", CPU)),
        chunk,
    )
    generator = torch.Generator().manual_seed(1)
    pairs = list(zip(narrow.parameters().values(), wide.parameters().values(), strict=True))
    for p, q in pairs:
        p.grad = torch.randn(p.shape, generator=generator).bfloat16()
        q.grad = p.grad.float()
    rounded.step()
    plain.step()
    for p, q in pairs:
        assert p.dtype is torch.bfloat16
        assert torch.equal(p, q.bfloat16())


def test_clipping_is_that_of_float32():
    narrow = parts(torch.bfloat16, **RATES)
    optimizer = build_optimizer(
        [narrow], OptimizerConfig(kind="SGD", lr=1.0), ChunkRules(build_rounding("kahan", CPU))
    )
    before = [p.detach().float().clone() for p in narrow.parameters().values()]
    for p in narrow.parameters().values():
        p.grad = torch.full_like(p, 3.0)
    gradient = [p.grad.float() for p in narrow.parameters().values()]
    norm = Precision("bf16", CPU).clip(optimizer, narrow.parameters().values(), 0.5)
    assert float(norm) == pytest.approx(3 * sum(g.numel() for g in gradient) ** 0.5)
    optimizer.step()
    rates = {p: lr for lr, members in narrow.by_rate() for p in members.values()}
    moved = [
        (b - p.detach().float() - optimizer.state[p]["compensation"].float()).flatten() / rates[p]
        for b, p in zip(before, narrow.parameters().values(), strict=True)
    ]
    assert float(torch.linalg.vector_norm(torch.cat(moved))) == pytest.approx(0.5, rel=1e-2)


def test_a_scaled_gradient_comes_to_its_true_size_in_float32():
    """1e-6 is below float16's normal numbers, but 65,536 times it is not."""
    weights = nn.Parameter(torch.zeros(100, dtype=torch.float16))
    optimizer = ChunkedOptimizer(
        [{"params": [weights], "lr": 1.0}],
        lambda groups: torch.optim.SGD(groups, lr=1.0),
        ChunkRules(build_rounding("kahan", CPU)),
    )
    precision = Precision("fp16", CPU)
    precision.scaled((weights.float() * 1.1e-6).sum()).backward()
    precision.step(optimizer)
    assert weights.tolist() == pytest.approx([-1.1e-6] * 100, rel=0.03)
    weights.grad = torch.full_like(weights, float("inf"))
    before = weights.detach().clone()
    precision.step(optimizer)
    assert torch.equal(weights, before)
    assert precision.state()["scale"] == 2.0**15


@pytest.mark.parametrize("kind", ["prodigy", "dadapt_adam", "adamw_schedule_free"])
def test_optimizers_that_look_at_all_weights_are_refused(kind, train_config):
    with pytest.raises(ConfigError, match=r"which excludes training\.weight_dtype"):
        train_config(
            optimizer={"kind": kind}, training={"weight_dtype": "bf16", "mixed_precision": "bf16"}
        )
