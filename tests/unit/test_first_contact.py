"""Checks before a run starts: an idle GPU, an old one, a missing compiler or Triton."""

import importlib.util
import os
import subprocess

import pytest
import torch

from impasto.errors import ConfigError, MissingDependencyError
from impasto.training.lifecycle import preflight

CARD = "NVIDIA GeForce RTX 3060"
CUDA = torch.device("cuda")


@pytest.fixture
def smi(monkeypatch):
    """An nvidia-smi that reports a GPU."""
    answer = subprocess.CompletedProcess([], 0, f"{CARD}\n", "")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: answer)
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return monkeypatch


def test_no_full_size_run_begins_beside_an_idle_card(smi, train_config):
    smi.setattr(preflight, "FULL_SIZE", 1)
    with pytest.raises(MissingDependencyError) as caught:
        preflight.require_no_idle_card(train_config())
    for words in (CARD, "CPU build" if torch.version.cuda is None else "driver", "DEVICES to -1"):
        assert words in str(caught.value)


def test_small_models_train_beside_a_card(smi, train_config):
    preflight.require_no_idle_card(train_config())


@pytest.mark.parametrize(
    ("name", "value"),
    [("CUDA_VISIBLE_DEVICES", "-1"), ("CUDA_VISIBLE_DEVICES", ""), ("ACCELERATE_USE_CPU", "true")],
)
def test_a_cpu_that_is_wanted_is_taken(smi, train_config, name, value):
    smi.setattr(preflight, "FULL_SIZE", 1)
    smi.setenv(name, value)
    preflight.require_no_idle_card(train_config())


@pytest.mark.parametrize(
    ("visible", "is_of_none"),
    [("1", True), ("99,0", True), ("0", False), ("0,99", False), ("GPU-1a2b", False)],
)
def test_a_number_of_no_gpu_is_named(smi, visible, is_of_none):
    smi.setattr("torch.version.cuda", "13.0")
    smi.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert preflight.unused_gpu() == CARD
    reason = preflight.why_gpu_unused()
    expected = f"CUDA_VISIBLE_DEVICES is {visible!r}, and the driver finds 1 GPU, counted from 0"
    assert (expected in reason) == is_of_none
    assert ("driver does not support" in reason) != is_of_none


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A GPU, Triton, a compiler and headers, all valid."""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: CARD)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (8, 6))
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_75", "sm_86", "compute_120"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    return monkeypatch


def test_all_is_well_with_all_of_it(card):
    preflight.require_triton(CUDA)
    preflight.require_kernels(CUDA)


def test_a_card_older_than_all_kernels_is_named(card):
    card.setattr("torch.cuda.get_device_capability", lambda *_: (6, 1))
    with pytest.raises(MissingDependencyError, match=r"6\.1, and this build .* begins at 7\.5"):
        preflight.require_kernels(CUDA)


def test_a_card_that_triton_has_nothing_for_is_named(card):
    card.setattr("torch.cuda.get_device_capability", lambda *_: (6, 1))
    with pytest.raises(ConfigError, match=r'has 6\.1\. Set training.compile to "off"'):
        preflight.require_triton(CUDA)


def test_missing_triton_is_named(card):
    card.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else object())
    with pytest.raises(MissingDependencyError, match="needs Triton on a GPU"):
        preflight.require_triton(CUDA)


@pytest.mark.skipif(os.name == "nt", reason="Triton for Windows brings a compiler along")
@pytest.mark.parametrize("asked", [None, "icx"])
def test_a_missing_compiler_is_named(card, asked):
    card.setattr("shutil.which", lambda _: None)
    if asked:
        card.setenv("CC", asked)
    with pytest.raises(MissingDependencyError, match="needs a C compiler for Triton"):
        preflight.require_triton(CUDA)


@pytest.mark.skipif(os.name == "nt", reason="Triton for Windows brings headers along")
def test_missing_headers_are_named(card, tmp_path):
    (tmp_path / "Python.h").unlink()
    with pytest.raises(MissingDependencyError, match=r"Python\.h is missing.*-dev"):
        preflight.require_triton(CUDA)
