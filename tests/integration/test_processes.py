"""Two processes on one machine (gloo): together they do what one does with the joint batch."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from conftest import impasto
from safetensors.torch import load_file

from impasto.models.diffusers_folder import UNET_FILE


def launch(file, processes: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
        "--master_addr=127.0.0.1", f"--master_port={port}", "-m", "impasto", "train", str(file),
    ]  # fmt: skip
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("text_encoder", [False, True], ids=["unet", "unet and text encoder"])
def test_two_processes_equal_accumulation(run_file, tmp_path, text_encoder):
    """Thirteen pictures in batches of 4: some updates leave one process without pictures."""
    shared = {"method": {"train_text_encoder": text_encoder}, "training": {"max_steps": 7}}
    alone = {**shared, "training": {"max_steps": 7, "gradient_accumulation_steps": 2}}
    launch(run_file(output_dir=str(tmp_path / "alone"), **alone), 1)
    launch(run_file(output_dir=str(tmp_path / "together"), **shared), 2)
    first, second = (
        load_file(tmp_path / n / "export" / "model" / UNET_FILE) for n in ("alone", "together")
    )
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=1e-3)
    losses = [recorded_losses(tmp_path / name) for name in ("alone", "together")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    if not text_encoder:
        go_on_alone(tmp_path)


def go_on_alone(tmp_path):
    """What two processes began one continues, with accumulation: the same data in order."""
    for name in ("alone", "together"):
        file = tmp_path / name / "config.toml"
        text = file.read_text(encoding="utf-8").replace("max_steps = 7", "max_steps = 9")
        text = text.replace("gradient_accumulation_steps = 1", "gradient_accumulation_steps = 2")
        file.write_text(text, encoding="utf-8")
        done = impasto("resume", tmp_path / name)
        assert done.returncode == 0, done.stderr
    losses = [recorded_losses(tmp_path / name) for name in ("alone", "together")]
    assert len(losses[0]) == 9
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_two_processes_share_cached_captions(run_file, tmp_path):
    """The first encodes all captions, the second finds it done and takes the same way."""
    changes = {"training": {"max_steps": 2, "cache_text_to_disk": True}}
    launch(run_file(output_dir=str(tmp_path / "cached"), **changes), 2)
    assert len(list((tmp_path / "derived" / "texts").glob("*.json"))) == 1
    assert len(recorded_losses(tmp_path / "cached")) == 2


def recorded_losses(run) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]
