"""Runs that cache text encodings on disk learn the same as runs without."""

import pytest
import torch
from flat_models import one_level_model

from impasto.training.builders.methods import build_trainable
from impasto.training.builders.overrides import Overrides
from impasto.training.trainer import train

nano_model = one_level_model

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_training_from_disk_gives_the_same_bits(train_config, tmp_path):
    """Dropped captions, validation and previews give the same bits; the second run encodes
    nothing."""
    changes = {
        "validation": {
            "split": 0.25, "every_steps": 2, "timesteps": 1, "standard_error": 0,
            "training_images": 1,
        },
        "previews": {"prompts": ["a (red:1.2) ball"], "width": 32, "height": 32, "steps": 1},
        "dataset": {"caption_dropout_rate": 0.5},
        "model": {"clip_skip": 2, "max_tokens": 150},
    }  # fmt: skip
    memory = train(
        train_config(**changes, output_dir=str(tmp_path / "memory"), training={"max_steps": 2})
    )
    disk = train(
        train_config(
            **changes,
            output_dir=str(tmp_path / "disk"),
            training={"cache_text_to_disk": True, "text_cache_mib": 0, "max_steps": 2},
        )
    )
    records = [
        [(r["step"], r.get("loss"), r.get("validation_loss")) for r in run.read_metrics()]
        for run in (memory, disk)
    ]
    assert records[0] == records[1]
    assert len(list((tmp_path / "derived" / "texts").glob("shard-*.safetensors"))) >= 1


def with_scaled_text_encoder(config, model):
    with torch.no_grad():
        for tensor in model.networks["text_encoder"].parameters():
            tensor *= 1.5
    return build_trainable(config, model)


def test_texts_of_an_encoder_that_code_changed_are_its_own(train_config, tmp_path):
    """An encoder changed in code does not use the encodings of the one that was loaded."""

    def losses(name, overrides, **training):
        config = train_config(
            output_dir=str(tmp_path / name), training={"max_steps": 1, **training}
        )
        return [r["loss"] for r in train(config, overrides=overrides).read_metrics() if "loss" in r]

    scaled = Overrides(trainable=with_scaled_text_encoder)
    expected = losses("memory", scaled)
    plain = losses("plain", Overrides(), cache_text_to_disk=True)
    assert losses("disk", scaled, cache_text_to_disk=True) == expected
    assert expected != plain
