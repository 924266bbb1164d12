"""Text: the shipped vocabulary, the chunks of tokens, and the states that the U-Net receives."""

from dataclasses import replace

import ftfy
import numpy as np
import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from impasto.errors import ConfigError
from impasto.models.families import SD1, SD2_BASE
from impasto.models.networks.loading import load_base_model
from impasto.models.networks.tokenizers import build_tokens, tokenizer_of
from impasto.models.text.text_conditioner import ClipTextConditioner
from impasto.models.text.text_states import ClipHiddenStates, TextStates
from impasto.models.tokenization import tokens as tokens_module
from impasto.models.tokenization.emphasis import parse_emphasis
from impasto.models.tokenization.joining import apply_emphasis
from impasto.models.tokenization.text_metadata import LAYOUT_KEY, layout_metadata, prompt_layout
from impasto.models.tokenization.tokens import EOS_ID, TextLayout, TextTokens
from impasto.models.tokenization.vocabulary import EOS, merges, token_ids

FAMILY_OF = {False: SD1, True: SD2_BASE}
NAME_OF = {False: "sd1", True: "sd2"}


def kohya_tokens(v2: bool, length: int, emphasis="off") -> TextTokens:
    family = FAMILY_OF[v2]
    layout = TextLayout(length, "kohya", "plain", emphasis)
    reading = family.text_encoders[0].text
    pad_word = reading.pad_token if v2 else None
    return TextTokens(tokenizer_of({}, EOS), layout, reading.pad_id, pad_word)


def states_of(encoder, v2=False, clip_skip=None) -> TextStates:
    reading = FAMILY_OF[v2].text_encoders[0].text
    return TextStates({"text_encoder": ClipHiddenStates(encoder, reading, clip_skip)})


def filled(values, length=77):
    return (*values, *[values[-1]] * (length - len(values)))


@pytest.fixture(scope="module")
def a1111():
    def build(max_tokens=225, split="comma", emphasis="off", pad_id=EOS_ID):
        layout = TextLayout(max_tokens, "a1111", split, emphasis)
        return TextTokens(tokenizer_of({}, EOS), layout, pad_id)

    return build


def test_the_vocabulary_is_clips():
    ids = token_ids()
    assert len(ids) == 49408
    assert len(merges()) == 48894
    assert ids["<|startoftext|>"] == 49406
    assert ids["<|endoftext|>"] == 49407
    assert ids["cat</w>"] == 2368


def test_tokens_equal_the_recorded_ones(golden):
    """70 prompts of SD 1 and SD 2 at each length; Chinese punctuation, mojibake, ligatures."""
    recorded = golden("tokens.json")
    assert len(recorded["results"]) == 6
    for case in recorded["results"]:
        tokens = kohya_tokens(case["v2"], case["max_token_length"])
        for prompt, chunks in zip(recorded["prompts"], case["ids"], strict=True):
            expected = tuple(filled(chunk) for chunk in chunks)
            assert tokens(prompt).ids == expected, (case["max_token_length"], prompt)


def test_weighted_tokens_equal_the_recorded_ones(golden):
    for case in golden("tokens_weighted.json"):
        tokens = kohya_tokens(case["v2"], case["max_token_length"], "no_norm")
        found = tokens(case["prompt"])
        assert found.ids == tuple(filled(chunk) for chunk in case["ids"]), case["prompt"]
        for ours, recorded in zip(found.weights, case["weights"], strict=True):
            assert ours == pytest.approx(filled(recorded), abs=1e-6), case["prompt"]


