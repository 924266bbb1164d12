"""Sets of weights in a Diffusers folder: variants, shards, and missing ones."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from impasto.checkpoints.hub_listing import choose_weights
from impasto.checkpoints.weight_files import (
    WeightChoice,
    find_weights,
    read_weights,
    weight_sets_in,
)
from impasto.errors import ModelError
from impasto.models.families import SD1


def test_sets_by_name():
    names = [
        "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.non_ema.safetensors",
        "diffusion_pytorch_model.safetensors.index.bf16.json",
        "diffusion_pytorch_model.bf16-00001-of-00002.safetensors", "config.json", "notes.txt",
    ]  # fmt: skip
    assert weight_sets_in(names, SD1.unet.stems) == {
        None: "diffusion_pytorch_model.safetensors",
        "fp16": "diffusion_pytorch_model.fp16.bin",
        "non_ema": "diffusion_pytorch_model.non_ema.safetensors",
        "bf16": "diffusion_pytorch_model.safetensors.index.bf16.json",
    }
    assert weight_sets_in(
        ["model.safetensors", "pytorch_model.bin"], SD1.text_encoders[0].stems
    ) == {None: "model.safetensors"}


def sharded(folder, tensors):
    """Write a part as diffusers writes large ones: half of the tensors in each of two files."""
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    places = {}
    for number, half in enumerate(halves, 1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / file)
        places |= dict.fromkeys(half, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return index


def test_shards_are_read_together(tmp_path):
    tensors = {f"layer{n}": torch.full((2,), float(n)) for n in range(5)}
    sharded(tmp_path, tensors)
    (file,) = find_weights(tmp_path, SD1.unet.stems).values()
    found, _ = read_weights(file)
    assert {name: lazy.read().tolist() for name, lazy in found.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_shards_that_are_not_whole_are_refused(tmp_path):
    index = sharded(tmp_path, {f"layer{n}": torch.ones(1) for n in range(4)})
    second = tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors"
    kept = load_file(second)
    save_file({"layer3": kept["layer3"].clone()}, second)
    with pytest.raises(ModelError, match="layer2"):
        read_weights(index)
    second.unlink()
    with pytest.raises(ModelError, match="does not exist"):
        read_weights(index)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as an index"),
        ('{"weight_map": 3}', "cannot be read as an index"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "outside its folder"),
        ("[" * 5000, "cannot be read as an index"),
    ],
)
def test_an_odd_index_is_refused(tmp_path, content, words):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=words):
        read_weights(index)


def test_the_hub_gives_all_shards_of_the_set_that_is_asked_for():
    unet, weights = "unet/diffusion_pytorch_model", dict(SD1.folders.weights)
    listed = [
        f"{unet}.safetensors.index.json", f"{unet}-00001-of-00002.safetensors",
        f"{unet}-00002-of-00002.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors",
        "safety_checker/model.safetensors",
    ]  # fmt: skip
    assert set(choose_weights(listed, weights, WeightChoice())) == {
        *listed[:4], "text_encoder/model.safetensors",
    }  # fmt: skip
    half = WeightChoice(variant="fp16")
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in choose_weights(listed, weights, half)
    with pytest.raises(ModelError, match=r"'bf16'; it has fp16, the main files"):
        choose_weights(listed, weights, WeightChoice(variant="bf16"))


@pytest.mark.parametrize(
    "index", ["model.fp16.safetensors.index.json", "model.safetensors.index.fp16.json"]
)
@pytest.mark.parametrize(
    "shard", ["model.fp16-{}-of-00002.safetensors", "model-{}-of-00002.fp16.safetensors"]
)
def test_the_hub_gives_the_shards_of_a_variant_alone(index, shard):
    stems = {"text_encoder": SD1.text_encoders[0].stems}
    wanted = [index, *(shard.format(f"0000{n}") for n in (1, 2))]
    others = [
        "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.fp16.bin.index.json",
        "model.fp16-00001-of-00002.bin", "model.bf16.safetensors",
    ]  # fmt: skip
    listed = [f"text_encoder/{name}" for name in (*wanted, *others)]
    chosen = choose_weights(listed, stems, WeightChoice(variant="fp16"))
    assert sorted(chosen) == sorted(f"text_encoder/{name}" for name in wanted)
