"""The worker behind the page "Draw": its samples, its end, and its responses to faults."""

import json
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import impasto
from PIL import Image
from support.warm import running

from impasto import files
from impasto.checkpoints.hypernetwork_writing import write_hypernetwork
from impasto.checkpoints.hypernetworks import HypernetworkContents, Structure
from impasto.errors import RunError, StorageError
from impasto.locks import FolderLock
from impasto.models.networks.hypernetwork import Hypernetwork, initialize
from impasto.runs import drawings
from impasto.runs.draw_requests import Axis, DrawRequest, ImageSettings
from impasto.runs.drawings import DrawFolder
from impasto.sampling import worker as worker_module
from impasto.sampling.loaded import LoadedModels
from impasto.sampling.sampler import Sampler
from impasto.sampling.worker import DrawingStatus, DrawWorker
from impasto.training.devices import exhausted_memory


@pytest.fixture
def folder(tmp_path):
    return DrawFolder(tmp_path / "drawings")


@pytest.fixture
def worker(folder):
    return DrawWorker(
        folder, LoadedModels(torch.device("cpu")), exhausted_memory, lambda line: None
    )


@pytest.fixture
def settings(nano_model):
    return ImageSettings(str(nano_model), "a red ball", "x", 3, 32, 32, 2, 2.0, "euler_a")


