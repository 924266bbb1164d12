"""Text: the shipped vocabulary, the tokens, and the layer that the U-Net sees."""

import pytest
import torch

from impasto.errors import ConfigError
from impasto.models.loading import load_base_model
from impasto.models.text import ClipStates, ClipTextConditioner
from impasto.models.vocabulary import merges, token_ids


def test_the_vocabulary_is_clips():
    ids = token_ids()
    assert len(ids) == 49408
    assert len(merges()) == 48894
    assert ids["<|startoftext|>"] == 49406
    assert ids["<|endoftext|>"] == 49407
    assert ids["cat</w>"] == 2368


def test_tokens_equal_the_recorded_ones(golden, nano_model):
    """70 prompts, Chinese punctuation, mojibake and ligatures among them."""
    recorded = golden("tokens_sd1_75.json")
    model = load_base_model(nano_model)
    conditioner = ClipTextConditioner(model.tokenizer, ClipStates(model.text_encoder))
    found = conditioner.token_ids(recorded["prompts"])
    for prompt, ids, row in zip(recorded["prompts"], recorded["ids"], found, strict=True):
        expected = torch.tensor(ids + [49407] * (77 - len(ids)))
        assert torch.equal(row, expected), prompt


def test_the_last_layer_is_what_transformers_gives(nano_model):
    model = load_base_model(nano_model)
    conditioner = ClipTextConditioner(model.tokenizer, ClipStates(model.text_encoder))
    ids = conditioner.token_ids(["a red ball", ""])
    ours = conditioner(["a red ball", ""])["encoder_hidden_states"]
    assert torch.equal(ours, model.text_encoder(ids).last_hidden_state)


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_is_a_shorter_encoder(nano_model, clip_skip):
    """Independent of hidden_states: the encoder with its last layers taken off."""
    model, shorter = load_base_model(nano_model), load_base_model(nano_model)
    layers = shorter.text_encoder.encoder.layers
    shorter.text_encoder.encoder.layers = layers[: len(layers) - (clip_skip - 1)]
    conditioner = ClipTextConditioner(model.tokenizer, ClipStates(model.text_encoder, clip_skip))
    ours = conditioner(["a red ball"])["encoder_hidden_states"]
    ids = conditioner.token_ids(["a red ball"])
    torch.testing.assert_close(ours, shorter.text_encoder(ids).last_hidden_state)


def test_clip_skip_beyond_the_encoder_is_explained(nano_model):
    with pytest.raises(ConfigError, match="has 3 layers"):
        ClipStates(load_base_model(nano_model).text_encoder, 4)


def test_layers_after_the_chosen_one_are_known(nano_model):
    states = ClipStates(load_base_model(nano_model).text_encoder, 3)
    assert states.unused_layers() == list(states.text_encoder.encoder.layers[-2:])


def test_captions_over_75_tokens_are_counted(nano_model):
    model = load_base_model(nano_model)
    conditioner = ClipTextConditioner(model.tokenizer, ClipStates(model.text_encoder))
    assert conditioner.too_long(["cat " * 75, "cat " * 76, "cat"]) == 1
