"""Runs with `optimizer.start_decay`: how far they go, and that a resumed one pulls to the base."""

import pytest
import torch
from runs import StopAt, exported

from impasto.checkpoints.reading import open_tensor_file
from impasto.training.trainer import resume, train


def distance(run, base):
    """How far the exported weights are from those of another run, in all."""
    ours, theirs = (open_tensor_file(r.exported_model()).tensors for r in (run, base))
    return sum(float((ours[n].read() - theirs[n].read()).square().sum()) for n in ours) ** 0.5


def test_a_stronger_pull_stays_nearer_and_is_resumed_exactly(
    train_config, tmp_path, fresh_accelerate
):
    def settings(name, decay, **changes):
        return train_config(
            output_dir=str(tmp_path / name),
            optimizer={"lr": 1e-3, "start_decay": decay},
            training={"max_steps": 8},
            saving={"format": "safetensors", "state_every_steps": 3},
            **changes,
        )

    base = train(settings("base", 999.9, schedule={"kind": "rates", "rules": "1e-12"}))
    near, far = train(settings("near", 300.0)), train(settings("far", 0.0))
    assert distance(near, base) < 0.7 * distance(far, base)
    stopped = settings("stopped", 300.0)
    with pytest.raises(ZeroDivisionError):
        train(stopped, StopAt(5))
    resumed = resume(stopped.output_dir)
    ours, theirs = (open_tensor_file(r.exported_model()).tensors for r in (near, resumed))
    assert all(torch.equal(ours[name].read(), theirs[name].read()) for name in ours)
    assert len(exported(resumed)) == 1