def eventually(holds, seconds=300.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def statuses(folder):
    return [drawing.status()["phase"] for drawing in folder.all()]


@pytest.fixture
def hypernetwork(tmp_path):
    network = Hypernetwork((16,), Structure((1, 2, 1)))
    initialize(network, "KaimingNormal", 1)
    contents = HypernetworkContents(network.halves(), network.structure, "h")
    write_hypernetwork(contents, tmp_path / "h.safetensors", "safetensors")
    return tmp_path / "h.safetensors"


# samples


def test_images_are_those_of_impasto_sample_bit_for_bit(
    worker, folder, settings, hypernetwork, tmp_path
):
    drawing = folder.ask(
        DrawRequest(settings, count=2, clip_skip=2, hypernetworks=((str(hypernetwork), 0.5),))
    )
    worker.answer(drawing)
    assert drawing.status()["phase"] == "done", drawing.status()
    done = impasto(
        "sample", settings.model, "a red ball", "--negative", "x", "--seed", 3, "--width", 32,
        "--height", 32, "--steps", 2, "--guidance", 2, "--sampler", "euler_a", "--clip-skip", 2,
        "--hypernetwork", f"{hypernetwork}:0.5", "--count", 2, "--out", tmp_path / "samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("0000-3.png", "0001-4.png"):
        assert (drawing.path / name).read_bytes() == (tmp_path / "samples" / name).read_bytes()
    with Image.open(drawing.path / "0000-3.png") as image:
        assert "<hypernet:h:0.5>" in image.info["parameters"]


def test_a_model_is_loaded_once_and_replaced_by_another(
    worker, folder, settings, nano_sd2_model, hypernetwork
):
    """Drawing with a hypernetwork leaves the model unchanged."""
    plain = [folder.ask(DrawRequest(settings)) for _ in range(2)]
    changed = folder.ask(DrawRequest(settings, hypernetworks=((str(hypernetwork), 1.0),)))
    worker.answer(plain[0])
    worker.answer(changed)
    worker.answer(plain[1])
    images = [(d.path / "0000-3.png").read_bytes() for d in (*plain, changed)]
    assert images[0] == images[1] != images[2]
    assert worker.models.loads == 1
    other = folder.ask(DrawRequest(replace(settings, model=str(nano_sd2_model))))
    worker.answer(other)
    assert other.status()["phase"] == "done"
    assert worker.models.loads == 2


def test_a_grid_has_each_image_at_its_place_and_loads_each_model_once(
    worker, folder, settings, nano_sd2_model
):
    models = Axis("model", (settings.model, str(nano_sd2_model)))
    drawing = folder.ask(DrawRequest(settings, x=models, y=Axis("seed", ("5", "6"))))
    worker.answer(drawing)
    done = {(d["row"], d["column"]): d for d in drawing.status()["done"]}
    assert {place: d["file"] for place, d in done.items()} == {
        (0, 0): "0000-5.png", (0, 1): "0001-5.png", (1, 0): "0002-6.png", (1, 1): "0003-6.png",
    }  # fmt: skip
    assert worker.models.loads == 2
    alone = folder.ask(DrawRequest(replace(settings, seed=6, model=str(nano_sd2_model))))
    worker.answer(alone)
    assert (alone.path / "0000-6.png").read_bytes() == (drawing.path / "0003-6.png").read_bytes()
    with Image.open(drawing.grid_file) as sheet, Image.open(alone.path / "0000-6.png") as image:
        corner = sheet.crop((sheet.width - 32, sheet.height - 32, sheet.width, sheet.height))
        assert corner.tobytes() == image.tobytes()
        assert sheet.width > 2 * 32 + 4  # space for the labels of the rows


# faults are reported


BAD = (
    ("{", "cannot be read"),
    ("[]", "not a JSON object"),
    ('{"model": "x", "steps": "many"}', "steps: Expected a whole number from 1 to 1000"),
    ('{"model": "runwayml/stable-diffusion-v1-5"}', "does not exist"),
    ('{"model": "/etc/passwd"}', "passwd"),
    ('{"model": "a\\u0000b"}', "model: "),
)
"""Invalid requests, and a part of the response to each."""


def test_bad_requests_are_told_and_the_worker_goes_on(worker, folder, settings):
    bad = [folder.ask(DrawRequest(settings)) for _ in BAD]
    for drawing, (content, _) in zip(bad, BAD, strict=True):
        drawing.request_file.write_text(content, encoding="utf-8")
    good = folder.ask(DrawRequest(settings))
    worker.serve(0)
    for drawing, (content, words) in zip(bad, BAD, strict=True):
        assert drawing.status()["phase"] == "failed", content
        assert words in drawing.status()["message"]
    assert good.status()["phase"] == "done"


EXHAUSTED = (
    (torch.OutOfMemoryError(), "VRAM ran out. Generate smaller images"),
    (MemoryError(), "RAM ran out. Generate smaller images"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "RAM ran out. Generate smaller"),
)


def test_out_of_memory_is_answered_with_advice(worker, folder, settings, monkeypatch):
    """The model is freed after out of memory, so that the next request starts with free memory."""
    for error, words in EXHAUSTED:
        drawing = folder.ask(DrawRequest(settings))
        loaded = []

        def full(*_, error=error, loaded=loaded):
            loaded.append(worker.models.is_loaded(settings.model))
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(Sampler, "draw", full)
            worker.answer(drawing)
        assert drawing.status()["phase"] == "failed"
        assert drawing.status()["message"].startswith(words)
        assert loaded == [True]
        assert not worker.models.is_loaded(settings.model)
    after = folder.ask(DrawRequest(settings))
    worker.answer(after)
    assert after.status()["phase"] == "done"


def test_a_cancelled_drawing_ends_within_an_image(worker, folder, settings, monkeypatch):
    monkeypatch.setattr(worker_module, "_TOLD_EVERY_S", 0)
    drawing = folder.ask(DrawRequest(replace(settings, steps=900, sampler="ddim")))
    stepped = DrawingStatus.stepped

    def cancel_at_three(status, steps):
        if status.values["step"] == 2:
            drawing.cancel()
        stepped(status, steps)

    monkeypatch.setattr(DrawingStatus, "stepped", cancel_at_three)
    worker.answer(drawing)
    status = drawing.status()
    assert (status["phase"], status["step"], status["steps"]) == ("cancelled", 3, 900)


def test_what_is_cancelled_before_its_turn_is_not_begun(worker, folder, settings):
    drawing = folder.ask(DrawRequest(settings))
    drawing.cancel()
    worker.serve(0)
    assert statuses(folder) == ["cancelled"]
    assert worker.models.loads == 0


def test_requests_of_one_millisecond_are_drawn_in_the_order_asked(folder, settings, monkeypatch):
    moments = [1_700_000_000_123_000_000 + n * 1000 for n in range(12)]
    monkeypatch.setattr(time, "time_ns", iter(moments).__next__)
    asked = [folder.ask(DrawRequest(settings)) for _ in moments]
    assert folder.waiting() == asked
    assert [folder.find(drawing.path.name) for drawing in asked] == asked


def test_an_idle_worker_reads_no_drawing_again_that_has_ended(
    worker, folder, settings, monkeypatch
):
    old = [folder.ask(DrawRequest(settings)) for _ in range(5)]
    for drawing in old[:-1]:
        drawing.status_file.write_text('{"phase": "done"}', encoding="utf-8")
    old[-1].cancel()
    read, looks = [], []
    reading = drawings.read_object
    monkeypatch.setattr(drawings, "read_object", lambda file: read.append(file) or reading(file))

    def look_again(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            new = folder.ask(DrawRequest(settings))
            new.cancel()  # it is found, but not started
        if len(looks) == 6:
            folder.stop_worker()

    clock = SimpleNamespace(sleep=look_again, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(worker_module, "time", clock)
    worker.serve(60)
    new = folder.all()[-1]
    assert len(looks) == 6
    before = [read.count(drawing.status_file) for drawing in old]
    assert before == [2] * 5  # at the start, for killed workers, and at the first check
    assert read.count(new.status_file) == 1


# the end of the worker


def test_it_ends_when_the_folder_asks_and_leaves_what_waits(worker, folder, settings):
    folder.ask(DrawRequest(settings))
    folder.ask(DrawRequest(settings))
    answer = DrawWorker.answer

    class Stopping(DrawWorker):
        def answer(self, drawing):
            answer(self, drawing)
            folder.stop_worker()

    Stopping(folder, worker.models, exhausted_memory, worker.told).serve(60)
    assert statuses(folder) == ["done", "waiting"]
    assert not folder.has_worker
    assert not folder.stop_file.exists()


def test_what_is_asked_while_it_ends_is_drawn(worker, folder, settings, monkeypatch):
    """A request made while the worker holds its lock starts no second one, and is still drawn."""
    leave = FolderLock.__exit__
    asked = []

    def ask_then_leave(lock, *error):
        if not asked:
            asked.append(folder.ask(DrawRequest(settings)))
        leave(lock, *error)

    monkeypatch.setattr(FolderLock, "__exit__", ask_then_leave)
    worker.serve(0)
    assert statuses(folder) == ["done"]


def test_a_full_disk_ends_it_with_what_was_asked_left_waiting(
    worker, folder, settings, monkeypatch
):
    """A full disk ends the worker instead of repeating the same drawing for ever."""
    folder.ask(DrawRequest(settings))
    write = files.write_json

    def full(path, *args, **kwargs):
        if path.name == "status.json":
            raise StorageError("No space left")
        write(path, *args, **kwargs)

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(StorageError, match="the disk is full"):
        worker.serve(0)
    assert statuses(folder) == ["waiting"]


def test_a_second_worker_is_refused(worker, folder):
    folder.path.mkdir()
    with FolderLock(folder.path, "drawing", lambda holder: None):
        assert folder.has_worker
        with pytest.raises(RunError, match="Another worker uses this folder: process"):
            worker.serve(0)


def test_a_killed_worker_leaves_requests_and_the_next_one_tells_the_truth(worker, folder, settings):
    """A worker started by the command line is killed in the middle of an image."""
    broken = folder.ask(DrawRequest(replace(settings, steps=900, sampler="ddim")))
    folder.ask(DrawRequest(settings))
    process = running.start("-m", "impasto", "draw-worker", folder.path, "--idle", "9")
    try:
        eventually(lambda: broken.status().get("step", 0) > 0)
        assert folder.has_worker
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert statuses(folder) == ["killed", "waiting"]
    assert not folder.has_worker
    worker.serve(0)
    assert statuses(folder) == ["killed", "done"]
    assert json.loads(broken.status_file.read_text(encoding="utf-8"))["phase"] == "killed"
