"""`impasto doctor --gpu`: the messages of each check; the same code runs on the CPU."""

from types import SimpleNamespace

import pytest
import torch
from conftest import impasto

from impasto.cli import card_check
from impasto.cli.card_check import attention, check_gpu, compared, precisions
from impasto.errors import ConfigError, MissingDependencyError
from impasto.progress import SilentProgress
from impasto.training.compute.precision import NativePrecision

CPU = torch.device("cpu")
SMALL = (1, 2, 64, 40)
KERNEL = card_check._attention_by


def test_attention_that_is_right_is_only_timed():
    outcome = attention(CPU, SMALL)
    assert "plain" in outcome.found
    assert " ms" in outcome.found
    assert outcome.advice == ""


def test_a_kernel_that_computes_wrong_numbers_is_named(monkeypatch):
    def spoilt(backend, *inputs):
        output, seconds = KERNEL(backend, *inputs)
        return output * (1 if backend is card_check.KERNELS["plain"] else 1.05), seconds

    monkeypatch.setattr(card_check, "_attention_by", spoilt)
    assert "The attention kernel flash computes wrong numbers" in attention(CPU, SMALL).advice


def test_a_card_with_plain_attention_only_is_told_what_to_set(monkeypatch):
    def plain_only(backend, *inputs):
        if backend is not card_check.KERNELS["plain"]:
            raise RuntimeError("No available kernel.")
        return KERNEL(backend, *inputs)

    monkeypatch.setattr(card_check, "_attention_by", plain_only)
    assert "gradient_checkpointing = true" in attention(CPU, SMALL).advice


@pytest.mark.parametrize(
    ("speeds", "advice"),
    [
        ({torch.float32: 10e12, torch.bfloat16: 100e12, torch.float16: 105e12}, None),
        ({torch.float32: 10e12, torch.bfloat16: 5e12, torch.float16: 60e12}, "fp16 was faster"),
    ],
)
def test_the_precision_that_is_taken_is_compared_with_the_fastest(monkeypatch, speeds, advice):
    monkeypatch.setattr(card_check, "matmul_rate", lambda _, dtype: speeds[dtype])
    native = NativePrecision("bf16", "a card computes bf16 natively")
    monkeypatch.setattr(card_check, "native_precision", lambda _: native)
    outcome = precisions(CPU)
    assert outcome.found.startswith("float32 10, bf16 ")
    assert outcome.found.endswith("TFLOP/s; auto uses bf16")
    assert outcome.advice == "" if advice is None else advice in outcome.advice


def test_float8_is_measured_where_the_card_has_it(monkeypatch):
    """Float8 is not a precision setting, so being fastest leads to no advice."""
    monkeypatch.setattr(card_check, "matmul_rate", lambda *_: 10e12)
    monkeypatch.setattr(card_check, "native_precision", lambda _: NativePrecision("bf16", "it has"))
    assert "float8" not in precisions(CPU).found
    monkeypatch.setattr(card_check, "has_float8", lambda _: True)
    monkeypatch.setattr(card_check, "float8_rate", lambda _: 19e12)
    outcome = precisions(CPU)
    assert outcome.found == "float32 10, bf16 10, fp16 10, float8 19 TFLOP/s; auto uses bf16"
    assert outcome.advice == ""


@pytest.mark.parametrize(
    ("measured", "advice"), [(9, ""), (11, ""), (13, "Runs use 30 % more memory here")]
)
def test_memory_that_was_not_foreseen_is_said(measured, advice):
    outcome = compared(10 << 30, measured << 30)
    assert outcome.found == f"10.0 GiB of tensors predicted, {measured}.0 GiB measured"
    assert outcome.advice.startswith(advice)
    assert bool(outcome.advice) == bool(advice)


def test_a_check_that_fails_says_so_and_the_others_go_on(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("CUDA error: misaligned address\nCompile with ...")

    def refused(*_):
        raise ConfigError("The card is too old.")

    monkeypatch.setattr(card_check, "precisions", broken)
    monkeypatch.setattr(card_check, "attention", lambda _: attention(CPU, SMALL))
    for name in ("train", "survey"):
        monkeypatch.setattr(card_check, name, refused)
    found = dict(check_gpu(CPU, tmp_path, SilentProgress()))
    assert list(found) == ["Precisions", "Attention", "Resume", "Compile", "Memory"]
    assert found["Precisions"].advice == "It failed with: CUDA error: misaligned address"
    assert found["Attention"].advice == ""
    assert found["Resume"].advice == "The card is too old."
    assert found["Compile"].advice == "The card is too old."


@pytest.mark.parametrize(
    ("compiled", "words"), [([1.001, 0.9], "losses within 0.1 %"), ([1.2, 0.9], "20.0 % off")]
)
def test_compiled_losses_are_compared(monkeypatch, tmp_path, compiled, words):
    def train(config, events):
        losses = [1.0, 0.9] if config.training.compile == "off" else compiled
        for loss in losses:
            events.measured({"loss": loss})
        return SimpleNamespace()

    monkeypatch.setattr(card_check, "train", train)
    outcome = card_check._Runs(CPU, tmp_path).compiles()
    assert words in outcome.found
    assert bool(outcome.advice) == ("off" in words)


def test_a_card_that_cannot_compile_is_told_why(monkeypatch, tmp_path):
    def train(config, events):
        if config.training.compile != "off":
            raise MissingDependencyError("There is no C compiler.")

    monkeypatch.setattr(card_check, "train", train)
    outcome = card_check._Runs(CPU, tmp_path).compiles()
    assert outcome == card_check.CheckResult("not possible here", "There is no C compiler.")


@pytest.mark.parametrize(("off", "words"), [(0.0, "bit for bit"), (0.25, "differ by up to 0.25")])
def test_weights_of_a_resumed_run_are_compared(monkeypatch, tmp_path, off, words):
    def train(config, events=None):
        if events is not None:
            events.stepped(3)
        return torch.zeros(2)

    monkeypatch.setattr(card_check, "train", train)
    monkeypatch.setattr(card_check, "resume", lambda *_: torch.full((2,), off))
    monkeypatch.setattr(card_check, "_weights_of", lambda weights: {"unet.w": weights})
    outcome = card_check._Runs(CPU, tmp_path).resumes()
    assert words in outcome.found
    assert bool(outcome.advice) == (off > 0)


@pytest.mark.slow
def test_a_run_is_ended_and_resumed(tmp_path):
    outcome = card_check._Runs(CPU, tmp_path).resumes()
    assert outcome.found == "the same weights, bit for bit, with training.deterministic"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message for a machine without a GPU")
def test_without_a_card_there_is_nothing_to_try():
    result = impasto("doctor", "--gpu")
    assert result.returncode == MissingDependencyError.exit_code
    assert "There is no GPU to test." in result.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA card here")
def test_this_card():
    result = impasto("doctor", "--gpu")
    for name in ("Precisions", "Attention", "Resume", "Compile", "Memory"):
        assert name in result.stdout
    assert "did not complete" not in result.stdout
