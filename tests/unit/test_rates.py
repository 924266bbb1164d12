"""Learning rates of blocks and of single text encoders; a part with rate 0 is not trained."""

from typing import get_args

import pytest
import torch
from torch import nn
from two_encoders import architecture

from impasto.config.load import build_run_config
from impasto.config.method import EncoderName
from impasto.errors import ConfigError
from impasto.models.families import FAMILIES, SDXL
from impasto.models.trainable import TrainedModule, block_of, freeze_blocks
from impasto.models.writing.architectures import meta_model_of_architecture
from impasto.training.builders.methods import build_trainable

BASE = {
    "output_dir": "run",
    "model": {"path": "m"},
    "dataset": {"image_dir": "."},
    "training": {"max_steps": 1},
    "optimizer": {"lr": 1e-5},
}


def config(**method):
    return build_run_config({**BASE, "method": method}, source="test")


@pytest.fixture
def build(nano_architecture):
    """Build the trained parts of a small SDXL by settings of the method, without values."""

    def make(**method):
        model = meta_model_of_architecture(architecture(nano_architecture, SDXL))
        return build_trainable(config(**method), model)

    return make


def test_the_settings_name_all_encoders_of_the_table():
    names = {part.name for family in FAMILIES for part in family.text_encoders}
    assert set(get_args(EncoderName)) == names


def test_the_longest_name_of_a_block_counts():
    blocks = ["down_blocks.1", "down_blocks.1.attentions.0", "down_blocks.10", "conv_in"]
    for name, block in (
        ("down_blocks.1.attentions.0.norm.weight", "down_blocks.1.attentions.0"),
        ("down_blocks.1.attentions.01.weight", "down_blocks.1"),
        ("down_blocks.1.resnets.0.conv1.weight", "down_blocks.1"),
        ("down_blocks.10.weight", "down_blocks.10"),
        ("mid_block.weight", ""),
    ):
        assert block_of(name, blocks) == block
        assert block_of(name, blocks[::-1]) == block


def test_a_layer_in_a_frozen_block_may_learn():
    module = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(1, 1), "c": nn.Linear(1, 1)})})
    rates = {"a": 0.0, "a.b": 0.5}
    freeze_blocks(module, rates)
    part = TrainedModule("unet", module, 1.0, rates)
    assert [(rate, [*names]) for rate, names in part.by_rate()] == [
        (0.5, ["a.b.weight", "a.b.bias"])
    ]
    assert part.count() == 2


def test_blocks_and_encoders_have_their_rates(build):
    trainable = build(
        train_text_encoder=True,
        text_encoder_lr=1e-6,
        text_encoder_lrs={"text_encoder_2": 0},
        block_lrs={"add_embedding": 2e-5, "down_blocks.1": 0, "down_blocks.1.attentions.0": 3e-5},
    )
    unet, first = trainable.modules
    rates = {name: rate for rate, names in unet.by_rate() for name in names}
    assert rates["add_embedding.linear_1.weight"] == 2e-5
    assert rates["conv_in.weight"] == 1e-5
    assert rates["down_blocks.1.attentions.0.proj_in.weight"] == 3e-5
    assert not any(name.startswith("down_blocks.1.resnets") for name in rates)
    assert (first.name, first.lr) == ("text_encoder", 1e-6)
    second = trainable.states.by_name()["text_encoder_2"]
    assert not second.text_encoder.training
    assert not any(parameter.requires_grad for parameter in second.parameters())


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"block_lrs": {"down_blocks.3": 1e-6}}, "has no such block"),
        ({"block_lrs": {"mid_block.upsamplers.0": 1e-6}}, "has no such block"),
        (
            {"block_lrs": dict.fromkeys(("conv_in", "time_embedding", "add_embedding", "mid_block",
             "down_blocks.0", "down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1",
             "up_blocks.2", "conv_norm_out", "conv_out"), 0)},
            "leaves every block",
        ),
        (
            {"train_text_encoder": True,
             "text_encoder_lrs": {"text_encoder": 0, "text_encoder_2": 0}},
            "leaves every text encoder",
        ),
    ],
)  # fmt: skip
def test_rates_that_fit_no_model_are_refused(build, method, words):
    with pytest.raises(ConfigError, match=words):
        build(**method)


def test_a_model_of_one_encoder_has_no_second(nano_architecture):
    model = meta_model_of_architecture(nano_architecture)
    asked = config(train_text_encoder=True, text_encoder_lrs={"text_encoder_2": 1e-6})
    with pytest.raises(ConfigError, match=r"it has text_encoder\. Remove it"):
        build_trainable(asked, model)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"text_encoder_lrs": {"text_encoder": 1e-6}}, "no effect without train_text_encoder"),
        ({"block_lrs": {"down_block.1": 1e-6}}, "'down_block.1' is not a U-Net block"),
        ({"block_lrs": {"down_blocks.1.attention.0": 1e-6}}, "is not a U-Net block"),
        ({"block_lrs": {"mid_block": -1}}, "expected 0 or more"),
        ({"train_text_encoder": True, "text_encoder_lrs": {"text_encoder_3": 0}}, "text_encoder_3"),
        (
            {"train_text_encoder": True, "text_encoder_lr": 1e-6,
             "text_encoder_lrs": {"text_encoder": 0, "text_encoder_2": 1e-6}},
            "names both encoders",
        ),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(method, words):
    with pytest.raises(ConfigError, match=words):
        config(**method)


def test_frozen_blocks_ask_for_no_rate_of_the_optimizer():
    prodigy = {**BASE, "optimizer": {"kind": "prodigy", "lr": 1.0}}
    build_run_config({**prodigy, "method": {"block_lrs": {"mid_block": 0}}}, source="test")
    with pytest.raises(ConfigError, match="one learning rate"):
        build_run_config({**prodigy, "method": {"block_lrs": {"mid_block": 0.5}}}, source="test")


def test_a_frozen_encoder_is_read_as_it_is_stored(tmp_path, nano_architecture):
    from nano_sdxl import write_sdxl_file

    from impasto.checkpoints.keymap import ComponentKind
    from impasto.models.networks.loading import load_base_model

    file = write_sdxl_file(nano_architecture, tmp_path / "xl.safetensors")
    model = load_base_model(
        file, dtypes={ComponentKind.TEXT: torch.bfloat16}, exact={"text_encoder_2"}
    )
    dtypes = {name: next(n.parameters()).dtype for name, n in model.text_encoders.items()}
    assert dtypes == {"text_encoder": torch.bfloat16, "text_encoder_2": torch.float32}
