"""`impasto settings`, and its source: the settings tree for readers."""

import json
import shlex

import pytest
from click.testing import CliRunner

from impasto.cli.settings import settings
from impasto.config.examples import example_of
from impasto.config.load import build_run_config
from impasto.config.tree import all_sections, all_settings, first_sentence, nearest
from impasto.errors import ConfigError


def said(*words):
    result = CliRunner().invoke(settings, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_sections_are_listed_with_what_they_are_about():
    output = said()
    for part in all_sections():
        if part.name:
            assert part.name in output
            assert part.docs in output


def test_a_section_has_all_its_settings_with_type_default_and_first_sentence():
    output = said("optimizer")
    assert "optimizer.lr\n  a number above 0, up to 10; default 5e-06\n" in output
    assert "Peak learning rate of the schedule;" in output
    assert "huber_c (of huber, smooth_l1)" in said("loss")


def test_a_setting_has_all_that_is_known_of_it():
    output = said("training.batch_size")
    docs = all_settings()["training.batch_size"].docs
    for words in (docs, 'a whole number from 1, or "auto"', "[training]\nbatch_size = 4"):
        assert words in output
    assert "--set training.batch_size=4" in output


def test_a_former_name_leads_to_the_present_one():
    output = said("training.weights")
    assert "training.weights is called training.weight_dtype now." in output
    assert "Former name  training.weights" in output
    assert json.loads(said("hypernetwork.layers", "--json"))["path"] == "method.layers"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("training.bach_size", "training.batch_size"),
        ("trainig", "training"),
        ("learning.max_steps", "training.max_steps"),
        ("warmup_steps", "schedule.warmup_steps"),
    ],
)
def test_a_misspelt_name_gets_the_nearest(typed, meant):
    with pytest.raises(ConfigError, match=f"Did you mean {meant}\\?"):
        said(typed)


@pytest.mark.parametrize("typed", ["", "zzzzqqqq", "a.b.c.d", "\x1b[31m", "training.", "ä" * 500])
def test_a_name_that_is_near_to_nothing_is_refused(typed):
    with pytest.raises(ConfigError, match="There is no setting"):
        said(typed)


def test_json_has_every_setting_once():
    parts = json.loads(said("--json"))
    paths = [setting["path"] for part in parts for setting in part["settings"]]
    assert paths == [*all_settings()]
    assert len(paths) == len(set(paths)) > 150
    one = json.loads(said("saving.format", "--json"))
    assert one["choices"] == [
        "safetensors", "ckpt", "diffusers", "a1111", "portable", "novelai",
    ]  # fmt: skip
    assert one["can_be_off"]


@pytest.mark.parametrize("path", all_settings())
def test_the_example_of_a_setting_is_a_value_that_it_takes(path, tmp_path, monkeypatch):
    """Accepted in TOML and by --set; conflicts with other settings are ignored here."""
    monkeypatch.chdir(tmp_path)
    setting = all_settings()[path]
    (tmp_path / "dataset.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir='p'\n")
    shown = json.loads(said(path, "--json"))["example"]
    words = shlex.split(shown["set"])
    tree = {
        "output_dir": "run",
        "model": {"path": "base"},
        "dataset": {} if path in ("dataset.datasets", "dataset.config") else {"image_dir": "p"},
        "training": {} if path == "training.max_epochs" else {"max_steps": 5},
    }
    if setting.kinds and setting.name != "kind":
        tree[setting.section] = {"kind": setting.kinds[0]}
    found = {}
    try:
        build_run_config(tree, [words[1]], source="the example")
    except ConfigError as error:
        found = error.faults  # other settings forbid it: reported for a section, or for the whole
    assert not [at for at in found if at == path or at.startswith(f"{path}.")], found


@pytest.mark.parametrize("written", ["{}", "dataset.{}", "dataset.datasets.subsets.{}"])
def test_settings_of_subsets_alone_are_found(written):
    output = said(written.format("loss_weight"))
    for words in ("dataset.datasets.subsets.loss_weight", "[[dataset.datasets.subsets]]\nloss_we"):
        assert words in output
    assert "--set" not in output  # there are several matches
    told = json.loads(said(written.format("is_reg"), "--json"))
    assert told["example"] == {
        "toml": "[[dataset.datasets.subsets]]\nis_reg = true", "set": None,
    }  # fmt: skip


def test_types_are_told_in_words():
    words = {path: setting.type.text for path, setting in all_settings().items()}
    assert words["dataset.resolution"] == (
        "a whole number from 8, up to 8192, or a list [a whole number, a whole number]"
    )
    assert words["model.max_tokens"] == "one of 75, 150, 225"
    assert words["training.memory"] == 'a whole number from 1, or "auto", or off'
    assert words["loss.kind"] == "one of l2, l1, huber, smooth_l1"
    assert "a value" not in words.values()
    assert all(setting.docs for setting in all_settings().values())
    assert example_of(all_settings()["training.tf32"]) is False


def test_first_sentences_stand_alone():
    assert first_sentence("One. Two.") == "One."
    assert first_sentence("One; two") == "One; two"
    assert first_sentence("word " * 100).endswith("word ...")
    assert nearest("x", []) is None


def test_errors_of_settings_say_where(tmp_path):
    tree = {"model": {"path": "m"}, "dataset": {"image_dir": "p", "resolutio": 5},
            "training": {"max_steps": 0}}  # fmt: skip
    with pytest.raises(ConfigError) as error:
        build_run_config(tree, source="it")
    assert set(error.value.faults) == {"output_dir", "dataset.resolutio", "training.max_steps"}
    assert all(text in str(error.value) for text in error.value.faults.values())
