"""Values of flags that settings files cannot hold are refused where they are read."""

import pytest

from impasto.config.load import build_run_config, dump_toml
from impasto.errors import ConfigError
from impasto.parsing import parse_toml
from impasto.sdscripts.flag import FINE_TUNE
from impasto.sdscripts.translate import translate
from impasto.sdscripts.values import read_pairs, read_resolution, read_steps


def pairs(*words):
    return read_pairs("optimizer_args", {"optimizer_args": words})


@pytest.mark.parametrize(
    "value",
    [
        "None", "(1,None)", "...", "{[]:1}", "{1:2}", "{'a':None}", "b'x'", "1j", "{1,2}",
        "9223372036854775808", "-" * 100_000, "[" * 150 + "]" * 150, "(" * 150 + "1" + ",)" * 150,
        "\udce9", "'\\ud800'",
        "{'\\ud800':1}",
    ],
)  # fmt: skip
def test_what_toml_cannot_hold_is_refused(value):
    with pytest.raises(ConfigError, match="--optimizer_args has ") as refused:
        pairs(f"foo={value}")
    assert len(str(refused.value)) < 400


def test_the_name_of_an_argument_is_text():
    with pytest.raises(ConfigError, match="settings file cannot hold"):
        pairs("\udce9=1")


def test_what_is_taken_comes_back_from_the_settings_the_same():
    words = ["a=(1, 2.5)", "b=[True, 'x']", "c={'k': [1]}", "d=text", "e=1e-3", "f='quoted'"]
    found = pairs(*words, "g=-9223372036854775807")
    assert found == {
        "a": (1, 2.5), "b": [True, "x"], "c": {"k": [1]}, "d": "text", "e": 1e-3, "f": "quoted",
        "g": -(2**63) + 1,
    }  # fmt: skip
    flags = {
        "pretrained_model_name_or_path": "m", "train_data_dir": "d", "output_dir": "o",
        "resolution": "64", "optimizer_args": words,
    }  # fmt: skip
    tree = translate(FINE_TUNE, flags, None, has_tensorboard=False).tree
    config = build_run_config(tree, source="flags")
    again = build_run_config(parse_toml(dump_toml(config)), source="config.toml")
    assert (
        again.optimizer.arguments == config.optimizer.arguments == {**pairs(*words), "a": [1, 2.5]}
    )


@pytest.mark.parametrize("text", ["5" * 5000, "abc", "", "512,", "1,2,3", "-64", "٥١٢", "64.0"])
def test_a_resolution_is_one_or_two_numbers(text):
    with pytest.raises(ConfigError, match="--max_resolution is "):
        read_resolution(text, "max_resolution")
    assert read_resolution("512, 768") == [512, 768]


@pytest.mark.parametrize("value", ["1.0", 1.0, "1e0"])
def test_one_with_a_point_is_no_number_of_steps(value):
    """In a file of sd-scripts 1.0 means the whole run."""
    with pytest.raises(ConfigError, match="Write 1 for one step, or 100% for the whole run"):
        read_steps("lr_warmup_steps", {"lr_warmup_steps": value})


def test_steps_are_a_number_or_a_share():
    for value, expected in (("1", 1), ("100%", "100%"), ("0.5", 0.5), ("100.0", 100), (None, 0)):
        given = {} if value is None else {"lr_warmup_steps": value}
        assert read_steps("lr_warmup_steps", given) == expected
