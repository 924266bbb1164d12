"""Sharded models (FSDP, DeepSpeed) learn what whole ones do."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from component_files import UNET_FILE
from conftest import impasto
from flat_models import one_level_model
from PIL import Image
from runs import killed_copy
from safetensors.torch import load_file
from test_learning_together import WEIGHED, assert_alike, made_of_weights, measured, settings_in
from test_processes import WHOLE, launch, recorded_losses

from impasto.config.load import load_run_config
from impasto.training.trainer import resume, train

nano_model = one_level_model

FSDP = {**WHOLE, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
KEEPING = {**WHOLE, "ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}
ZERO_1, ZERO_2 = (
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    for stage in ("1", "2")
)
WAYS = {"FSDP": FSDP, "ZeRO 2": ZERO_2}
BRIEFLY = {"FSDP that keeps blocks together": KEEPING, "ZeRO 1": ZERO_1}
PROGRAM = """
import json, os, sys

def import_deepspeed():
    import torch

    compiling = torch.compile
    torch.compile = lambda function: function  # would import all of the compiler
    import deepspeed.runtime.zero.muon.original_muon
    torch.compile = compiling
    import deepspeed.comm.torch  # as an attribute it is PyTorch, which that package imports
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # would compile a kernel

if "ACCELERATE_USE_DEEPSPEED" in os.environ:
    import_deepspeed()
from impasto.cli.main import main

for words in json.loads(sys.argv[1]):
    main(words)
"""

CLOSE = {"atol": 1e-6, "rtol": 1e-4}
LEARNING = {
    "method": {"train_text_encoder": True, "train_only": ["*attn*", "*resnets*"]},
    "model": {"clip_skip": 2},
    "loss": {**WEIGHED, "uncertainty": True},
    "saving": {"average": "beside", "model_every_steps": 3},
    "optimizer": {"kind": "adamw", "lr": 0.01, "eps": 0.01},  # smooth where gradients are small
}
TRAINING = {"ema_decay": 0.9, "batch_size": 2, "max_grad_norm": 0.05}


@pytest.fixture
def shared_out(tmp_path):
    """Return a function that runs commands, one after the other, in processes that share the
    model."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, encoding="utf-8")

    def run(*commands, way, processes=2):
        words = json.dumps([[str(word) for word in command] for command in commands])
        done = launch([file, words], processes, **way)
        assert done.returncode == 0, done.stderr
        return done.stderr + done.stdout

    return run


def assert_same_tensors(one, other, **tolerance):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], **tolerance)


def pictures_of(run) -> np.ndarray:
    files = sorted((run / "samples").rglob("*.png"))
    assert [file.parent.name for file in files] == [f"step-{n:08d}" for n in (0, 0, 2, 2, 4, 4)]
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)


@pytest.fixture(scope="module")
def writing(tmp_path_factory, nano_model):
    """Return a function that writes settings of runs on the same images."""
    return settings_in(tmp_path_factory.mktemp("learning"), nano_model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, writing):
    """The run of one process with the whole model. Read-only by agreement."""
    run = tmp_path_factory.mktemp("whole") / "run"
    AcceleratorState._reset_state(reset_partial_state=True)  # of earlier tests
    train(load_run_config(writing(run, accumulation=4, training=TRAINING, **LEARNING)))
    return run


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("way", WAYS)
def test_shares_learn_what_a_whole_model_does_and_are_resumed(
    whole, writing, tmp_path, shared_out, way
):
    """All learned, monitored and saved values agree; a resume is identical to the bit.

    One process resumes from shards, and shards from one process. FSDP's second process is a fresh
    interpreter.
    """
    shares = tmp_path / "shares"
    training = {**TRAINING, "gradient_checkpointing": way == "FSDP"}
    file = writing(shares, accumulation=2, training=training, **LEARNING)
    fresh = {"IMPASTO_WARM_FRESH": "1"} if way == "FSDP" else {}
    told = shared_out(("train", file), way={**WAYS[way], **fresh})
    assert "of 2 processes holds a shard" in told
    assert_learned_alike(whole, shares)
    again = killed_copy(shares, tmp_path / "again", after=2)
    shutil.rmtree(again / "samples" / "step-00000004")
    (again / "averages" / "start.safetensors").unlink()
    mixed = killed_copy(shares, tmp_path / "mixed", after=2)
    change(mixed, max_steps=(4, 3), gradient_accumulation_steps=(2, 4))
    resume(mixed)
    change(mixed, max_steps=(3, 4), gradient_accumulation_steps=(4, 2))
    shared_out(("resume", again), ("resume", mixed), way=WAYS[way])
    assert_resumed_to_the_bit(shares, again)
    for name in ("weights", "optimizer", "ema"):
        file = f"states/step-00000004/{name}.safetensors"
        assert_same_tensors(whole / file, mixed / file, **CLOSE)
    assert recorded_losses(mixed) == pytest.approx(recorded_losses(whole), rel=1e-4)


