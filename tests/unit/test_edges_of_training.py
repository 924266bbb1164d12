"""Edge cases of training: trackers, foreign sizes, huge captions, memory, Ctrl-C."""

import re
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from impasto.checkpoints.modelspec import RESOLUTION
from impasto.config.load import build_run_config
from impasto.data.scanning.scan import scan_folder
from impasto.errors import ConfigError, DatasetError, ImpastoError
from impasto.models.families import SD1
from impasto.models.reading.native_size import native_size
from impasto.models.reading.recorded import trained_resolution
from impasto.publishing import redact_settings
from impasto.runs import RunDirectory
from impasto.training.monitoring.recorder import Recorder
from impasto.training.monitoring.trackers import TrackedRun, open_trackers, require_trackers
from impasto.training.optim.trial import require_steps
from impasto.training.planning.out_of_memory import out_of_memory
from impasto.training.signals import StoppedBySignal, StopRequest


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the wandb package, which records the arguments of its start."""
    package = SimpleNamespace(given={}, error=None, Settings=dict)

    def init(**given):
        if package.error is not None:
            raise package.error
        package.given = given
        return SimpleNamespace(id="abc", finish=lambda: None)

    package.init = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


@pytest.mark.parametrize("publish", [[], ["paths"], ["paths", "prompts"]])
def test_trackers_are_told_what_may_be_published(wandb, tmp_path, publish):
    settings = {
        "output_dir": str(tmp_path), "model": {"path": "/home/Jane Doe/m.safetensors"},
        "dataset": {"image_dir": "/home/Jane Doe/pics"}, "training": {"max_steps": 2},
        "previews": {"prompts": ["Jane at home"]}, "logging": {"trackers": ["wandb"]},
        "saving": {"publish": publish},
    }  # fmt: skip
    config = build_run_config(settings, source="test")
    session = SimpleNamespace(
        config=config, accelerator=SimpleNamespace(is_main_process=True, num_processes=1)
    )
    recorder = Recorder.__new__(Recorder)
    recorder.image_losses, recorder._is_main = None, True
    recorder._run, recorder._of = RunDirectory(tmp_path), session
    recorder.open(0)
    told = wandb.given["config"]
    assert told == redact_settings(config.model_dump(mode="json", exclude_none=True), publish)
    assert ("Jane Doe" in str(told)) is bool(publish)
    assert (wandb.given["project"], wandb.given["name"]) == ("impasto", tmp_path.name)
    assert ("at home" in str(told)) is ("prompts" in publish)
    assert (wandb.given["settings"]["console"] == "off") is ("prompts" not in publish)


def test_a_tracker_that_cannot_be_started_is_named(wandb, tmp_path):
    tracked = TrackedRun(RunDirectory(tmp_path), "a run", "drawings", {})
    wandb.error = ValueError("api_key not configured (no-tty)")
    with pytest.raises(ConfigError, match=r"api_key not configured.*WANDB_MODE=offline"):
        open_trackers(("wandb",), tracked)
    wandb.error = None
    (tmp_path / "wandb-id.txt").write_bytes(b"")
    open_trackers(("wandb",), tracked)
    assert wandb.given["id"] is None
    assert (wandb.given["project"], wandb.given["name"]) == ("drawings", "a run")


@pytest.mark.parametrize("mode", ["online", "shared", "offline", "disabled"])
def test_a_run_and_its_plan_need_a_login_of_a_tracker_that_sends(monkeypatch, mode):
    class RefusalError(Exception):
        pass

    asked, answers = [], [False, RefusalError("WANDB_API_KEY invalid: has 3 characters."), True]

    def login(**given):
        asked.append(given)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    settings = SimpleNamespace(mode=mode)
    package = SimpleNamespace(
        setup=lambda: SimpleNamespace(settings=settings), login=login, Error=RefusalError
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delenv("RANK", raising=False)
    if mode in ("offline", "disabled"):
        require_trackers(("wandb",))
        assert not asked
        return
    with pytest.raises(ConfigError, match=r"no login is stored.*`wandb login`.*WANDB_MODE=offline"):
        require_trackers(("wandb",))
    with pytest.raises(ConfigError, match=r"has 3 characters\. Log in with"):
        require_trackers(("wandb",))
    require_trackers(("wandb",))
    assert asked == [{"prompt": False, "verify": False}] * 3  # no question, no network
    monkeypatch.setenv("RANK", "1")
    require_trackers(("wandb",))
    assert len(asked) == 3, "only the first process logs"


@pytest.mark.parametrize(
    ("stated", "sample_size", "expected"),
    [
        ("640x384", 64, (640, 384)),
        (" 768 ", 64, (768, 768)),
        ("99999x99999", 64, (512, 512)),
        ("4x4", 8, (64, 64)),
        ("", 10**9, (512, 512)),
        ("", True, (512, 512)),
        ("", -64, (512, 512)),
        ("", 96, (768, 768)),
        ("٥١٢", 96, (768, 768)),
    ],
)
def test_a_size_that_no_model_has_is_none(stated, sample_size, expected):
    contents = SimpleNamespace(
        metadata={RESOLUTION: stated},
        configs={"unet": {"sample_size": sample_size}},
        identity=SimpleNamespace(family=SD1),
    )
    assert native_size(contents) == expected
    recorded = trained_resolution(contents)
    assert recorded is None or recorded == expected


def test_words_of_any_size_are_not_read(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("x" * 2**20, encoding="utf-8")
    (tmp_path / "b.txt").write_text("x" * (2**20 + 1), encoding="utf-8")
    scan = scan_folder(tmp_path)
    assert [record.path.name for record in scan.records] == ["a.png"]
    assert [item.path.name for item in scan.skipped] == ["b.png"]
    assert "b.txt has over 1 MiB" in scan.skipped[0].reason


def test_an_optimizer_is_not_blamed_for_memory_that_ran_out():
    def build(error):
        def raising(groups):
            raise error

        return raising

    with pytest.raises(torch.OutOfMemoryError):
        require_steps("x", build(torch.OutOfMemoryError("CUDA out of memory")), torch.device("cpu"))
    with pytest.raises(ConfigError, match="Remove its arguments"):
        require_steps("x", build(ValueError("no")), torch.device("cpu"))


NO_RAM = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [MemoryError(), NO_RAM])
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize(
    ("asked", "helps"),
    [
        ({"offload_optimizer": True}, "training.offload_optimizer = false"),
        ({}, "dataset.decode_workers = 1"),
    ],
)
def test_ram_that_runs_out_beside_a_gpu_is_called_so(error, has_state, asked, helps):
    """VRAM advice moves more data into RAM, which would make this worse."""
    settings = {
        "output_dir": "o", "model": {"path": "m"}, "dataset": {"image_dir": "p"},
        "training": {"max_steps": 2, **asked},
    }  # fmt: skip
    config = build_run_config(settings, source="test")
    gpu = torch.device("cuda")
    said = str(out_of_memory(error, config, "training", "Saved.", gpu, has_state=has_state))
    assert said.startswith("RAM ran out while training. Saved. What would help most")
    assert f"{helps} (" in said
    assert said.endswith("closing other programs.")
    assert not re.search("= true|waits? in RAM|gradient_checkpointing", said)


def test_vram_that_runs_out_is_called_so(monkeypatch):
    settings = {
        "output_dir": "o", "model": {"path": "m"}, "dataset": {"image_dir": "p"},
        "training": {"max_steps": 2},
    }  # fmt: skip
    config = build_run_config(settings, source="test")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 29, 8 << 30))
    error = RuntimeError("CUDA error: out of memory")
    said = str(out_of_memory(error, config, "training", "Saved.", torch.device("cuda")))
    assert said.startswith("VRAM (8.0 GiB, 0.5 free) ran out while training.")
    assert "training.gradient_checkpointing = true" in said


@pytest.mark.parametrize("error", [DatasetError("lost"), ImpastoError("x")])
def test_ctrl_c_is_heard_while_a_state_is_saved_after_an_error(error):
    with StopRequest() as stop:
        try:
            raise error
        except ImpastoError:
            with pytest.raises(StoppedBySignal):
                signal.raise_signal(signal.SIGINT)
            with stop.after_step():
                signal.raise_signal(signal.SIGINT)
                assert stop.signal_number == signal.SIGINT
                with pytest.raises(StoppedBySignal):
                    signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be caught on Windows")
def test_a_launchers_sigterm_does_not_cut_an_error_short():
    with StopRequest() as stop:
        try:
            raise DatasetError("lost")
        except ImpastoError:
            signal.raise_signal(signal.SIGTERM)
        assert stop.signal_number is None
