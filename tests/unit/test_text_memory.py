"""A frozen encoder's states: encoded once per chunk, bounded in memory, the same from disk."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from impasto.data.caching.text_store import TextStore
from impasto.errors import ConfigError
from impasto.models.networks.tokenizers import tokenizer_of
from impasto.models.text.text_conditioner import ClipTextConditioner
from impasto.models.text.text_memory import TextCache
from impasto.models.tokenization.tokens import TextLayout, TextTokens
from impasto.models.tokenization.vocabulary import EOS
from impasto.owners import current_process

CPU = torch.device("cpu")


class CountingEncoder(nn.Module):
    """A stand-in for CLIP: states are computed from the ids, and chunks are counted."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.chunks = 0

    def forward(self, ids):
        self.chunks += len(ids)
        return self.scale * ids[..., None].float() / torch.tensor([49408.0, 100.0, 7.0])


@pytest.fixture(scope="module")
def tokens():
    return TextTokens(tokenizer_of({}, EOS), TextLayout(225, "a1111", "plain"))


def conditioner(tokens, encoder, **memory):
    limit = memory.pop("limit", 1 << 20)
    return ClipTextConditioner([tokens], encoder, memory=TextCache(limit, CPU, **memory))


def states(conditioner, captions):
    return conditioner(captions).arguments["encoder_hidden_states"]


def test_each_chunk_is_encoded_once_whatever_the_caption(tokens):
    encoder = CountingEncoder()
    remembering = conditioner(tokens, encoder)
    long = "cat " * 80
    first = states(remembering, [long, "dog", ""])
    assert encoder.chunks == 4  # two of the long caption, dog, and the empty padding chunk
    again = states(remembering, ["dog", "", long])
    assert encoder.chunks == 4
    assert torch.equal(again[2], first[0])
    assert torch.equal(states(ClipTextConditioner([tokens], encoder), [long, "dog", ""]), first)


def test_groups_are_of_one_size_and_change_nothing(tokens):
    """Groups have a fixed size, so that no state depends on how many other chunks were missing."""
    encoder = CountingEncoder()
    captions = ["cat " * 80, "dog", "", "bird", "a fish"]
    grouped = conditioner(tokens, encoder, at_once=4)
    expected = states(conditioner(tokens, CountingEncoder()), captions)
    assert torch.equal(states(grouped, captions), expected)
    assert encoder.chunks == 8  # six chunks, padded
    assert torch.equal(states(grouped, captions[1:]), expected[1:, :77])
    assert encoder.chunks == 8


def test_memory_stays_within_its_limit(tokens):
    encoder = CountingEncoder()
    size = 77 * 3 * 4
    remembering = conditioner(tokens, encoder, limit=2 * size)
    for caption in ("a", "b", "c", "c", "b"):
        states(remembering, [caption])
        assert remembering._memory.held_bytes <= 2 * size
    assert encoder.chunks == 3
    states(remembering, ["a"])  # the least recently used one was removed
    assert encoder.chunks == 4


def test_without_memory_everything_is_still_right(tokens):
    encoder = CountingEncoder()
    expected = states(ClipTextConditioner([tokens], encoder), ["a", "b"])
    assert torch.equal(states(conditioner(tokens, encoder, limit=0), ["a", "b"]), expected)


def test_states_come_back_from_disk_without_the_encoder(tokens, tmp_path):
    encoder = CountingEncoder()
    captions = [f"image number {n}" for n in range(40)] + ["cat " * 80]
    first = conditioner(tokens, encoder, store=TextStore(tmp_path, "clip"))
    first.precompute(captions)
    assert encoder.chunks == 43  # and the empty chunk
    first.precompute(captions)
    assert encoder.chunks == 43
    later = conditioner(tokens, CountingEncoder(), store=TextStore(tmp_path, "clip"))
    found = states(later, captions)
    assert later._states.chunks == 0
    assert torch.equal(found, states(ClipTextConditioner([tokens], encoder), captions))


def test_a_new_caption_encodes_one_more(tokens, tmp_path):
    encoder = CountingEncoder()
    conditioner(tokens, encoder, store=TextStore(tmp_path, "clip")).precompute(["a", "b"])
    conditioner(tokens, encoder, store=TextStore(tmp_path, "clip")).precompute(["a", "b", "c"])
    assert encoder.chunks == 4
    assert len(TextStore(tmp_path, "clip")) == 4


def test_another_encoder_or_precision_finds_nothing(tokens, tmp_path):
    store = TextStore(tmp_path, "clip")
    conditioner(tokens, CountingEncoder(), store=store).precompute(["a"])
    ids = tokens("a").ids[0]
    assert ids in TextStore(tmp_path, "clip")
    assert ids not in TextStore(tmp_path, "clip:skip=2")
    assert ids not in TextStore(tmp_path, "clip", torch.float16)


def test_a_damaged_shard_is_made_anew(tokens, tmp_path):
    encoder = CountingEncoder()
    conditioner(tokens, encoder, store=TextStore(tmp_path, "clip")).precompute(["a"])
    for shard in tmp_path.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-5])
    repaired = conditioner(tokens, encoder, store=TextStore(tmp_path, "clip"))
    repaired.precompute(["a"])
    assert encoder.chunks == 4
    assert states(repaired, ["a"]).shape == (1, 77, 3)


def test_what_a_killed_process_left_in_the_store_of_texts_goes(tmp_path):
    dead = replace(current_process(), start=1).token
    left = tmp_path / f".shard-text-x.safetensors.{dead}.00000000.partial"
    left.write_bytes(b"half")
    TextStore(tmp_path, "encoder").write([(1, 2)], torch.zeros(1, 77, 8))
    assert not left.exists()


def test_a_learning_encoder_is_not_cached(train_config):
    with pytest.raises(ConfigError, match="contradict each other"):
        train_config(training={"cache_text_to_disk": True}, method={"train_text_encoder": True})
