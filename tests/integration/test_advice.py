"""Unusual settings, and those that make a GPU wait, are reported before a run starts."""

import pytest
import torch

from impasto.config.load import build_run_config
from impasto.models.networks.loading import load_base_model
from impasto.training.planning.advice import advice_on
from impasto.training.planning.exposure import Exposure


@pytest.fixture(scope="module")
def identity(nano_model):
    return load_base_model(str(nano_model)).identity


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"lr": 1e-4}}, "optimizer.lr 0.0001 is above the usual range for adamw"),
        ({"optimizer": {"kind": "prodigy", "lr": 1e-5}}, "is below the usual range for prodigy"),
        ({"optimizer": {"lr": 5e-6}, "noise": {"zero_terminal_snr": True}}, "predicts noise"),
        (
            {
                "optimizer": {"lr": 5e-6},
                "method": {"train_text_encoder": True, "text_encoder_lr": 1e-5},
            },
            "text encoder forgets fast",
        ),
        ({"optimizer": {"lr": 5e-6}}, None),
    ],
)
def test_what_is_unusual_is_said_before_training(train_config, identity, changes, words):
    config = train_config(**changes)
    one = Exposure(200, 1.0, 40.0, (10, 120))
    found = advice_on(config, identity, torch.device("cpu"), one, weights=860_000_000)
    assert [words in line for line in found] == ([] if words is None else [True])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": {"split": 0}}, None),
        ({"validation": {"split": 0, "copies": "bytes"}}, "validation.copies has no effect: no im"),
        (
            {"validation": {"split": 0, "every_steps": 50, "standard_error": 0.0}},
            "validation.every_steps and validation.standard_error have no effect: no images",
        ),
        ({"validation": {"split": 0.3, "every_steps": 50, "copies": "bytes"}}, None),
        ({"previews": {"every_epochs": 1}}, "previews.every_epochs has no effect: no previews"),
        ({"previews": {"hypernetworks": ["a.pt"]}}, "previews.hypernetworks has no effect"),
        ({"previews": {"sampler": "euler"}}, "previews.sampler has no effect"),
        ({"previews": {"sampler": "euler", "prompts": ["a cat"]}}, None),
        ({"previews": {"sampler": "euler", "prompt_file": "p.txt"}}, None),
    ],
)
def test_settings_of_what_is_off_are_named(train_config, identity, changes, words):
    config = train_config(optimizer={"lr": 5e-6}, **changes)
    one, cpu = Exposure(200, 1.0, 40.0, (10, 120)), torch.device("cpu")
    found = advice_on(config, identity, cpu, one, weights=860_000_000)
    assert [words in line for line in found] == ([] if words is None else [True])
    begun = build_run_config(config.model_dump(exclude_none=True), source="t", begun=True)
    assert not advice_on(begun, identity, cpu, one, weights=860_000_000)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"channels_last": True}, "training.channels_last without training.compile"),
        ({"ema_decay": 0.9, "ema_on_cpu": True}, "training.ema_every = 10"),
        ({"ema_decay": 0.9, "ema_on_cpu": True, "ema_every": 10, "max_steps": 20}, None),
        ({"channels_last": True, "compile": "full"}, None),
    ],
)
def test_what_makes_a_gpu_wait_is_said_of_gpus(train_config, identity, training, words):
    config = train_config(training=training, optimizer={"lr": 5e-6})
    one = Exposure(200, 1.0, 40.0, (10, 120))
    found = advice_on(config, identity, torch.device("cuda"), one, weights=860_000_000)
    assert [words in line for line in found] == ([] if words is None else [True])
    assert advice_on(config, identity, torch.device("cpu"), one, weights=860_000_000) == []
