"""The trainer's components, each against its definition."""

import math
import platform
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from impasto.checkpoints.tensors import LazyTensor
from impasto.config.optimizer import OptimizerConfig
from impasto.config.schedule import OPTION_USERS, ScheduleConfig
from impasto.errors import RunError
from impasto.models.trainable import TrainedModule
from impasto.runs import RunDirectory
from impasto.step_rules import counted
from impasto.training import trainer
from impasto.training.builders.lr_schedule import build_lr_schedule
from impasto.training.events import SilentEvents
from impasto.training.monitoring.frozen_check import FrozenCheck
from impasto.training.monitoring.metrics import MetricsCollector, MetricsWindow
from impasto.training.monitoring.vram_overflow import VramOverflowWatch, watch_for_overflow
from impasto.training.optim.ema import EmaWeights
from impasto.training.optim.optimizers import build_optimizer
from impasto.training.optim.state import (
    LrSetter,
    optimizer_scalars,
    optimizer_tensors,
    parameter_names,
    restore_optimizer,
)
from impasto.training.saving.state import TrainingState, load_state, save_state
from impasto.training.step import StepOutput, micro_batch_loss


def settings_of(case) -> ScheduleConfig:
    """Return settings for a recorded call, without options that its kind ignores."""
    given = (case["lr_scheduler_args"] or [""])[0]
    rules = given.partition("=")[2].strip('"')
    kind = case["name"].replace("constant_with_warmup", "constant")
    options = {"warmup_steps": case["lr_warmup_steps"], "kind": kind}
    names = {"num_cycles": "cycles", "power": "power", "timescale": "timescale",
             "min_lr_ratio": "min_lr_ratio", "lr_decay_steps": "decay_steps"}  # fmt: skip
    options |= {ours: case[theirs] for theirs, ours in names.items() if case[theirs] is not None}
    users = {**OPTION_USERS, "rules": set()}
    kept = {k: v for k, v in options.items() if k not in users or kind in users[k]}
    return ScheduleConfig(**kept, **({"rules": rules} if rules else {}))


def test_schedules_equal_the_recorded_rates(golden):
    compared = 0
    for case in golden("lr_schedules.json"):
        if "exception" in case:  # sd-scripts requires another name for a constant rate with warm-up
            assert case["name"] == "constant"
            continue
        factor = build_lr_schedule(settings_of(case), case["base_lr"])
        for step, rate in case["lr_used_at_step_index"].items():
            ours = case["base_lr"] * factor(int(step), case["max_train_steps"])
            assert math.isclose(ours, rate, rel_tol=1e-9, abs_tol=1e-15), (case, step)
            compared += 1
    assert compared > 1000


def test_rex_falls_slowly_and_then_fast():
    factor = build_lr_schedule(ScheduleConfig(kind="rex"), 1.0)
    found = [factor(step, 100) for step in (0, 50, 90, 100)]
    assert found == pytest.approx([1.0, 2 / 3, 0.1 / 0.55, 0.0])


def test_rates_are_a1111s():
    factor = build_lr_schedule(ScheduleConfig(kind="rates", rules="1e-5:3, 5e-6:5, 1e-6"), 1e-5)
    found = [factor(step, 9) * 1e-5 for step in range(7)]
    assert found == pytest.approx([1e-5] * 3 + [5e-6] * 2 + [1e-6] * 2)


@pytest.mark.parametrize(
    ("steps", "updates"), [(7, 7), (7.0, 7), (0.1, 20), ("10%", 20), ("2.5 %", 5), (0, 0)]
)
def test_steps_fractions_and_percentages(steps, updates):
    assert counted(steps, 200) == updates


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "cosine", "power": 2.0}, "power has no effect on the kind cosine"),
        ({"kind": "rates"}, "expected value:step"),
        ({"kind": "rates", "rules": "1e-5:300, 1e-6:100"}, "rising steps"),
        ({"kind": "rates", "rules": "1:3, 2", "warmup_steps": 5}, "warmup_steps has no effect"),
        ({"warmup_steps": "many"}, "is not a number of steps"),
        ({"warmup_steps": 1.5}, "is not a number of steps"),
        ({"warmup_steps": -1}, "is not a number of steps"),
        ({"warmup_steps": "120%"}, "is not a number of steps"),
    ],
)
def test_schedules_that_make_no_sense_are_explained(options, words):
    with pytest.raises(ValidationError, match=words):
        ScheduleConfig(**options)


def small_part() -> TrainedModule:
    torch.manual_seed(0)
    return TrainedModule("unet", nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), 1e-2)


