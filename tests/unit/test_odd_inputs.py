"""Unusual values of environment variables, commands, names and taggers' files."""

import os
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from impasto.annotate.deepdanbooru import DeepDanbooruTagger
from impasto.annotate.tag_tables import read_selected_tags
from impasto.checkpoints.reading import METADATA_ENTRY, open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import write_ckpt, write_safetensors
from impasto.config.load import build_run_config, dump_toml
from impasto.errors import ConfigError, ModelError
from impasto.invocation import is_first_process
from impasto.sdscripts.importing import command_to_toml
from impasto.training.parallel.accelerate_config import read_sharding

NOT_UTF8 = os.fsdecode(b"caf\xe9") if sys.platform != "win32" else "caf\udce9"
SETTINGS = {
    "output_dir": "r", "model": {"path": "m"}, "dataset": {"image_dir": "p"},
    "training": {"max_steps": 2},
}  # fmt: skip
COMMAND = [
    "fine_tune.py", "--pretrained_model_name_or_path", "m", "--train_data_dir", "p",
    "--resolution", "64", "--output_dir", "o",
]  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "first"),
    [(None, True), ("", True), (" ", True), ("0", True), ("1", False), ("x", True), ("-1", True)],
)
def test_a_rank_that_is_empty_or_no_number_is_none(monkeypatch, rank, first):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() is first


def test_an_empty_stage_of_deepspeed_is_the_default(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    assert read_sharding(4).gradients == 4


def test_a_deepdanbooru_file_with_a_single_number_for_a_weight(tmp_path):
    torch.save({"tags": ["a"], "n_Conv_0.weight": torch.tensor(1.0)}, tmp_path / "d.pt")
    with pytest.raises(ModelError, match="is not DeepDanbooru's"):
        DeepDanbooruTagger(tmp_path / "d.pt", torch.device("cpu"))


def test_a_folder_is_no_table_of_tags(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        read_selected_tags(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.path", NOT_UTF8),
        ("model.path", Path(NOT_UTF8)),
        ("saving.model_dir", NOT_UTF8),
        ("validation.image_dir", NOT_UTF8),
        ("previews.prompts", ["a", NOT_UTF8]),
        ("output_dir", f"{NOT_UTF8}/x"),
        ("saving.metadata", {"title": NOT_UTF8}),
    ],
)
def test_what_a_settings_file_cannot_hold_is_named_before_anything_is_done(place, value):
    tree = {key: dict(v) if isinstance(v, dict) else v for key, v in SETTINGS.items()}
    *sections, key = place.split(".")
    section = tree
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    with pytest.raises(ConfigError, match=rf"cli: {place}.* is caf.*not UTF-8"):
        build_run_config(tree, source="cli")
    assert dump_toml(build_run_config(SETTINGS, source="cli"))


def test_a_title_from_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path):
    tensors = {"a": LazyTensor.of(torch.ones(2))}
    metadata = {"modelspec.title": NOT_UTF8}
    write_safetensors(tmp_path / "m.safetensors", tensors, metadata)
    write_ckpt(tmp_path / "m.ckpt", tensors, metadata)
    for name in ("m.safetensors", "m.ckpt"):
        assert open_tensor_file(tmp_path / name).metadata["modelspec.title"] == "caf\\xe9"
    content = torch.load(tmp_path / "m.ckpt", weights_only=True)
    assert content[METADATA_ENTRY] == {"modelspec.title": "caf\\xe9"}


@pytest.mark.parametrize("odd", ["a\nb = 1", "a\r\nb", "a\x0bb", "a\u2028b", "a\x85b", "a\x00b"])
@pytest.mark.parametrize("flag", ["--caption_separator", "--output_name", "--resume"])
def test_an_old_command_becomes_toml_whatever_is_in_its_words(flag, odd):
    try:
        text = command_to_toml([*COMMAND, flag, odd])
    except ConfigError:  # not a file name
        assert flag == "--output_name"
        return
    settings = tomllib.loads(text)
    assert "b" not in settings
    if flag == "--caption_separator":
        assert settings["dataset"]["caption_separator"] == odd
