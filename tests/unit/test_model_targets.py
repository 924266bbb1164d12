"""The form that a path stands for: one rule about suffixes for every verb that writes a model."""

from pathlib import Path

import pytest

from impasto.errors import ConfigError
from impasto.models.writing.targets import form_of, require_folder_name


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("o.safetensors", "safetensors"), ("o.SAFETENSORS", "safetensors"), ("o.CKPT", "ckpt"),
        ("o", "diffusers"), ("model-v1.5", "diffusers"), ("a.fp16", "diffusers"),
        ("v1.5.safetensors", "safetensors"),
    ],
)  # fmt: skip
def test_the_ending_says_the_form(name, form):
    assert form_of(Path(name), None) == form


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("o.pt", "extension .safetensors or .ckpt, or"),
        ("o.PT", ".PT, but"), ("o.PTH", ".PTH, but"), ("o.bin", "Use the extension"),
        ("o.safetensor", "extension .safetensors, or"), ("o.cpkt", "extension .ckpt, or"),
        ("o.gguf", ".gguf"), ("o.onnx", ".onnx"), ("o.whatever", "or none for"),
    ],
)  # fmt: skip
def test_other_endings_are_no_folders(name, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        form_of(Path(name), None)
    with pytest.raises(ConfigError, match="Diffusers folder"):
        require_folder_name(Path(name))


def test_a_word_after_a_dot_is_a_folder_when_that_is_asked_for():
    assert form_of(Path("my.style"), "diffusers") == "diffusers"
    with pytest.raises(ConfigError):
        form_of(Path("my.bin"), "diffusers")


def test_form_and_ending_contradict():
    with pytest.raises(ConfigError, match="Change one"):
        form_of(Path("o.CKPT"), "safetensors")
    with pytest.raises(ConfigError):
        require_folder_name(Path("o.Safetensors"))
    require_folder_name(Path("sd-v1.5"))