def do_step(part: TrainedModule, optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    part.module(torch.randn((5, 3), generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_restored_optimizer_continues_bit_for_bit():
    whole, part = small_part(), small_part()
    optimizer = build_optimizer([whole], OptimizerConfig())
    for seed in range(4):
        do_step(whole, optimizer, seed)

    first = build_optimizer([part], OptimizerConfig())
    for seed in range(2):
        do_step(part, first, seed)
    names = parameter_names([part])
    tensors = {k: LazyTensor.of(t) for k, t in optimizer_tensors(first, names).items()}
    scalars = optimizer_scalars(first, names)
    second = build_optimizer([part], OptimizerConfig())
    restore_optimizer(second, names, tensors, scalars)
    for seed in range(2, 4):
        do_step(part, second, seed)
    for ours, expected in zip(part.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_an_optimizer_state_of_another_model_is_refused():
    part = small_part()
    optimizer = build_optimizer([part], OptimizerConfig())
    tensors = {"unet.elsewhere.weight:exp_avg": LazyTensor.of(torch.zeros(1))}
    with pytest.raises(RunError, match=r"unet\.elsewhere\.weight"):
        restore_optimizer(
            optimizer, parameter_names([part]), tensors, {"parameters": {}, "groups": [{}]}
        )


def test_rates_keep_their_proportions():
    slow = TrainedModule("text_encoder", nn.Linear(2, 2), 1e-3)
    optimizer = build_optimizer([small_part(), slow], OptimizerConfig())
    setter = LrSetter(optimizer)
    assert setter.set(0.5) == 5e-3
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 5e-4]
    setter.set(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]


def test_the_average_follows_its_recurrence():
    parameter = nn.Parameter(torch.tensor([0.0]))
    average = EmaWeights({"p": parameter}, decay=0.9)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, -3.0, 4.0] * 30):
        parameter.data.fill_(value)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.tensors()["p"].item() == pytest.approx(expected, rel=1e-5)


def test_an_average_of_every_third_update_follows_the_decay_of_three():
    parameter = nn.Parameter(torch.tensor([0.0]))
    average = EmaWeights({"p": parameter}, decay=0.9, every=3)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, -3.0, 4.0, 5.0] * 24):
        parameter.data.fill_(value)
        average.update(step)
        if step % 3 == 2:
            decay = min(0.9, (1 + step) / (10 + step)) ** 3
            expected = decay * expected + (1 - decay) * value
    assert average.tensors()["p"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_arrive_as_they_are(dtype):
    """16-bit weights are copied in 16 bits and widened there: the same values, half the
    transfer."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(300, 300).to(dtype))
    averages = [
        EmaWeights({"w": weight}, 0.9, on_cpu=True, overlapped=overlapped)
        for overlapped in (False, True)
    ]
    for step in range(4):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        for average in averages:
            average.update(step)
    plain, beside = (average.tensors()["w"] for average in averages)
    assert plain.dtype == torch.float32
    assert torch.equal(plain, beside)


def test_the_average_is_exchanged_and_given_back():
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = EmaWeights({"p": parameter}, decay=0.5)
    parameter.data.fill_(3.0)
    with pytest.raises(ValueError, match="in between"), average.swapped_in():
        assert parameter.item() == 1.0
        raise ValueError("in between")
    assert parameter.item() == 3.0


def test_every_sample_of_an_update_counts_the_same():
    losses = torch.arange(7, dtype=torch.float32)
    parts = [micro_batch_loss(chunk, 7, 1) for chunk in losses.split([4, 2, 1])]
    assert sum(parts).item() == pytest.approx(losses.mean().item())


def state_at(step: int) -> TrainingState:
    tensors = {"unet.w": LazyTensor.of(torch.full((2,), float(step)))}
    return TrainingState(step, step * 4, {"dataset": "a"}, tensors, tensors, {}, {})


def test_states_are_kept_and_removed(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (2, 4, 6):
        save_state(run, state_at(step), keep=2)
    assert run.saved_steps() == [4, 6]
    loaded = load_state(run.states / "step-00000006", {"dataset": "a"})
    assert loaded.step == 6
    assert loaded.samples_seen == 24
    assert torch.equal(loaded.weights["unet.w"].read(), torch.full((2,), 6.0))


def test_a_state_of_another_run_is_refused_with_the_difference(tmp_path):
    run = RunDirectory(tmp_path)
    path = save_state(run, state_at(2), keep=1)
    with pytest.raises(RunError, match=r"dataset \(was a, is b\)"):
        load_state(path, {"dataset": "b"})


@pytest.mark.parametrize("file", ["state.json", "weights.safetensors", "optimizer.safetensors"])
def test_a_damaged_state_is_explained(tmp_path, file):
    run = RunDirectory(tmp_path)
    path = save_state(run, state_at(2), keep=1)
    (path / file).write_bytes((path / file).read_bytes()[:-20])
    with pytest.raises(RunError, match="damaged"):
        load_state(path, {"dataset": "a"})


def test_a_newer_state_is_refused(tmp_path):
    run = RunDirectory(tmp_path)
    path = save_state(run, state_at(2), keep=1)
    text = (path / "state.json").read_text(encoding="utf-8")
    (path / "state.json").write_text(
        text.replace('"format_version": 1', '"format_version": 2'), encoding="utf-8"
    )
    with pytest.raises(RunError, match="newer version of Impasto"):
        load_state(path, {"dataset": "a"})


@pytest.mark.parametrize("power", [None, 0.75])
def test_an_average_in_memory_is_the_average_on_the_device(power):
    part = small_part()
    parameters = part.parameters()
    near = EmaWeights(parameters, 0.9, power=power)
    far = EmaWeights(parameters, 0.9, power=power, on_cpu=True)
    optimizer = build_optimizer([part], OptimizerConfig(lr=1e-2))
    expected = {name: p.detach().double().clone() for name, p in parameters.items()}
    for step in range(6):
        do_step(part, optimizer, step)
        near.update(step)
        far.update(step)
        rising = (1 + step) / (10 + step) if power is None else 1 - (1 + step) ** -power
        decay = min(0.9, rising)
        for name, parameter in parameters.items():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    for name, average in near.tensors().items():
        torch.testing.assert_close(average.double(), expected[name], atol=1e-6, rtol=1e-5)
        assert torch.equal(average, far.tensors()[name])
    trained = {name: p.detach().clone() for name, p in parameters.items()}
    with far.swapped_in():
        shown = {name: p.detach().clone() for name, p in parameters.items()}
    assert all(torch.equal(shown[name], near.tensors()[name]) for name in shown)
    assert all(torch.equal(parameters[name], trained[name]) for name in trained)
    assert all(torch.equal(far.tensors()[name], near.tensors()[name]) for name in shown)


def test_what_does_not_move_though_it_should_is_said():
    learning, still, frozen = small_part(), small_part(), nn.Linear(2, 2)
    frozen.requires_grad_(requires_grad=False)
    still = TrainedModule("text_encoder", still.module, 1e-2)
    check = FrozenCheck([learning, still], {"VAE": frozen})
    optimizer = build_optimizer([learning], OptimizerConfig(lr=1e-2))
    do_step(learning, optimizer, 0)
    assert check.findings(["unet"]) == []
    (finding,) = check.findings(["unet", "text_encoder"])
    assert "The text_encoder did not change" in finding
    frozen.weight.data.add_(1)
    assert "The VAE changed" in check.findings(["unet"])[0]


@pytest.mark.parametrize("power", [None, 0.75])
def test_an_average_that_is_taken_in_beside_training_is_the_same(power):
    def trained(*, overlapped):
        torch.manual_seed(0)
        weights = {"a": nn.Parameter(torch.randn(300, 300)), "b": nn.Parameter(torch.randn(9))}
        average = EmaWeights(weights, 0.9, power=power, on_cpu=True, overlapped=overlapped)
        for step in range(5):
            average.wait_for_copies()
            with torch.no_grad():
                for weight in weights.values():
                    weight.add_(torch.randn_like(weight))
            average.update(step)
        return average.tensors()

    plain, beside = trained(overlapped=False), trained(overlapped=True)
    for name, tensor in plain.items():
        assert torch.equal(tensor, beside[name])


def test_a_full_gpu_that_becomes_slow_is_said_once():
    watch = VramOverflowWatch(total_bytes=12 << 30)
    assert watch.look(4.0, 0.0, 11 << 30) is None  # the first interval, not full
    assert watch.look(1.0, 0.0, 11 << 30) is None  # slow for another reason
    said = watch.look(1.0, 0.0, int(11.6 * 2**30))
    assert said is not None
    assert "11.6 of 12.0 GiB" in said
    assert watch.look(0.1, 0.0, int(11.9 * 2**30)) is None


def test_a_full_gpu_that_stays_fast_is_no_fault():
    watch = VramOverflowWatch(total_bytes=12 << 30)
    rates = (4.0, 3.5, 2.0, 4.2)
    assert [watch.look(rate, 0.0, int(11.9 * 2**30)) for rate in rates] == [None] * 4


def test_a_full_gpu_that_waits_for_data_is_no_fault():
    """A full GPU that waits for data, and an interval without an image, cause no warning."""
    watch, full = VramOverflowWatch(total_bytes=12 << 30), int(11.9 * 2**30)
    assert watch.look(4.0, 0.0, full) is None
    assert watch.look(0.4, 0.9, full) is None
    assert watch.look(0.0, 0.0, full) is None
    assert watch.look(0.1, 1.0, full) is None
    assert watch.look(1.0, 0.1, full) is not None


def test_data_that_comes_sooner_is_no_fault():
    """A GPU computes while data is awaited: its time then is unknown."""
    watch, full = VramOverflowWatch(total_bytes=12 << 30), int(11.9 * 2**30)
    assert watch.look(3.5, 0.9, full) is None
    assert watch.look(4.0, 0.0, full) is None


def test_more_than_the_gpu_has_is_said_at_once():
    assert VramOverflowWatch(total_bytes=8 << 30).look(2.0, 0.0, 9 << 30) is not None


@pytest.mark.parametrize(
    ("system", "release", "watched"),
    [
        ("Windows", "10", True),
        ("Linux", "5.15.167.4-microsoft-standard-WSL2", True),
        ("Linux", "4.4.0-19041-Microsoft", True),
        ("Linux", "6.8.0-45-generic", False),
    ],
)
def test_vram_is_watched_where_it_overflows(system, release, watched, monkeypatch):
    """Elsewhere a full GPU ends the run, and a slow one is slow for another reason."""
    properties = SimpleNamespace(total_memory=12 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert (watch_for_overflow(torch.device("cuda")) is not None) == watched
    assert watch_for_overflow(torch.device("cpu")) is None


def test_only_the_first_of_several_processes_speaks():
    class Speaking(SilentEvents):
        """A listener that records messages."""

    told = Speaking()
    assert trainer._spoken_by(SimpleNamespace(is_main_process=True), told) is told
    assert type(trainer._spoken_by(SimpleNamespace(is_main_process=False), told)) is SilentEvents


@pytest.mark.parametrize("is_main", [True, False])
def test_several_processes_count_what_one_was_stopped_with_once(is_main):
    """Losses by timesteps are summed over processes, so only one of them restores the window."""
    each = SimpleNamespace(
        is_main_process=is_main, num_processes=2, device=torch.device("cpu"),
        reduce=lambda values, how: values,
    )  # fmt: skip
    collector = MetricsCollector(each, num_timesteps=1000)
    collector.resume(MetricsWindow([0.5], [], [[3.0, 2.0], *[[0.0, 0.0]] * 3]))
    summary = collector.read()
    assert summary.losses.tolist() == [0.5]
    assert summary.by_range == ({"loss_t0_249": 1.5} if is_main else {})


@pytest.mark.parametrize(
    ("norms", "mean"),
    [([1.0, math.nan, 3.0], 2.0), ([math.inf, 4.0], 4.0), ([math.nan], None), ([], None)],
)
def test_steps_that_were_passed_over_do_not_spoil_the_norm_of_others(norms, mean):
    """Steps skipped after an increase of fp16's loss scale have no finite norm."""
    alone = SimpleNamespace(is_main_process=True, num_processes=1, device=torch.device("cpu"))
    collector = MetricsCollector(alone, num_timesteps=1000)
    collector.resume(MetricsWindow([0.5], norms, [[0.0, 0.0]] * 4))
    assert collector.read().grad_norm == mean


def test_steps_that_were_not_applied_are_left_out_of_what_a_state_keeps():
    """A GPU skips all steps after a fault, and out of memory can end a run at any point."""
    alone = SimpleNamespace(is_main_process=True, num_processes=1, device=torch.device("cpu"))
    collector = MetricsCollector(alone, num_timesteps=1000)
    collector.resume(MetricsWindow([0.5], [2.0], [[0.5, 1.0], *[[0.0, 0.0]] * 3]))
    for done, loss in ((4, 0.25), (5, math.nan), (6, 0.125)):
        collector.add_samples(StepOutput(torch.full((1,), loss), torch.tensor([9]), torch.ones(1)))
        norm = None if done == 4 else torch.tensor(loss)
        collector.add(done, torch.tensor(loss), norm, 1)
    collector.add_samples(StepOutput(torch.ones(1), torch.tensor([9]), torch.ones(1)))
    cut = collector.window(4)
    assert cut == MetricsWindow([0.5, 0.25], [2.0], [[0.75, 2.0], *[[0.0, 0.0]] * 3])
    assert len(collector.window(6).losses) == 4
    collector.restart()
    assert collector.window(6) is None
