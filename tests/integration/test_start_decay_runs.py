"""Runs with `optimizer.start_decay`: distances from the base model, also of a resumed run."""

import torch
from component_files import UNET_FILE
from runs import exported, trained_and_killed
from safetensors.torch import load_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.training.trainer import resume, train


def distance(run, base):
    """Return the total distance of the trained weights from their initial values."""
    ours = load_file(run.states / "step-00000006" / "weights.safetensors")
    theirs = load_file(base / UNET_FILE)
    return sum(float((ours[f"unet.{n}"] - theirs[n]).square().sum()) for n in theirs) ** 0.5


def test_a_stronger_pull_stays_nearer_and_is_resumed_exactly(
    train_config, nano_model, tmp_path, fresh_accelerate, encoded_once
):
    def settings(name, decay):
        return train_config(
            output_dir=str(tmp_path / name),
            optimizer={"lr": 1e-3, "start_decay": decay},
            training={"max_steps": 6},
            saving={"format": "safetensors", "state_every_steps": 3},
        )

    near, killed = trained_and_killed(settings("near", 300.0), step=5, saved=3)
    far = train(settings("far", 0.0))
    assert distance(near, nano_model) < 0.7 * distance(far, nano_model)
    resumed = resume(killed.path)
    ours, theirs = (open_tensor_file(r.exported_model()).tensors for r in (near, resumed))
    assert all(torch.equal(ours[name].read(), theirs[name].read()) for name in ours)
    assert len(exported(resumed)) == 1
