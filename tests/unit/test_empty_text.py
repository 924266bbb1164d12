"""SDXL's empty captions: the encoded empty text, or zeros as in diffusers on request."""

from dataclasses import replace

import pytest
import torch
from conftest import draw_images
from two_encoders import write_model

import impasto
from impasto.data.caching.text_store import TextStore
from impasto.data.records import Geometry, Size
from impasto.errors import ConfigError
from impasto.models.families import SDXL
from impasto.models.networks.hypernetwork import HypernetworkStack
from impasto.models.networks.loading import load_base_model
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.text.text_conditioner import ClipTextConditioner
from impasto.models.text.text_memory import TextCache
from impasto.models.text.text_states import TextStates
from impasto.models.tokenization.tokens import TextLayout
from impasto.sampling.drawing import prepare_sampler
from impasto.training.builders.methods import build_trainable
from impasto.training.builders.text import zeroes_empty_negative, zeroes_empty_text
from impasto.training.fingerprints.fingerprint import differences, settings_fingerprint

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
    states, pooled, sizes = told(conditioner(model, zeroes_empty_text=True))
    encoded, encoded_pooled, same_sizes = told(conditioner(model))
    assert torch.equal(states[0], encoded[0])
    assert torch.equal(pooled[0], encoded_pooled[0])
    assert not states[1:].any()
    assert not pooled[1:].any()
    assert torch.equal(sizes, same_sizes)
    assert encoded[1:].any(dim=-1).all()


def test_no_gradient_comes_of_what_is_zeros(folder):
    learning = conditioner(load_base_model(folder), zeroes_empty_text=True, train=True)
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
    """The encoders' outputs are stored, not the zeros: no run reads another's choice."""
    for zeroes in (True, False, True):
        memory = TextCache(1 << 20, CPU, TextStore(tmp_path / "texts", "same"))
        kept = conditioner(model, memory=memory, zeroes_empty_text=zeroes)
        kept.precompute(CAPTIONS)
        states, pooled, _ = told(kept)
        assert bool(states[1].any()) == bool(pooled[1].any()) == (not zeroes)
    assert len(TextStore(tmp_path / "texts", "same")) == 2  # the caption, and the empty chunk


def test_models_that_know_no_zeros_refuse_them(train_config, nano_model):
    config = train_config(model={"path": str(nano_model), "empty_text": "zeros"})
    with pytest.raises(ConfigError, match=r"model\.empty_text zeros has no effect.*SD 1\.x"):
        build_trainable(config, load_base_model(nano_model))
    with pytest.raises(ConfigError, match=r"as zeros has no effect.*SD 1\.x"):
        prepare_sampler(
            load_base_model(nano_model), HypernetworkStack(), CPU, zeroes_empty_text=True
        )


def test_another_choice_is_another_run(train_config):
    usual, zeros = (
        settings_fingerprint(train_config(model={"path": "x", "empty_text": choice}))
        for choice in ("auto", "zeros")
    )
    (difference,) = differences(usual, zeros)
    assert 'model.empty_text (was "auto", is "zeros")' in difference
    older = {name: value for name, value in usual.items() if name != "model.empty_text"}
    assert differences(older, usual) == []  # a state from before this setting


def test_captions_are_encoded_and_previews_follow_the_model_unless_settings_say(
    model, train_config
):
    for says in (True, False):
        base = replace(model, contents=replace(model.contents, zeroes_empty_text=says))
        for choice, captions, negative in (
            ("auto", False, says),
            ("encoded", False, False),
            ("zeros", True, True),
        ):
            config = train_config(model={"path": "x", "empty_text": choice})
            assert zeroes_empty_text(config, base) == captions
            assert zeroes_empty_negative(config, base) == negative


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_loop_of_ones_own_encodes_empty_captions_unless_told(model, nano_model, tmp_path):
    pictures = draw_images(tmp_path / "set", 2)
    says = replace(model, contents=replace(model.contents, zeroes_empty_text=True))
    for given, zeroes in (({}, False), ({"empty_text": "zeros"}, True)):
        batches = impasto.prepare(
            pictures, says, resolution=64, batch_size=1, enable_bucket=False, **given
        )
        assert bool(told(batches.conditioner)[0][1].any()) == (not zeroes)
    with pytest.raises(ConfigError, match=r"empty_text zeros has no effect.*SD 1\.x"):
        impasto.prepare(
            pictures, load_base_model(nano_model), resolution=256, batch_size=1, empty_text="zeros"
        )


def test_a_loop_of_ones_own_reads_sdxls_texts_at_the_layers_that_it_has(model, tmp_path):
    with pytest.raises(ConfigError, match=r"clip_skip=2\) does not apply to SDXL, whose text"):
        impasto.prepare(tmp_path, model, clip_skip=2)
