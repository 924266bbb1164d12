"""Another process builds the same VAE, and computes in the same way."""

from pathlib import Path

import torch

from impasto.models.networks.vae import moments_encoder
from impasto.models.networks.vae_recipe import Arithmetic, load_vae, with_recipe
from impasto.models.reading.opening import OpenOptions


def test_the_other_process_computes_as_this_one(nano_model, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = Arithmetic.current()
    vae = load_vae(str(nano_model), OpenOptions())
    wanted = [
        Arithmetic(True, True, False, False),
        Arithmetic(False, False, True, True),
        Arithmetic(True, False, True, False),
    ]
    try:
        for arithmetic in wanted:
            arithmetic.apply()
            made = with_recipe(
                moments_encoder(vae, batch_size=1), vae, Path(nano_model), None, torch.device("cpu")
            )
            before.apply()  # as in a newly started process
            assert made.recipe().fingerprint == made.fingerprint
            assert Arithmetic.current() == arithmetic
    finally:
        before.apply()