def assert_learned_alike(whole, shares):
    """Require that two runs of `LEARNING` have the same results."""
    # two of each of the ends, the best and step 3, the start and two averages, three of a state
    assert_alike(whole, shares, files=12, **CLOSE)
    for run in (whole, shares):
        names = {name.partition(": ")[0] for name in made_of_weights(run)}
        assert {"export/model-ema.safetensors", "models/model-best.safetensors"} <= names
    assert np.abs(pictures_of(shares) - pictures_of(whole)).max() <= 2


def assert_resumed_to_the_bit(run, again):
    """Require that all tensors and measurements are identical."""
    first, second = made_of_weights(run), made_of_weights(again)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    for key in ("loss", "validation_loss", "preview_features"):
        assert measured(again, key) == measured(run, key) != []


@pytest.mark.usefixtures("fresh_accelerate")
def test_three_processes_share_unevenly(train_config, run_file, tmp_path, shared_out):
    """Some tensors have fewer rows than there are processes."""
    sgd = {"kind": "SGD", "lr": 0.1}
    alone = {"max_steps": 2, "gradient_accumulation_steps": 3}
    train(train_config(output_dir=str(tmp_path / "whole"), training=alone, optimizer=sgd))
    for name, way in BRIEFLY.items():
        file = run_file(output_dir=str(tmp_path / name), training={"max_steps": 2}, optimizer=sgd)
        shared_out(("train", file), way=way, processes=3)
        unet = f"export/model/{UNET_FILE}"
        assert_same_tensors(tmp_path / "whole" / unet, tmp_path / name / unet, **CLOSE)


def change(run, **settings):
    """Change settings of a run: name -> old and new value."""
    text = (run / "config.toml").read_text(encoding="utf-8")
    for name, (old, new) in settings.items():
        assert f"{name} = {old}\n" in text
        text = text.replace(f"{name} = {old}\n", f"{name} = {new}\n")
    (run / "config.toml").write_text(text, encoding="utf-8")


OVERFLOWING = """
import itertools, os, sys, torch
from impasto.cli.main import main

calls, unscale = itertools.count(), torch.amp.GradScaler.unscale_

def overflowing(self, optimizer):
    if next(calls) < 1 + int(os.environ["RANK"]):
        optimizer.param_groups[0]["params"][0].grad.fill_(torch.inf)
    unscale(self, optimizer)

torch.amp.GradScaler.unscale_ = overflowing
main(["train", sys.argv[1]])
"""


@pytest.mark.usefixtures("fresh_accelerate")
def test_float16_overflows_are_found_together(run_file, tmp_path, monkeypatch):
    """The first step overflows in both shards, the second in one: both processes skip them."""
    training = {"mixed_precision": "fp16", "max_steps": 4}
    runs = tmp_path / "whole", tmp_path / "shares"
    alone = {**training, "gradient_accumulation_steps": 2}
    calls, unscale = itertools.count(), torch.amp.GradScaler.unscale_

    def overflowing(self, optimizer):
        if next(calls) < 2:
            optimizer.param_groups[0]["params"][0].grad.fill_(torch.inf)
        unscale(self, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", overflowing)
    train(load_run_config(run_file(output_dir=str(runs[0]), training=alone)))
    program = tmp_path / "overflowing.py"
    program.write_text(OVERFLOWING, encoding="utf-8")
    done = launch([program, run_file(output_dir=str(runs[1]), training=training)], 2, **FSDP)
    assert done.returncode == 0, done.stderr
    for run in runs:
        (state,) = (run / "states").iterdir()
        content = json.loads((state / "state.json").read_text(encoding="utf-8"))
        assert content["scaler"] == {"scale": 2.0**14, "growth_tracker": 2}
    assert recorded_losses(runs[1]) == pytest.approx(recorded_losses(runs[0]), rel=1e-2)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"kind": "adamw8bit"}, "whose update of a number depends on others"),
        ({"start_decay": 1.0}, "cannot be combined with a model that is sharded by FSDP"),
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
    assert "and this run has only one" in done.stderr
