"""The precision in which a device is fast: measured, chosen, reported, and offered only there."""

import threading
from functools import partial

import pytest
import torch
from flat_models import bare_architecture

from impasto.cli.console import Console
from impasto.cli.heartbeat import SlowStepNotifier
from impasto.cli.plan import show_plan
from impasto.config.load import build_run_config
from impasto.config.setting_files import read_toml
from impasto.data.loading.sampler import Group
from impasto.data.records import Size
from impasto.errors import ConfigError
from impasto.models.writing.architectures import meta_model_of_architecture
from impasto.progress import SilentProgress
from impasto.training.compute import precision as module
from impasto.training.compute.precision import (
    NativePrecision,
    computed_kind,
    least_seconds,
    native_precision,
    resolve_precision,
    slowdown,
)
from impasto.training.planning.fitter import MemoryFitter
from impasto.training.planning.levers import LADDER
from impasto.training.planning.memory import FootprintPredictor
from impasto.training.trainer import train

CPU = torch.device("cpu")
FAST = NativePrecision("bf16", "this CPU has bf16")
SLOW = NativePrecision("no", "this CPU has no bf16")


class Notes(SilentProgress):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


@pytest.fixture
def on(monkeypatch):
    """Simulate a CPU that is fast in one precision, and 31 times slower in the others."""

    def pretend(native):
        monkeypatch.setattr(module, "default_device", lambda: CPU)
        monkeypatch.setattr(module, "native_precision", lambda: native)
        monkeypatch.setattr(module, "slowdown", lambda _: 31.0)

    return pretend


@pytest.mark.parametrize(
    ("capabilities", "kind", "words"),
    [
        ({"avx2": True, "avx512_bf16": False, "cpu_name": "AMD EPYC"}, "no", "AMD EPYC has no"),
        ({"avx512_bf16": True, "cpu_name": "Zen 4"}, "bf16", "AVX-512"),
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16", "AMX"),
        ({"neon": True}, "no", "this CPU has no"),
    ],
)
def test_a_cpu_is_judged_by_its_instructions(capabilities, kind, words, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    found = native_precision(CPU)
    assert found.kind == kind
    assert words in found.reason


@pytest.mark.parametrize(("native", "kind"), [(True, "bf16"), (False, "fp16")])
def test_emulated_bf16_of_an_older_gpu_does_not_count(native, kind, monkeypatch):
    def is_supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    found = native_precision(torch.device("cuda"))
    assert found.kind == kind
    assert "Tesla T4" in found.reason


@pytest.mark.parametrize("native", [FAST, SLOW])
def test_auto_becomes_what_the_device_is_fast_in_and_says_why(native, on, train_config):
    on(native)
    notes = Notes()
    config = resolve_precision(train_config(training={"mixed_precision": "auto"}), notes)
    assert config.training.mixed_precision == native.kind
    assert len(notes.lines) == 1
    assert native.reason in notes.lines[0]


def test_what_was_asked_for_is_kept_with_a_warning(on, train_config):
    on(SLOW)
    for kind, count in (("bf16", 1), ("fp16", 1), ("no", 0)):
        notes = Notes()
        config = train_config(training={"mixed_precision": kind})
        assert resolve_precision(config, notes) == config
        assert len(notes.lines) == count
        assert all("31 times as long" in line for line in notes.lines)
    on(FAST)
    notes = Notes()
    resolve_precision(train_config(training={"mixed_precision": "bf16"}), notes)
    assert notes.lines == []


def test_a_vae_in_16_bits_is_warned_of_too(on, train_config):
    on(SLOW)
    notes = Notes()
    resolve_precision(train_config(dataset={"vae_precision": "bf16"}), notes)
    assert len(notes.lines) == 1
    assert "31 times as long" in notes.lines[0]
    assert "dataset.vae_precision" in notes.lines[0]


def test_weights_in_16_bits_are_computed_in_their_type(on, train_config):
    on(SLOW)
    notes = Notes()
    config = train_config(training={"mixed_precision": "auto", "weight_dtype": "bf16"})
    assert computed_kind(config) == "bf16"
    assert resolve_precision(config, notes).training.mixed_precision == "bf16"
    assert "training.weight_dtype is bf16" in notes.lines[0]
    assert "31 times as long" in notes.lines[1]
    with pytest.raises(ConfigError, match="weight_dtype bf16 needs mixed_precision bf16"):
        train_config(training={"mixed_precision": "no", "weight_dtype": "bf16"})


@pytest.mark.parametrize("half", ["bf16", "fp16", "no"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_ladder_offers_no_type_that_the_device_is_slow_in(
    device, half, train_config, nano_architecture
):
    meta_model = partial(meta_model_of_architecture, bare_architecture(nano_architecture))
    meter = FootprintPredictor(meta_model, device)
    fitting = MemoryFitter(meter, device, Group(0, Size(128, 128)), 0, half=half)
    chosen, _ = fitting.choose_levers(train_config(), keep_asked=False)
    assert chosen.training.mixed_precision in ("no", half)
    assert {rung.half for rung in fitting.ladder} <= {None, half}
    if half != "no":
        assert {rung.half for rung in LADDER["cuda"]} > {half}


def test_a_run_keeps_what_auto_became(train_config, capsys, fresh_accelerate):
    config = train_config(training={"mixed_precision": "auto", "max_steps": 1})
    native = native_precision(CPU)
    for work in (show_plan, train):
        work(config, Console())
        assert native.reason in " ".join(capsys.readouterr().out.split())
    kept = build_run_config(read_toml(config.output_dir / "config.toml"), source="kept")
    assert kept.training.mixed_precision == native.kind


def test_a_slowdown_is_a_ratio():
    assert slowdown(torch.bfloat16) > 0


def test_what_takes_long_is_tried_once():
    calls = []
    least_seconds(lambda: calls.append(1), tries=5, patience_s=0)
    assert len(calls) == 2  # one to warm up
    calls.clear()
    least_seconds(lambda: calls.append(1), tries=5, patience_s=3600)
    assert len(calls) == 6


def test_a_long_first_update_shows_that_it_is_at_work():
    told, lines = threading.Event(), []

    def say(line):
        lines.append(line)
        told.set()

    heartbeat = SlowStepNotifier(say, total=10, first_s=0.01)
    heartbeat.start(0)
    assert told.wait(60)
    heartbeat.stop()
    count = len(lines)
    assert lines[0].startswith("step 1/10: running for")
    heartbeat.stop()
    assert len(lines) == count


def test_nothing_is_said_beside_other_work_or_after_the_last_update():
    told, lines = threading.Event(), []

    def say(line):
        lines.append(line)
        told.set()

    heartbeat = SlowStepNotifier(say, total=10, first_s=0.01)
    heartbeat.start(10)
    assert not told.wait(0.1)
    heartbeat.stepped(3)
    assert told.wait(60)
    heartbeat.pause()
    told.clear()
    assert not told.wait(0.1)
    heartbeat.go_on()
    assert told.wait(60)
    heartbeat.stop()
    assert all(line.startswith("step 4/10") for line in lines)
