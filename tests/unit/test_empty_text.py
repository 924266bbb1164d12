"""SDXL's empty captions: the encoded empty text, or zeros as diffusers has them if asked."""

import json

import pytest
import torch
from safetensors import safe_open
from two_encoders import write_model

from impasto.data.records import Geometry, Size
from impasto.data.text_store import TextStore
from impasto.errors import ConfigError
from impasto.models.families import SDXL
from impasto.models.hypernetwork import HypernetworkStack
from impasto.models.inspection import inspect_model
from impasto.models.loading import build_tokens, load_base_model
from impasto.models.opening import OpenOptions
from impasto.models.text import ClipTextConditioner, TextStates
from impasto.models.text_memory import TextCache
from impasto.models.tokens import TextLayout
from impasto.progress import SilentProgress
from impasto.sampling.drawing import prepare_sampler
from impasto.training.fingerprint import differences, settings_fingerprint
from impasto.training.methods import build_trainable
from impasto.training.trainer import train

CPU = torch.device("cpu")
CAPTIONS = ["a red ball", "", " \n"]
GEOMETRY = [Geometry.whole(Size(64, 96))] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory, nano_architecture):
    return write_model(nano_architecture, tmp_path_factory.mktemp("models") / "sdxl", SDXL)


@pytest.fixture(scope="module")
def model(folder):
    return load_base_model(folder)


def conditioner(model, **others):
    states = TextStates.of(model)
    tokens = build_tokens(model, TextLayout())
    return ClipTextConditioner(tokens, states, states.shape, sizes=SDXL.sizes, **others)


def told(conditioner):
    arguments = conditioner(CAPTIONS, GEOMETRY).arguments
    return arguments["encoder_hidden_states"], *arguments["added_cond_kwargs"].values()


def test_empty_captions_are_zeros_and_their_sizes_stay(model):
    states, pooled, sizes = told(conditioner(model, zeroes_empty=True))
    encoded, encoded_pooled, same_sizes = told(conditioner(model))
    assert torch.equal(states[0], encoded[0])
    assert torch.equal(pooled[0], encoded_pooled[0])
    assert not states[1:].any()
    assert not pooled[1:].any()
    assert torch.equal(sizes, same_sizes)
    assert encoded[1:].any(dim=-1).all()


def test_no_gradient_comes_of_what_is_zeros(folder):
    learning = conditioner(load_base_model(folder), zeroes_empty=True, train=True)
    learning._states.requires_grad_(requires_grad=True)
    for captions, learns in (([""], False), (["a", ""], True)):
        found = learning(captions, GEOMETRY[: len(captions)]).arguments
        total = (
            found["encoder_hidden_states"].sum() + found["added_cond_kwargs"]["text_embeds"].sum()
        )
        parameters = list(learning._states.parameters())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        assert any(g is not None and g.any() for g in gradients) == learns


def test_what_is_kept_on_disk_serves_both(model, tmp_path):
    """The text encoders' answers are kept, not the zeros: no run reads another one's choice."""
    for zeroes in (True, False, True):
        memory = TextCache(1 << 20, CPU, TextStore(tmp_path / "texts", "same"))
        kept = conditioner(model, memory=memory, zeroes_empty=zeroes)
        kept.precompute(CAPTIONS)
        states, pooled, _ = told(kept)
        assert bool(states[1].any()) == bool(pooled[1].any()) == (not zeroes)
    assert len(TextStore(tmp_path / "texts", "same")) == 2  # the words, and the empty chunk


def test_models_that_know_no_zeros_refuse_them(train_config, nano_model):
    config = train_config(model={"path": str(nano_model), "empty_text": "zeros"})
    with pytest.raises(ConfigError, match=r"model\.empty_text zeros has no effect.*SD 1\.x"):
        build_trainable(config, load_base_model(nano_model))
    with pytest.raises(ConfigError, match=r"as zeros has no effect.*SD 1\.x"):
        prepare_sampler(load_base_model(nano_model), HypernetworkStack(), CPU, zeroes_empty=True)


def test_another_choice_is_another_run(train_config):
    usual, zeros = (
        settings_fingerprint(train_config(model={"path": "x", "empty_text": choice}))
        for choice in ("encoded", "zeros")
    )
    (difference,) = differences(usual, zeros)
    assert 'model.empty_text (was "encoded", is "zeros")' in difference
    older = {name: value for name, value in usual.items() if name != "model.empty_text"}
    assert differences(older, usual) == []  # a state of a version that had no such setting


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_exported_model_says_what_it_was_trained_with(train_config, folder, tmp_path):
    """And one that was trained further says what it was trained with last."""
    base = folder
    for choice, form in (
        ("zeros", "safetensors"),
        ("zeros", "diffusers"),
        ("encoded", "diffusers"),
    ):
        run = train(
            train_config(
                output_dir=str(tmp_path / f"{choice}-{form}"),
                model={"path": str(base), "empty_text": choice},
                dataset={"caption_dropout_rate": 0.5},
                training={"max_steps": 1},
                saving={"format": form},
            )
        )
        base = run.exported_model()
        if form == "diffusers":
            index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
            assert index["force_zeros_for_empty_prompt"] is (choice == "zeros")
        else:
            with safe_open(base, "pt") as file:
                assert file.metadata()["impasto.empty_text"] == choice
        said = inspect_model(str(base), OpenOptions(), SilentProgress(), hashing=False)["Model"]
        assert ("Empty prompt" in said) == (choice == "zeros")
        drawer = prepare_sampler(load_base_model(base), HypernetworkStack(), CPU)
        assert drawer.zeroes_empty_negative == (choice == "zeros")
