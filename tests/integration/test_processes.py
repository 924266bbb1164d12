"""Several processes on one machine (gloo) compute what one does with the joint batch."""

import contextlib
import csv
import json
import os
import secrets
import signal
import socket
from collections import Counter

import pytest
import tomli_w
import torch
from component_files import UNET_FILE
from conftest import draw_images
from flat_models import one_level_model
from safetensors.torch import load_file
from support.warm import running

from impasto.config.load import load_run_config
from impasto.errors import RunError
from impasto.storage import claims, objects
from impasto.training.trainer import resume, train

nano_model = one_level_model

WHOLE = {"ACCELERATE_USE_CPU": "true"}


def free_port() -> int:
    """Return a port below the ephemeral range, so that no connection takes it meanwhile."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port


def launch(program, processes: int, **variables: str):
    """Run PyTorch's launcher; the rank `IMPASTO_WARM_FRESH` is a fresh interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or WHOLE)}
    words = [
        "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
        "--master_addr=127.0.0.1", f"--master_port={free_port()}",
    ]  # fmt: skip
    return running.run(*words, *running.launched(program, environment), env=environment)


def launch_without_launcher(program, processes: int) -> list[tuple[int, str]]:
    """Return exit code and errors of each process, started without a launcher to end the others."""
    shared = {
        **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes), **WHOLE,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    started = [
        running.start(*program, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, errors, strict=True)]


def train_on(file, processes: int, **variables: str) -> None:
    result = launch(["-m", "impasto", "train", file], processes, **variables)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def both(run_values, pictures, tmp_path):
    """Settings of a run in one process and of one in three, with class images."""
    balls = draw_images(tmp_path / "balls", 4, seed=3, captions=False)
    subsets = [
        {"image_dir": str(pictures)},
        {"image_dir": str(balls), "is_reg": True, "class_tokens": "a ball"},
    ]
    dataset = {k: v for k, v in run_values["dataset"].items() if k != "image_dir"}
    files = {}
    for name, accumulation in (("alone", 3), ("together", 1)):
        values = {
            **run_values,
            "output_dir": str(tmp_path / name),
            "dataset": {**dataset, "datasets": [{"prior_loss_weight": 0.2, "subsets": subsets}]},
            "method": {"train_text_encoder": True},
            "logging": {"every_steps": 1, "image_losses": True},
            "optimizer": {"kind": "SGD", "lr": 0.1},  # weights differ as much as gradients do
            "validation": {"split": 0.2, "every_steps": 2, "standard_error": 0.3},
        }
        values["model"] = {**run_values["model"], "clip_skip": 2}
        training = {"max_steps": 4, "gradient_accumulation_steps": accumulation}
        values["training"] = {**run_values["training"], **training}
        values["saving"] = {**run_values["saving"], "merge_ratio": 0.5}
        files[name] = tmp_path / f"{name}.toml"
        files[name].write_text(tomli_w.dumps(values), encoding="utf-8")
    return files


@pytest.mark.usefixtures("fresh_accelerate")
def test_processes_equal_accumulation(both, tmp_path, nano_model):
    """Weights, losses, per-image losses and validation agree; some steps leave a process idle.

    Class images keep their weights in any distribution; reported losses are unweighted.
    """
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(load_run_config(both["alone"]))
    train_on(both["together"], 3)
    for file in (UNET_FILE, "text_encoder/model.safetensors"):
        first, second, before = (
            load_file(folder / file)
            for folder in (alone / "export" / "model", together / "export" / "model", nano_model)
        )
        assert max(float((first[name] - before[name]).abs().max()) for name in first) > 1e-3
        for name in first:
            torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5)
    losses = assert_same_losses(alone, together, steps=4)
    rows = [image_losses(run) for run in (alone, together)]
    for (one, first_loss), (other, second_loss) in zip(*rows, strict=True):
        assert one == other
        assert second_loss == pytest.approx(first_loss, rel=1e-3, abs=1e-5)
    shown = Counter(step for (step, _, _), _ in rows[1])
    assert min(shown.values()) <= 4 < max(shown.values())  # a batch for one process only
    first = [(image, loss) for (step, image, _), loss in rows[1] if step == "1"]
    weighted = [loss * (0.2 if "balls" in image else 1.0) for image, loss in first]
    assert 0 < sum("balls" in image for image, _ in first) < len(first)
    assert losses[0] == pytest.approx(sum(weighted) / len(first), rel=1e-4)
    assert_validated_alike(alone, together)
    for run in (alone, together):
        go_on_alone(run)
    assert_same_losses(alone, together, steps=5)


