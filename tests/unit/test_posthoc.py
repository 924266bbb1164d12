"""Post-hoc averages as numbers: profiles, their products, and how they are mixed."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from impasto.checkpoints.tensors import LazyTensor
from impasto.config.output import SavingConfig
from impasto.errors import RunError, StorageError
from impasto.runs import RunDirectory
from impasto.training.optim.ema import EmaWeights
from impasto.training.optim.posthoc import (
    TRACKED,
    Profile,
    _inner_products,
    fit,
    gamma_of,
    power_decay,
)
from impasto.training.planning import disk
from impasto.training.saving.averages import named, read_snapshots, write_snapshot


def profile_of(step, sigma_rel, length):
    """Return the weights of all steps: the power function, integrated over each step."""
    exponent = gamma_of(sigma_rel) + 1
    i = np.arange(1, length + 1.0)
    return np.where(i <= step, i**exponent - (i - 1) ** exponent, 0) / step**exponent


def track(sigma_rel, weights, every=1, at=None):
    """Return the average that a run would store of these weights, one number per step."""
    parameter = nn.Parameter(torch.zeros(1))
    average = EmaWeights({"w": parameter}, power_decay(sigma_rel, every), every=every)
    for step, weight in enumerate(weights[:at]):
        with torch.no_grad():
            parameter.fill_(weight)
        average.update(step)
    return float(average.tensors()["w"])


def test_exponents_are_those_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)
    for sigma_rel in (0.01, 0.15, 0.28):
        gamma = gamma_of(sigma_rel)
        spread = (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)  # eq. 7
        assert spread == pytest.approx(sigma_rel)


@pytest.mark.parametrize("every", [1, 5])
def test_what_is_tracked_has_the_profile(every):
    weights = torch.randn(60, generator=torch.Generator().manual_seed(1)).tolist()
    taken = np.repeat(weights[every - 1 :: every], every)  # the same until the next one is stored
    wanted = float(profile_of(60, 0.1, 60) @ taken)
    assert track(0.1, weights, every) == pytest.approx(wanted, abs=1e-6)


def test_products_are_those_of_the_functions():
    one, other = Profile(30, 0.05), Profile(50, 0.2)
    t = np.linspace(0, 30, 200_001)
    a, b = gamma_of(0.05), gamma_of(0.2)
    values = (a + 1) * t**a / 30 ** (a + 1) * (b + 1) * t**b / 50 ** (b + 1)
    wanted = np.trapezoid(values, t)
    assert _inner_products([one], [other])[0, 0] == pytest.approx(wanted, rel=1e-6)
    assert _inner_products([other], [one])[0, 0] == pytest.approx(wanted, rel=1e-6)


def test_the_average_of_another_length_is_nearly_that_of_a_run_that_kept_it():
    """With 8 stored averages the errors are those that the fit predicts, and small if it says
    so."""
    length, times = 800, 8
    steps = [length * (k + 1) // times for k in range(times)]
    known = [Profile(step, sigma_rel) for step in steps for sigma_rel in TRACKED]
    generator = torch.Generator().manual_seed(2)
    weights = torch.cumsum(torch.randn(length, generator=generator), 0).tolist()
    stored = [track(p.sigma_rel, weights, at=p.step) for p in known]
    for sigma_rel, largest in ((0.075, 0.02), (0.15, 0.04), (0.2, 0.1)):
        found = fit(known, Profile(length, sigma_rel))
        assert sum(found.coefficients) == pytest.approx(1)
        profiles = [profile_of(k.step, k.sigma_rel, length) for k in known]
        mixed = sum(s * p for s, p in zip(found.coefficients, profiles, strict=True))
        wanted = profile_of(length, sigma_rel, length)
        error = np.linalg.norm(mixed - wanted) / np.linalg.norm(wanted)
        assert found.error == pytest.approx(error, rel=0.1)
        assert error < largest
        value = sum(s * v for s, v in zip(found.coefficients, stored, strict=True))
        direct = track(sigma_rel, weights)
        assert abs(value - direct) < 0.05 * np.std(weights)


def test_what_was_tracked_is_found_again():
    known = [Profile(step, sigma_rel) for step in (10, 20, 30) for sigma_rel in TRACKED]
    found = fit(known, Profile(20, 0.10))
    assert found.error < 1e-6
    assert found.coefficients == pytest.approx([0, 0, 0, 1, 0, 0], abs=1e-6)


@pytest.mark.parametrize("odd", [1, 2, 3])
def test_the_file_that_is_of_other_weights_is_named(tmp_path, odd):
    """Any file may differ; if the last one does, the first that differs from it is reported."""
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        own = {"unet.w": LazyTensor.of(torch.zeros(2 if step == odd else 3))}
        tensors = {n: t for sigma_rel in TRACKED for n, t in named(sigma_rel, own).items()}
        write_snapshot(run, step, tensors)
    blamed = {1: 1, 2: 2, 3: 1}[odd]
    with pytest.raises(RunError, match=rf"step-0000000{blamed}\..*after 3 steps"):
        read_snapshots(run, 3)


def test_averages_that_will_be_set_aside_are_no_room_for_a_run(tmp_path, monkeypatch):
    """A resumed run overwrites them; a new run in their directory does not."""
    config = SimpleNamespace(output_dir=tmp_path, saving=SavingConfig())
    plan = disk.DiskPlan(state_bytes=0, states=0, model_bytes=0, models=0)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 0)
    (tmp_path / "averages").mkdir()
    with (tmp_path / "averages" / "step-00000002.safetensors").open("wb") as file:
        file.truncate(plan.run_bytes)
    with pytest.raises(StorageError, match="The run was not started"):
        disk.require_room(plan, config)
    (tmp_path / "states" / "step-00000001").mkdir(parents=True)
    disk.require_room(plan, config)


def test_states_are_no_room_for_models_on_another_disk(tmp_path, monkeypatch):
    """Each disk needs space for its own files, less what the run has already written there."""
    run, models = tmp_path / "run", tmp_path / "models"
    config = SimpleNamespace(output_dir=run, saving=SavingConfig(model_dir=models))
    plan = disk.DiskPlan(state_bytes=0, states=0, model_bytes=4 << 20, models=1)
    state, model = run / "states" / "step-00000001" / "weights.safetensors", models / "my.pt"
    for file, size in ((state, plan.run_bytes), (model, plan.models_bytes)):
        file.parent.mkdir(parents=True)
        with file.open("wb") as opened:
            opened.truncate(size)
    real = Path.stat

    def stat(path, **options):
        facts = real(path, **options)
        other = models == path or models in path.parents
        return os.stat_result((*facts[:2], 1 if other else 0, *facts[3:]))

    monkeypatch.setattr(disk, "free_bytes", lambda _: 0)
    monkeypatch.setattr(Path, "stat", stat)
    advice = r"models has 0\.00 GiB free.*some space, or choose another saving\.model_dir\."
    with pytest.raises(StorageError, match=advice):
        disk.require_room(plan, config)
    disk.require_room(plan, config, [model])


@pytest.mark.parametrize(
    ("saving", "advice"),
    [
        ({}, "saving.keep_states"),
        ({"model_every_steps": 2}, "saving.keep_states, saving.keep_models"),
        (
            {"model_every_steps": 2, "keep_step_models": 3},
            "saving.keep_states, saving.keep_step_models",
        ),
        (
            {"model_every_steps": 2, "model_every_epochs": 1, "keep_epoch_models": 3},
            "saving.keep_states, saving.keep_models, saving.keep_epoch_models",
        ),
        (
            {"model_every_steps": 2, "model_every_epochs": 1, "keep_models": 3},
            "saving.keep_states, saving.keep_models",
        ),
    ],
)
def test_what_fills_a_disk_is_named_by_its_setting(saving, advice, tmp_path, monkeypatch):
    config = SimpleNamespace(output_dir=tmp_path, saving=SavingConfig(**saving))
    plan = disk.DiskPlan(state_bytes=1 << 20, states=2, model_bytes=1 << 20, models=9)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 0)
    with pytest.raises(StorageError) as caught:
        disk.require_room(plan, config)
    assert f"keep less ({advice}), or choose another output_dir." in str(caught.value)
