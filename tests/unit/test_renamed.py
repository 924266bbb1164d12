"""Settings and states with former names are still read; both names at once are refused."""

import itertools
import json
import warnings

import pytest
import tomli_w

from impasto.cli.main import impasto
from impasto.config.load import build_run_config, dump_toml, load_run_config
from impasto.config.renamed import FormerNameWarning
from impasto.errors import ConfigError, ImpastoError
from impasto.training.fingerprints.fingerprint import differences, settings_fingerprint

WITH_ALL_KINDS = {
    "loss": {"kind": "l2", "huber_schedule": "snr", "huber_c": 0.1, "huber_scale": 1.0},
    "method": {"kind": "full", "train_text_encoder": False, "block_lrs": {}},
    "hypernetwork": {"layers": [1.0, 2.0, 1.0], "activation": "linear", "templates": []},
}
"""Settings written by runs of earlier versions, whatever their kind."""


def build(run_values, **changes):
    values = {**run_values}
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields}
    return build_run_config(values, source="test")


def test_a_file_with_the_settings_of_every_kind_is_read(run_values):
    assert build(run_values, **WITH_ALL_KINDS) == build(run_values)
    other = {**WITH_ALL_KINDS, "method": {**WITH_ALL_KINDS["method"], "kind": "hypernetwork"}}
    other["hypernetwork"] = {**other["hypernetwork"], "layers": [1.0, 3.0, 1.0]}
    found = build(run_values, **other, saving={"format": "a1111"})
    new = {"kind": "hypernetwork", "layers": [1, 3, 1]}
    assert found == build(run_values, method=new, saving={"format": "a1111"})
    assert "[hypernetwork]" not in dump_toml(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"hypernetwork": {"layers": [1, 3, 1]}},
            'layers has no effect without method.kind = "hypernetwork"',
        ),
        (
            {"method": {"kind": "hypernetwork", "train_text_encoder": True}},
            "train_text_encoder belongs to the kind full",
        ),
        ({"loss": {"huber_c": 0.2}}, "huber_c has no effect on the kind l2"),
        ({"loss": {"kind": "l3"}}, "loss.kind is 'l3'; expected one of 'l2', 'l1', 'huber'"),
        ({"loss": {"kind": "huber", "huber_c": 7}}, r"loss\.huber_c: .*\(found 7\)"),
        ({"loss": {"kind": "huber", "huber_k": 7}}, r"key loss\.huber_k \(the nearest is huber_c"),
        ({"method": {"block_lr": 7}}, r"unknown key method\.block_lr \(the nearest is block_lrs"),
        (
            {"training": {"weights": "bf16", "weight_dtype": "fp16"}},
            "training.weights and training.weight_dtype are the same setting; use the second",
        ),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused_by_its_name(run_values, changes, words):
    with pytest.raises(ConfigError, match=words):
        build(run_values, **changes)


def test_a_former_name_is_read_with_a_note(run_file, capsys):
    file = run_file(training={"weights": "bf16", "mixed_precision": "bf16"})
    with pytest.warns(FormerNameWarning, match="weights is called training.weight_dtype now"):
        assert load_run_config(file).training.weight_dtype == "bf16"
    words = ["train", str(file), "--plan", "--set", "model.path=nothing"]
    with pytest.raises(ImpastoError):
        impasto.main(args=words, standalone_mode=False)
    shown = capsys.readouterr().out
    assert f"{file}: training.weights is called training.weight_dtype now" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run_config(run_file())


def test_overrides_meet_settings_under_either_name(run_file, tmp_path):
    old = run_file(training={"weights": "bf16", "mixed_precision": "bf16"})
    old = old.rename(tmp_path / "old.toml")
    new = run_file(training={"weight_dtype": "bf16", "mixed_precision": "bf16"})
    for file, name in itertools.product((old, new), ("weights", "weight_dtype")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FormerNameWarning)
            taken_out = load_run_config(file, [f"training.{name}=none"])
            changed = load_run_config(file, [f"training.{name}=fp32"])
            hypernetwork = load_run_config(
                file, ["method.kind=hypernetwork", "hypernetwork.layers=[1,3,1]",
                       "training.weight_dtype=fp32", "saving.format=a1111"]
            )  # fmt: skip
        assert taken_out.training.weight_dtype == changed.training.weight_dtype == "fp32"
        assert hypernetwork.method.layers == (1, 3, 1)


@pytest.mark.parametrize("word", ["loss.kind=['huber']", "method.kind={}", "hypernetwork=true"])
def test_odd_kinds_are_explained(word, run_file):
    with pytest.raises(ConfigError):
        load_run_config(run_file(), [word])


def test_a_state_under_former_names_is_of_the_same_run(run_values):
    former = {
        **settings_fingerprint(build(run_values)),
        "hypernetwork.layers": "[1.0, 2.0, 1.0]",
        "hypernetwork.widths": "null",
        "hypernetwork.dropout": "[]",
        "loss.huber_schedule": '"snr"',
        "loss.huber_c": "0.1",
        "training.weights": '"fp32"',
    }
    del former["training.weight_dtype"]
    assert differences(former, settings_fingerprint(build(run_values))) == []
    half = build(run_values, training={"weight_dtype": "bf16", "mixed_precision": "bf16"})
    said = differences(former, settings_fingerprint(half))
    assert 'training.weight_dtype (was "fp32", is "bf16")' in said
    asked = {"kind": "hypernetwork", "layers": [1, 3, 1]}
    other = settings_fingerprint(build(run_values, method=asked, saving={"format": "a1111"}))
    was = {
        **former,
        "method.kind": '"hypernetwork"',
        "hypernetwork.layers": json.dumps([1.0, 3.0, 1.0]),
    }
    assert differences(was, other) == []
    assert any("method.layers (was [1.0, 2.0, 1.0]" in line for line in differences(former, other))


def test_a_run_that_was_begun_under_former_names_is_resumed(run_values, tmp_path):
    """A run's settings file with former names is kept unchanged."""
    values = {**run_values, **WITH_ALL_KINDS}
    values["training"] = {**values["training"], "weights": "fp32"}
    (tmp_path / "old.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    with pytest.warns(FormerNameWarning):
        again = load_run_config(tmp_path / "old.toml")
    assert build_run_config(values, source="old") == again