def assert_same_losses(alone, together, *, steps):
    losses = [recorded_losses(run) for run in (alone, together)]
    assert len(losses[0]) == steps
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    return losses[1]


def assert_validated_alike(one, other):
    """Require equal losses of held-out images, of the base model, after training, and of the
    mixture.
    """
    alone, shares = (validations(run) for run in (one, other))
    assert [record["step"] for record in shares] == [0, 2, 4]
    assert shares[0]["validation_images"] == pytest.approx(alone[0]["validation_images"], rel=1e-6)
    for first, second in zip(alone, shares, strict=True):
        for key in ("validation_images", "training_sample_loss", "validation_se"):
            assert second[key] == pytest.approx(first[key], rel=1e-4)
    mixed = [json.loads((run / "status.json").read_text()) for run in (one, other)]
    assert mixed[1]["merged_loss"] == pytest.approx(mixed[0]["merged_loss"], rel=1e-4)
    assert mixed[0]["merged_loss"] != pytest.approx(alone[-1]["validation_loss"], rel=1e-6)


def go_on_alone(run):
    """Continue a run of three processes in one with accumulation: the same data in order."""
    file = run / "config.toml"
    text = file.read_text(encoding="utf-8").replace("max_steps = 4", "max_steps = 5")
    text = text.replace("gradient_accumulation_steps = 1", "gradient_accumulation_steps = 3")
    file.write_text(text, encoding="utf-8")
    resume(run)


