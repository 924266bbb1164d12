"""A model is marked as having random weights until it is trained."""

import torch

from impasto import load_base_model, save_model
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.reading.recorded import has_random_weights
from impasto.models.writing.architectures import write_random_model
from impasto.models.writing.conversion import convert_model


def is_random(path):
    return has_random_weights(open_model(str(path), OpenOptions()))


def test_it_says_so_until_it_is_trained_or_has_another_vae(nano_architecture, tmp_path):
    made = tmp_path / "made"
    write_random_model(nano_architecture, made, seed=0, dtype=torch.float32)
    assert is_random(made)
    convert_model(str(made), tmp_path / "as.safetensors", "safetensors", {}, OpenOptions())
    assert is_random(tmp_path / "as.safetensors")
    other = OpenOptions(vae=str(made / "vae"))
    convert_model(str(made), tmp_path / "vae.safetensors", "safetensors", {}, other)
    assert not is_random(tmp_path / "vae.safetensors")
    model = load_base_model(made)
    assert not is_random(save_model(model, tmp_path / "trained.safetensors"))
