"""Exported SDXL models record how their runs encoded empty captions."""

import json

import pytest
import torch
from safetensors import safe_open

from impasto.models.networks.hypernetwork import HypernetworkStack
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.inspection import inspect_model
from impasto.progress import SilentProgress
from impasto.sampling.drawing import prepare_sampler
from impasto.training.trainer import train


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_exported_model_says_what_it_was_trained_with(train_config, nano_sdxl_model, tmp_path):
    """Without a setting, the base model's own value is kept."""
    base = nano_sdxl_model
    for number, (choice, form, zeroes) in enumerate(
        (
            ("auto", "diffusers", False),
            ("zeros", "safetensors", True),
            ("auto", "diffusers", True),
            ("encoded", "diffusers", False),
        )
    ):
        run = train(
            train_config(
                output_dir=str(tmp_path / f"{number}"),
                model={"path": str(base), "empty_text": choice},
                dataset={"caption_dropout_rate": 0.5},
                training={"max_steps": 1},
                saving={"format": form},
            )
        )
        base = run.exported_model()
        if form == "diffusers":
            index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
            assert index["force_zeros_for_empty_prompt"] is zeroes
        else:
            with safe_open(base, "pt") as file:
                assert file.metadata().get("impasto.empty_text") == ("zeros" if zeroes else None)
        said = inspect_model(str(base), OpenOptions(), SilentProgress(), hashing=False)["Model"]
        assert ("Empty prompt" in said) == zeroes
        drawer = prepare_sampler(load_base_model(base), HypernetworkStack(), torch.device("cpu"))
        assert drawer.zeroes_empty_text == zeroes
