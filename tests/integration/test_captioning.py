"""Captioners of several kinds through one code path: tiny random ones, whose output is fixed."""

import captioners
import pytest
import torch
from PIL import Image

from impasto.annotate import captioners as ours
from impasto.annotate.captioners import (
    PRESETS,
    Captioner,
    Generation,
    remove_read_text,
    require_generation,
    with_generation,
)
from impasto.errors import ConfigError, ModelError, OutOfMemoryError
from impasto.progress import SilentProgress

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CPU = torch.device("cpu")
IMAGES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture(params=list(captioners.KINDS))
def captioner(request, tmp_path):
    captioners.KINDS[request.param](tmp_path)
    return Captioner.load(str(tmp_path), CPU)


def test_each_kind_captions_a_batch_as_it_does_one_by_one(captioner):
    captioner.generation = Generation(beams=1, min_length=4, max_length=6)
    together = captioner.captions(IMAGES, NAMES)
    alone = [captioner.captions([i], [n])[0] for i, n in zip(IMAGES, NAMES, strict=True)]
    assert together == alone
    for text in together:
        assert 1 <= len(text.split()) <= 6
        assert not {"user", "describe", "<image>"} & set(text.split()[:1])
        assert text == " ".join(text.split())


def test_drawing_follows_the_seed(captioner):
    captioner.generation = Generation(beams=1, top_p=0.95, min_length=4, max_length=8)
    state = torch.random.get_rng_state()
    first = captioner.captions(IMAGES, NAMES)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert captioner.captions(IMAGES, NAMES) == first
    other = with_generation(captioner, seed=7)
    assert other.captions(IMAGES, NAMES) != first


def test_a_question_is_asked_and_not_repeated(captioner):
    captioner.generation = Generation(beams=2, min_length=3, max_length=6)
    captioner.prompt = "describe the sun"
    for text in captioner.captions(IMAGES[:2], NAMES[:2]):
        assert "describe the sun" not in text


def test_where_memory_runs_out_batches_are_halved(captioner, monkeypatch):
    told, sizes = [], []

    class Told(SilentProgress):
        def note(self, message):
            told.append(message)

    captioner.progress = Told()
    real = Captioner._generated

    def small(self, images, keys):
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, images, keys)

    monkeypatch.setattr(Captioner, "_generated", small)
    captioner.generation = Generation(beams=1, min_length=2, max_length=4)
    assert len(captioner.captions(IMAGES, NAMES)) == 3
    assert sizes == [3, 1, 2, 1, 1]
    assert "captioning 1 image at a time" in told[0]
    monkeypatch.setattr(Captioner, "_generated", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(OutOfMemoryError, match="a single image"):
        captioner.captions(IMAGES[:1], NAMES[:1])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a cat with the word meow on it", "a cat"),
        ("a sign that says stop", "a sign"),
        ("a shirt with the number 5 on it, on a bench", "a shirt, on a bench"),
        ("a woman that has the word love on her shirt", "a woman that"),
        ("a man with the number 7 on the front and a red hat", "a man and a red hat"),
        ('a jar with the words " jam of 1912 " on it and a spoon', "a jar and a spoon"),
        ("a street with a sign that says stop and two parked cars", "a street and two parked cars"),
        ("a wall that says 'i was here' on it", "a wall"),
        ("a woman reading a book in a library", "a woman reading a book in a library"),
        ("a book titled moby dick", "a book titled moby dick"),
        ("a can labeled soup, and a shelf", "a can labeled soup, and a shelf"),
        ("a dog with a red ball", "a dog with a red ball"),
    ],
)
def test_made_up_readings_are_cut_out(before, after):
    assert remove_read_text(before) == after


def test_files_that_are_no_captioner_are_named(tmp_path):
    with pytest.raises(ModelError, match="Salesforce/blip-image-captioning-large"):
        Captioner.load(str(tmp_path / "model_large_caption.pth"), CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Captioner.load(str(tmp_path), CPU)


def test_searches_are_those_of_others():
    assert PRESETS["sd-scripts"].options() == {
        "max_new_tokens": 75, "min_new_tokens": 5, "num_beams": 1, "do_sample": True,
        "repetition_penalty": 1.1, "top_p": 0.9, "temperature": 1.0, "top_k": 0,
    }  # fmt: skip
    assert PRESETS["a1111"].options()["min_new_tokens"] == 24
    assert PRESETS["a1111"].options()["max_new_tokens"] == 48
    for wrong in (Generation(beams=0), Generation(top_p=2), Generation(min_length=80)):
        with pytest.raises(ConfigError):
            require_generation(wrong)
    assert ours.CHAT_PROMPT