@pytest.mark.usefixtures("fresh_accelerate")
def test_processes_train_one_hypernetwork(train_config, run_file, tmp_path):
    """Some images are left over; each batch has its dropout mask, in whichever process.

    Captions fit one batch: one process encodes them, the other reads them.
    """
    shared = {
        "method": {"kind": "hypernetwork", "layers": [1, 2, 2, 1], "dropout": [0, 0.5, 0.5, 0]},
        "optimizer": {"kind": "SGD", "lr": 10.0},
        "saving": {"format": "safetensors"},
    }
    alone = {"max_steps": 4, "gradient_accumulation_steps": 2}
    train(train_config(output_dir=str(tmp_path / "alone"), training=alone, **shared))
    cached = {"max_steps": 4, "cache_text_to_disk": True}
    train_on(run_file(output_dir=str(tmp_path / "together"), training=cached, **shared), 2)
    assert len(list((tmp_path / "derived" / "texts").glob("*.json"))) == 1
    first, second = (
        load_file(tmp_path / n / "states/step-00000004/weights.safetensors")
        for n in ("alone", "together")
    )
    assert max(float(tensor.abs().max()) for tensor in first.values()) > 0.02
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5)
    losses = [recorded_losses(tmp_path / name) for name in ("alone", "together")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


DYING = """
import os, signal, sys, time
from impasto.cli.main import main
from impasto.training.loop import TrainingLoop

real = TrainingLoop.step

def update(self, step, batches):
    if step.step == 3 and os.environ["RANK"] == "1":
        while not (self._run.states / "step-00000002").is_dir():  # written beside training
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, step, batches)

TrainingLoop.step = update
main(["train", sys.argv[1]])
"""


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_process_that_dies_ends_the_run_with_a_message(train_config, run_file, tmp_path):
    """The other processes do not hang; the run is resumed from the previous state."""
    training, optimizer = {"max_steps": 4}, {"kind": "SGD", "lr": 0.1}
    changes = {"saving": {"state_every_steps": 2}, "optimizer": optimizer}
    program = tmp_path / "dying.py"
    program.write_text(DYING, encoding="utf-8")
    run = tmp_path / "dying"
    file = run_file(output_dir=str(run), training=training, **changes)
    result = launch([program, file], 3)
    assert result.returncode != 0
    assert "Another process of this run ended in step 4" in result.stderr
    assert f"impasto resume {run}" in " ".join(result.stderr.split())
    assert "Traceback (most recent call last)" not in result.stderr.partition("elastic")[0]
    assert [p.name for p in (run / "states").iterdir()] == ["step-00000002"]
    again = launch(["-m", "impasto", "resume", run], 3)
    assert again.returncode == 0, again.stderr
    training["gradient_accumulation_steps"] = 3
    train(train_config(output_dir=str(tmp_path / "whole"), training=training, optimizer=optimizer))
    whole = recorded_losses(tmp_path / "whole")
    assert recorded_losses(run) == pytest.approx(whole, rel=1e-5)  # sums have any order


def test_a_process_without_memory_waits_for_nobody(run_file, tmp_path):
    """The second process runs out of memory in a step: a message, and no hang."""
    program = tmp_path / "full.py"
    fault = "raise MemoryError"
    program.write_text(DYING.replace("os.kill(os.getpid(), signal.SIGKILL)", fault), "utf-8")
    saving = {"state_every_steps": 2}
    result = launch([program, run_file(output_dir=str(tmp_path / "full"), saving=saving)], 2)
    assert result.returncode != 0
    assert "RAM ran out while training on" in result.stderr
    assert "Another process of this run ended in step 4" in result.stderr


PREPARING = """
import os, signal, sys
from impasto.cli.main import main
from impasto.data.sharding import shards

write = shards.Shards.write

def dying_write(self, *args):
    write(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "0":
    shards.Shards.write = dying_write
sys.argv = ["impasto", "train", sys.argv[1]]
main()
"""


UNMEASURED = """
import sys
from impasto.cli.main import main
from impasto.training.analysis import merged_loss

def failing(*_):
    raise MemoryError

merged_loss._mix = failing
main(["resume", sys.argv[1]])
"""


def test_the_first_process_dies_while_it_prepares(run_file, tmp_path):
    """The other process, which waits for latents, ends with a message; the run can be restarted.

    It then finishes, although its mixture cannot be measured.
    """
    program = tmp_path / "dying.py"
    program.write_text(PREPARING, encoding="utf-8")
    run = tmp_path / "dying"
    changes = {
        "training": {"max_steps": 1},
        "validation": {"split": 0.3, "every_steps": 2, "standard_error": 0},
        "saving": {"merge_ratio": 0.5, "keep_final_state": False},
    }
    file = run_file(output_dir=str(run), **changes)
    (killed, _), (code, errors) = launch_without_launcher([program, file], 2)
    assert killed == -signal.SIGKILL
    assert code == RunError.exit_code
    assert "Traceback (most recent call last)" not in errors
    assert "Another process of this run has ended" in errors
    assert "Nothing was trained yet. Encoded images are kept" in errors
    program.write_text(UNMEASURED, encoding="utf-8")
    again = launch([program, run], 2)
    assert again.returncode == 0, again.stderr
    assert len(recorded_losses(run)) == 1
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    assert status["phase"] == "finished"
    assert "merged_loss" not in status


def test_a_state_that_the_first_process_cannot_use_ends_all_with_its_words(train_config, tmp_path):
    """Only the first process checks, since others may lack the run; its state is of one process."""
    run = tmp_path / "of-one"
    train(train_config(output_dir=str(run), training={"max_steps": 1}))
    config = run / "config.toml"
    text = config.read_text(encoding="utf-8")
    assert "max_steps = 1" in text
    config.write_text(text.replace("max_steps = 1", "max_steps = 2"), encoding="utf-8")
    for rank, (code, errors) in enumerate(
        launch_without_launcher(["-m", "impasto", "resume", run], 2)
    ):
        assert code == RunError.exit_code
        told = " ".join(errors.split())
        assert "changed since: forward passes per step (was 1, is 2)" in told
        assert ("Reported by process 1 of 2" in told) == (rank == 1)


def image_losses(run) -> list[tuple[tuple[str, str, str], float]]:
    """Return rows of the table: image, step and loss."""
    with (run / "image_losses.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.reader(file), reverse=True)[1:]
    return [((step, image, t), float(loss)) for step, image, t, loss in rows]


def recorded_losses(run) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def validations(run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "validation_loss" in record]


def test_processes_of_a_machine_share_a_run_in_a_store(run_file, bucket, tmp_path, monkeypatch):
    """The first process downloads and uploads; the others read its local copies."""
    place, url = bucket / "run", f"s3://{bucket.name}/run"
    saving = {"state_every_steps": 2}
    train_on(run_file(output_dir=url, training={"max_steps": 2}, saving=saving), 2)
    settings = objects.read(place / "config.toml").replace(b"max_steps = 2", b"max_steps = 3")
    claims.write(place / "config.toml", settings)
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    again = launch(["-m", "impasto", "resume", url], 2)
    assert again.returncode == 0, again.stderr
    lines = [json.loads(line) for line in objects.read(place / "metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert json.loads(objects.read(place / "status.json"))["phase"] == "finished"
