"""SDXL's two encoders, its sizes and its tokens, against sd-scripts' recorded results."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from diffusers.models.embeddings import Timesteps
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from impasto.data.caching.text_npz import GivenTexts, read_text_npz
from impasto.data.records import Box, Geometry, Size
from impasto.models.families import SDXL
from impasto.models.networks.tokenizers import tokenizer_of
from impasto.models.text.text_conditioner import ClipTextConditioner
from impasto.models.text.text_exchange import shape_in_files
from impasto.models.text.text_memory import TextCache
from impasto.models.text.text_states import ClipHiddenStates, TextStates
from impasto.models.tokenization.tokens import TextLayout, TextTokens
from impasto.models.tokenization.vocabulary import EOS

FIRST, SECOND = SDXL.text_encoders


def kohya_tokens(part, length) -> TextTokens:
    pad_word = part.text.pad_token if part.text.eats_pad else None
    layout = TextLayout(length, "kohya", "plain", "off")
    return TextTokens(tokenizer_of({}, EOS), layout, part.text.pad_id, pad_word)


def recorded_encoder(number, kind, part, **config):
    tensors = load_file(GOLDEN / f"sdxl_encoder_{number}.safetensors")
    rows, ids = tensors.pop("token_rows"), tensors.pop("token_ids")
    table = torch.zeros(49408, rows.shape[1])
    table[ids] = rows.float()
    model = kind(CLIPTextConfig(vocab_size=49408, hidden_act=part.text.activation, **config))
    projection = tensors.pop("text_projection.weight", None)
    state = {name: tensor.float() for name, tensor in tensors.items()}
    state["embeddings.token_embedding.weight"] = table
    inner = getattr(model, "text_model", model)
    inner.load_state_dict(state, strict=True)
    if projection is not None:
        model.text_projection.weight.data = projection.float()
    return ClipHiddenStates(model.eval(), part.text)


@pytest.fixture(scope="module")
def states():
    first = recorded_encoder(
        1, CLIPTextModel, FIRST, hidden_size=12, intermediate_size=24, projection_dim=12,
        num_hidden_layers=12, num_attention_heads=3,
    )  # fmt: skip
    second = recorded_encoder(
        2, CLIPTextModelWithProjection, SECOND, hidden_size=20, intermediate_size=40,
        projection_dim=20, num_hidden_layers=5, num_attention_heads=5,
    )  # fmt: skip
    return TextStates({FIRST.name: first, SECOND.name: second})


@pytest.mark.parametrize("length", [75, 150, 225])
def test_states_and_pooled_text_equal_the_recorded_ones(golden, states, length):
    """The states are layer 11 and the last but one, without a norm; pooled is the first chunk's."""
    prompts, recorded = golden("sdxl.json")["prompts"], np.load(GOLDEN / "sdxl_states.npz")
    conditioner = ClipTextConditioner(
        [kohya_tokens(part, length) for part in (FIRST, SECOND)],
        states,
        states.shape,
        sizes=SDXL.sizes,
    )
    geometry = Geometry(Size(64, 64), Box(0, 0, Size(64, 64)))
    found = conditioner(prompts, [geometry] * len(prompts)).arguments
    expected = np.concatenate(
        [recorded[f"len{length}_states_{number}"] for number in (1, 2)], axis=-1
    )
    close = {"atol": 3e-6, "rtol": 1e-5}
    torch.testing.assert_close(found["encoder_hidden_states"], torch.from_numpy(expected), **close)
    pooled = torch.from_numpy(recorded[f"len{length}_pooled"])
    torch.testing.assert_close(found["added_cond_kwargs"]["text_embeds"], pooled, **close)


@pytest.mark.parametrize("length", [75, 150, 225])
def test_files_of_these_states_give_them_back(golden, states, length, tmp_path):
    """Files in the format of sd-scripts' `cache_batch_outputs` are enough, except for empty chunks.

    Of 152 or 227 positions each chunk lacks those that the joined caption lacks.
    """
    prompts, recorded = golden("sdxl.json")["prompts"], np.load(GOLDEN / "sdxl_states.npz")
    tokens = [kohya_tokens(part, length) for part in (FIRST, SECOND)]
    shape = shape_in_files(states.shape, tokens[0].layout)
    cutting, files, places = ClipTextConditioner(tokens, states), {}, {}
    empty = cutting.chunks_of("")[0]
    names = {"hidden_state1": "states_1", "hidden_state2": "states_2", "pool2": "pooled"}
    for number, prompt in enumerate(prompts):
        file = tmp_path / f"{number}_te_outputs.npz"
        arrays = {n: recorded[f"len{length}_{own}"][number] for n, own in names.items()}
        np.savez(file, **arrays)
        text = read_text_npz(file, shape)
        for place, ids in enumerate(cutting.chunks_of(prompt)):
            if ids != empty or length == 75:  # it ends texts, and is not the last of its file
                files.setdefault(ids, (file, text.digest))
                places.setdefault(ids, place)
    memory = TextCache(1 << 24, torch.device("cpu"), given=GivenTexts(files, shape, places))
    encoded = []

    class Watched(TextStates):
        def forward(self, ids):
            encoded.extend(map(tuple, ids.tolist()))
            return super().forward(ids)

    watched = Watched(states.by_name())
    conditioner = ClipTextConditioner(
        tokens, watched, states.shape, sizes=SDXL.sizes, memory=memory
    )
    geometry = Geometry(Size(64, 64), Box(0, 0, Size(64, 64)))
    found = conditioner(prompts, [geometry] * len(prompts)).arguments
    expected = [recorded[f"len{length}_states_{number}"] for number in (1, 2)]
    pooled = found["added_cond_kwargs"]["text_embeds"]
    close = {"atol": 3e-6, "rtol": 1e-5}  # of encoded chunks; the others are identical
    for found_one, expected_one in (
        (found["encoder_hidden_states"], np.concatenate(expected, axis=-1)),
        (pooled, recorded[f"len{length}_pooled"]),
    ):
        torch.testing.assert_close(found_one, torch.from_numpy(expected_one), **close)
    assert set(encoded) <= {empty}


def test_an_exclamation_mark_is_a_word_for_the_second_encoder(golden):
    for case in golden("sdxl.json")["words_with_pad"]:
        tokens = kohya_tokens(SECOND, case["max_token_length"])
        for prompt, chunks in zip(case["prompts"], case["ids_2"], strict=True):
            filled = tuple((*c, *[c[-1]] * (77 - len(c))) for c in chunks)
            assert tokens(prompt).ids == filled, prompt


def test_sizes_are_told_as_recorded(golden):
    """Six numbers in sd-scripts' order, each expanded by diffusers' layer to 256 values."""
    layer = Timesteps(SDXL.sizes.width, flip_sin_to_cos=True, downscale_freq_shift=0)
    for case in golden("sdxl.json")["sizes"]:
        height, width, top, left, target_height, target_width = case["numbers"]
        geometry = Geometry(
            Size(width, height),
            Box(left, top, Size(target_width, target_height)),
        )
        numbers = SDXL.sizes.numbers(geometry)
        assert list(numbers) == case["numbers"]
        embedded = layer(torch.tensor(numbers)).flatten()
        torch.testing.assert_close(embedded, torch.tensor(case["embedding"]), atol=2e-4, rtol=0)