@pytest.fixture(scope="module")
def tiny_encoders():
    """The recorded random encoder of four layers, with both activations."""
    tensors = load_file(GOLDEN / "clip_tiny.safetensors")
    rows, ids = tensors.pop("token_rows"), tensors.pop("token_ids")
    table = torch.zeros(49408, 24)
    table[ids] = rows.float()
    encoders = {}
    for v2 in (False, True):
        config = CLIPTextConfig(
            vocab_size=49408, hidden_size=24, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=3, hidden_act=FAMILY_OF[v2].text_encoders[0].text.activation,
        )  # fmt: skip
        model = CLIPTextModel(config)
        state = {name: tensor.float() for name, tensor in tensors.items()}
        state["embeddings.token_embedding.weight"] = table
        model.load_state_dict(state, strict=True)
        encoders[v2] = model.eval()
    return encoders


@pytest.mark.parametrize("v2", [False, True], ids=["sd1", "sd2"])
@pytest.mark.parametrize("length", [75, 150, 225])
@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_states_equal_the_recorded_ones(golden, tiny_encoders, v2, length, clip_skip):
    """States joined to 77, 152 and 227 positions equal sd-scripts', to float32 rounding."""
    prompts = golden("clip_states.json")["prompts"]
    recorded = np.load(GOLDEN / "clip_states.npz")[f"{NAME_OF[v2]}_{length}_{clip_skip}"]
    states = states_of(tiny_encoders[v2], v2, clip_skip)
    found = ClipTextConditioner([kohya_tokens(v2, length)], states)(prompts)
    assert recorded.shape[1] == length + 2
    torch.testing.assert_close(
        found.arguments["encoder_hidden_states"], torch.from_numpy(recorded), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("v2", [False, True], ids=["sd1", "sd2"])
@pytest.mark.parametrize("length", [75, 225])
def test_weighted_states_equal_the_recorded_ones(golden, tiny_encoders, v2, length):
    prompt = golden("clip_states.json")["weighted"]
    recorded = np.load(GOLDEN / "clip_states.npz")[f"{NAME_OF[v2]}_{length}_weighted"]
    conditioner = ClipTextConditioner(
        [kohya_tokens(v2, length, "no_norm")], states_of(tiny_encoders[v2], v2, 2)
    )
    found = conditioner([prompt]).arguments["encoder_hidden_states"]
    recorded = torch.from_numpy(recorded).reshape(found.shape)
    torch.testing.assert_close(found, recorded, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("residue", [0.0, 1e-9])
def test_a_mean_that_is_rounding_is_not_brought_back(residue):
    states = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]).repeat(1, 4)[None, None]
    weights = torch.tensor([[[1.0, 1.2, 1.0]]])
    found = apply_emphasis(states + residue, weights, keep_mean=True)
    torch.testing.assert_close(found, states * weights.unsqueeze(-1))
    assert not torch.equal(
        apply_emphasis(states + 1, weights, keep_mean=True), (states + 1) * weights[..., None]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_that_is_rounding_spoils_no_gradient(dtype):
    states = torch.nn.functional.layer_norm(torch.randn(1, 2, 77, 64), (64,)).to(dtype)
    states[0, 1] = 0
    states.requires_grad_()
    weights = torch.ones(1, 2, 77)
    weights[0, 0, 5] = 1.2
    found = apply_emphasis(states, weights, keep_mean=True)
    torch.testing.assert_close(found, (states * weights.unsqueeze(-1)).to(found.dtype))
    found.sum().backward()
    assert states.grad.isfinite().all()


def test_emphasis_follows_the_grammar():
    assert parse_emphasis("a (b) [c]") == [
        ("a ", 1.0), ("b", 1.1), (" ", 1.0), ("c", pytest.approx(1 / 1.1))
    ]  # fmt: skip
    assert parse_emphasis("((a:1.5) b)") == [("a", pytest.approx(1.65)), (" b", 1.1)]
    assert parse_emphasis(r"\(a\) a: b)") == [("(a) a: b)", 1.0)]
    assert parse_emphasis("(a") == [("a", 1.1)]
    assert parse_emphasis("[a:0.5]") == [("a:0.5", pytest.approx(1 / 1.1))]
    assert parse_emphasis("") == [("", 1.0)]
    assert parse_emphasis("(a:.)") == [("a:.)", 1.1)]


def test_a1111_takes_chunks_as_needed(a1111):
    tokens = a1111(split="plain")
    assert [len(tokens("cat " * n).ids) for n in (0, 1, 75, 76, 150, 151, 225, 300)] == [
        1, 1, 1, 2, 2, 3, 3, 3
    ]  # fmt: skip
    first, second = tokens("cat " * 76).ids
    assert first == (49406, *[2368] * 75, 49407)
    assert second == (49406, 2368, *[49407] * 75)


def test_a_comma_carries_its_words_over(a1111):
    """With 70 words, a comma and 10 words, the words after the comma move on, as in A1111."""
    text = "cat " * 70 + ", " + "dog " * 10
    first, second = a1111()(text).ids
    assert first == (49406, *[2368] * 70, 267, *[49407] * 5)
    assert second[1:12] == (*[1929] * 10, 49407)
    assert a1111(split="plain")(text).ids[0][72:76] == (1929,) * 4
    far = "cat " * 50 + ", " + "dog " * 30
    assert a1111()(far).ids == a1111(split="plain")(far).ids


def test_nothing_is_carried_over_into_a_chunk_that_is_cut_off(a1111):
    text = "cat " * 70 + ", " + "dog " * 10
    found = a1111(max_tokens=75)(text)
    assert found.ids == ((49406, *[2368] * 70, 267, *[1929] * 4, 49407),)
    assert found.lost == 6


def test_break_begins_a_chunk(a1111):
    tokens = a1111(emphasis="mean")
    first, second = tokens("cat BREAK (dog:1.5)").ids
    assert (first[1], second[1], first[2], second[2]) == (2368, 1929, 49407, 49407)
    assert tokens("cat BREAK (dog:1.5)").weights[1][:3] == (1.0, 1.5, 1.0)
    assert len(tokens("cat BREAK").ids) == 1
    assert len(a1111()("cat BREAK dog").ids) == 1


def test_sd2_pads_with_zeros_after_the_end(a1111):
    (chunk,) = a1111(pad_id=0)("cat!").ids
    assert chunk == (49406, 2368, 256, 49407, *[0] * 73)


def test_a_batch_is_filled_up_with_empty_chunks(tiny_encoders, a1111):
    conditioner = ClipTextConditioner([a1111()], states_of(tiny_encoders[False]))
    short, long = "a cat", "the quick brown fox jumps over a lazy dog " * 10
    both = conditioner([short, long]).arguments["encoder_hidden_states"]
    assert both.shape == (2, 154, 24)
    alone = conditioner([short]).arguments["encoder_hidden_states"]
    empty = conditioner([""]).arguments["encoder_hidden_states"]
    assert alone.shape == empty.shape == (1, 77, 24)
    torch.testing.assert_close(both[:1], torch.cat([alone, empty], 1), atol=1e-6, rtol=1e-5)


def test_an_empty_caption_has_the_layout_of_all(tiny_encoders):
    states = states_of(tiny_encoders[True], v2=True)
    conditioner = ClipTextConditioner([kohya_tokens(True, 225)], states)
    assert conditioner([""]).arguments["encoder_hidden_states"].shape == (1, 227, 24)


def test_the_mean_is_kept_as_a1111_does(tiny_encoders, a1111):
    """The mean is preserved by z * w * mean(z) / mean(z * w), over one chunk of one text."""
    states = states_of(tiny_encoders[False])
    plain = ClipTextConditioner([a1111()], states)(["a cat"]).arguments["encoder_hidden_states"]
    found = ClipTextConditioner([a1111(emphasis="mean")], states)(["a (cat:1.5)", "x"])
    weighted = plain.clone()
    weighted[:, 2] *= 1.5
    expected = weighted * (plain.mean() / weighted.mean())
    torch.testing.assert_close(
        found.arguments["encoder_hidden_states"][:1], expected, atol=1e-5, rtol=1e-4
    )


def test_what_a_file_says_of_its_texts_is_checked():
    for said in ('{"max_tokens": 1000000000, "join": "kohya"}', '{"join": "x"}', "[", "[1]"):
        assert prompt_layout({LAYOUT_KEY: said}) == TextLayout(225, emphasis="mean")
    kohya = TextLayout(150, "kohya", "plain")
    assert prompt_layout(layout_metadata(kohya)) == replace(kohya, emphasis="mean")


def test_the_last_layer_is_what_transformers_gives(nano_model):
    model = load_base_model(nano_model)
    tokens = build_tokens(model, TextLayout())
    conditioner = ClipTextConditioner(tokens, TextStates.of(model))
    ids = torch.tensor([tokens[0](text).ids[0] for text in ("a red ball", "")])
    ours = conditioner(["a red ball", ""]).arguments["encoder_hidden_states"]
    assert torch.equal(ours, model.networks["text_encoder"](ids).last_hidden_state)


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_is_a_shorter_encoder(nano_model, clip_skip):
    """Clip skip equals an encoder without its last layers, independent of hidden_states."""
    model, shorter = load_base_model(nano_model), load_base_model(nano_model)
    encoder = shorter.networks["text_encoder"]
    layers = encoder.encoder.layers
    encoder.encoder.layers = layers[: len(layers) - (clip_skip - 1)]
    tokens = build_tokens(model, TextLayout())
    conditioner = ClipTextConditioner(tokens, TextStates.of(model, clip_skip))
    ours = conditioner(["a red ball"]).arguments["encoder_hidden_states"]
    ids = torch.tensor(tokens[0]("a red ball").ids)
    torch.testing.assert_close(ours, encoder(ids).last_hidden_state)


def test_clip_skip_beyond_the_encoder_is_explained(nano_model):
    with pytest.raises(ConfigError, match="has 3 layers"):
        TextStates.of(load_base_model(nano_model), 4)


def test_layers_after_the_chosen_one_are_known(nano_model):
    (states,) = TextStates.of(load_base_model(nano_model), 3).each()
    assert states.unused_modules() == list(states.text_encoder.encoder.layers[-2:])


@pytest.mark.parametrize("length", [75, 150])
def test_captions_that_lose_words_are_counted(a1111, length):
    texts = ["cat " * length, "cat " * (length + 1), "cat"]
    assert a1111(max_tokens=length).too_long(texts) == 1
    assert kohya_tokens(False, length).too_long(texts) == 1


WORDS = [
    "cat", "1girl,", "!", "&amp;", "&nGt;", "ﬃ", "日本", "(a:1.2)", "BREAK", "mustn\u2019t", "🐈",
    "x" * 80, "....", "\t", "<|endoftext|>", "a" * 9,
]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)
        | st.text(max_size=90)
        | st.text("az ,", min_size=60, max_size=400),
        max_size=6,
    ),
    length=st.sampled_from([75, 150]),
    emphasis=st.sampled_from(["off", "mean"]),
    v2=st.booleans(),
)
def test_captions_are_counted_together_as_they_are_one_by_one(texts, length, emphasis, v2):
    reading = FAMILY_OF[v2].text_encoders[0].text
    for join, split in (("kohya", "plain"), ("a1111", "comma")):
        layout = TextLayout(length, join, split, emphasis)
        pad_word = reading.pad_token if v2 else None
        tokens = TextTokens(tokenizer_of({}, EOS), layout, reading.pad_id, pad_word)
        assert tokens.too_long(texts) == sum(tokens(text).lost > 0 for text in texts)


@given(st.text(st.characters(max_codepoint=127)))
def test_text_that_is_not_repaired_needs_no_repair(text):
    assert tokens_module._repaired(text) == ftfy.fix_text(text)
