"""Models shared out over processes (FSDP, DeepSpeed): they learn what whole ones do."""

import json

import numpy as np
import pytest
import torch
from component_files import UNET_FILE
from conftest import impasto
from PIL import Image
from runs import killed_copy
from safetensors.torch import load_file
from test_processes import WHOLE, launch, recorded_losses, train_on

from impasto.runs import RunDirectory
from impasto.training.trainer import resume, train

FSDP = {**WHOLE, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
KEEPING = {**WHOLE, "ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}
ZERO_1, ZERO_2 = (
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    for stage in ("1", "2")
)
WAYS = {"FSDP": FSDP, "ZeRO 2": ZERO_2}
BRIEFLY = {"FSDP that keeps blocks together": KEEPING, "ZeRO 1": ZERO_1}
PROGRAM = """
import importlib.util, os, sys
if "ACCELERATE_USE_DEEPSPEED" in os.environ and importlib.util.find_spec("deepspeed"):
    import deepspeed.comm.torch  # as an attribute it is PyTorch, which that package imports
    backend = sys.modules["deepspeed.comm.torch"]
    backend.build_shm_op = lambda: None  # would compile a kernel for processors
from impasto.cli.main import main
"""
FILES = (UNET_FILE, "text_encoder/model.safetensors")

CLOSE = {"atol": 1e-6, "rtol": 1e-4}
LEARNING = {
    "method": {"train_text_encoder": True},
    "model": {"clip_skip": 2},
    "validation": {"split": 0.2, "every_steps": 2, "timesteps": 2},
    "previews": {
        "prompts": ["a red ball"], "every_steps": 3, "at_first": True, "width": 64,
        "height": 64, "steps": 2,
    },
    "saving": {
        "model_every_steps": 3, "best_model": True, "state_every_steps": 2, "keep_states": 9,
        "average": "beside",
    },
    "optimizer": {"kind": "adamw", "lr": 0.01, "eps": 0.01},  # smooth where gradients are small
}  # fmt: skip


@pytest.fixture
def shared_out(tmp_path):
    """Run the command line in processes that share the model."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM + "main(sys.argv[1:])", encoding="utf-8")

    def run(*words, way, processes=2, fresh=False):
        done = launch([file, *words], processes, fresh=fresh, **way)
        assert done.returncode == 0, done.stderr
        return done.stderr + done.stdout

    return run


def assert_same_tensors(one, other, **tolerance):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], **tolerance)


def validation_losses(run) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = map(json.loads, lines)
    return [record["validation_loss"] for record in records if "validation_loss" in record]


def pictures_of(run) -> np.ndarray:
    files = sorted((run / "samples").rglob("*.png"))
    assert [file.parent.name for file in files] == [f"step-{n:08d}" for n in (0, 3, 5)]
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("way", WAYS)
def test_shares_learn_what_a_whole_model_does_and_are_resumed(
    train_config, run_file, tmp_path, shared_out, way
):
    """With the text encoder, a limit, an average, and all that is looked at and left on the way."""
    training = {
        "max_steps": 5, "max_grad_norm": 0.05, "ema_decay": 0.9, "batch_size": 2,
        "gradient_accumulation_steps": 2, "gradient_checkpointing": way == "FSDP",
    }  # fmt: skip
    whole, shares = tmp_path / "whole", tmp_path / "shares"
    alone = {**training, "gradient_accumulation_steps": 4}
    train(train_config(output_dir=str(whole), training=alone, **LEARNING))
    file = run_file(output_dir=str(shares), training=training, **LEARNING)
    told = shared_out("train", file, way=WAYS[way], fresh=way == "FSDP")
    assert "of 2 processes holds its share" in told
    assert_learned_alike(whole, shares)
    again = killed_copy(shares, tmp_path / "again", after=2)
    shared_out("resume", again, way=WAYS[way])
    for file in ("weights", "optimizer", "ema"):
        name = f"states/step-00000005/{file}.safetensors"
        assert_same_tensors(shares / name, again / name, atol=0, rtol=0)
    assert validation_losses(again) == validation_losses(shares)
    goes_on_alone_and_in_shares(again, lambda: shared_out("resume", again, way=WAYS[way]))
    change(whole, max_steps=(5, 8))
    resume(whole)
    assert len(recorded_losses(whole)) == 8
    assert recorded_losses(again) == pytest.approx(recorded_losses(whole), rel=1e-3)


def assert_learned_alike(whole, shares):
    """Two runs of `LEARNING` come to the same."""
    for model in ("export/model", "export/model-ema", "models/model-step00000003"):
        for file in FILES:
            assert_same_tensors(whole / model / file, shares / model / file, **CLOSE)
    assert (shares / "models" / "model-best").is_dir()
    for file in ("weights", "optimizer", "ema"):
        name = f"states/step-00000005/{file}.safetensors"
        assert_same_tensors(whole / name, shares / name, **CLOSE)
    assert recorded_losses(shares) == pytest.approx(recorded_losses(whole), rel=1e-4)
    assert len(validation_losses(whole)) == 4
    assert validation_losses(shares) == pytest.approx(validation_losses(whole), rel=1e-4)
    assert np.abs(pictures_of(shares) - pictures_of(whole)).max() <= 2


def goes_on_alone_and_in_shares(run, in_shares):
    """One process with the whole model goes on to step 6, and shares from there to step 8."""
    change(run, max_steps=(5, 6), gradient_accumulation_steps=(2, 4))
    resume(run)
    change(run, max_steps=(6, 8), gradient_accumulation_steps=(4, 2))
    in_shares()
    assert RunDirectory(run).saved_steps()[-2:] == [6, 8]


@pytest.mark.usefixtures("fresh_accelerate")
def test_three_processes_share_unevenly(train_config, run_file, tmp_path, shared_out):
    """Some tensors have fewer rows than there are processes."""
    sgd = {"kind": "SGD", "lr": 0.1}
    alone = {"max_steps": 2, "gradient_accumulation_steps": 3}
    train(train_config(output_dir=str(tmp_path / "whole"), training=alone, optimizer=sgd))
    for name, way in BRIEFLY.items():
        file = run_file(output_dir=str(tmp_path / name), training={"max_steps": 2}, optimizer=sgd)
        shared_out("train", file, way=way, processes=3)
        unet = f"export/model/{UNET_FILE}"
        assert_same_tensors(tmp_path / "whole" / unet, tmp_path / name / unet, **CLOSE)


def change(run, **settings):
    """Other values of some settings of a run: name -> from, to."""
    text = (run / "config.toml").read_text(encoding="utf-8")
    for name, (old, new) in settings.items():
        assert f"{name} = {old}\n" in text
        text = text.replace(f"{name} = {old}\n", f"{name} = {new}\n")
    (run / "config.toml").write_text(text, encoding="utf-8")


@pytest.mark.usefixtures("fresh_accelerate")
def test_float16_overflows_are_found_together(train_config, run_file, tmp_path):
    """The first steps overflow in one share or another; all processes pass over them."""
    training = {"mixed_precision": "fp16", "max_steps": 6}
    runs = tmp_path / "whole", tmp_path / "shares"
    alone = {**training, "gradient_accumulation_steps": 2}
    train(train_config(output_dir=str(runs[0]), training=alone))
    train_on(run_file(output_dir=str(runs[1]), training=training), 2, **FSDP)
    scales = []
    for run in runs:
        (state,) = (run / "states").iterdir()
        scales.append(json.loads((state / "state.json").read_text(encoding="utf-8"))["scaler"])
    assert scales[0] == scales[1]
    assert recorded_losses(runs[1]) == pytest.approx(recorded_losses(runs[0]), rel=1e-2)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"kind": "adamw8bit"}, "looks at more than one number at a time"),
        ({"start_decay": 1.0}, "does not go with a model that is sharded by FSDP"),
    ],
)
def test_what_does_not_go_with_shares_is_said_before_anything_is_made(
    run_file, tmp_path, optimizer, said
):
    file = run_file(optimizer=optimizer)
    result = launch(["-m", "impasto", "train", file], 2, **FSDP)
    assert result.returncode != 0
    assert said in " ".join(result.stderr.split())
    assert "Traceback (most recent call last)" not in result.stderr.partition("elastic")[0]
    assert not (tmp_path / "run").exists()


def test_one_process_has_nothing_to_share(run_file, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    done = impasto("train", run_file())
    assert done.returncode == 2
    assert "and there is one" in done.stderr
