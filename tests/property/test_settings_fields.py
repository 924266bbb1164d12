"""Settings as form fields and back: nothing is changed on the way."""

import contextlib
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from impasto.config.fields import fields_of, tree_of
from impasto.config.load import build_run_config, dump_toml
from impasto.config.tree import all_settings
from impasto.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = [p for p in sorted(CONFIGS.glob("*.toml")) if "output_dir" in p.read_text("utf-8")]

ODD = "ab1 \t\n\r\"'\\[]{}=#,.%-äが😀\x00\x1b\x7f\u2028\ufeff"
TEXT = st.one_of(
    st.text(ODD, max_size=8),
    st.sampled_from(["true", "none", "5", "1e3", "[]", "{}", "1979-05-27", "a\nb = 1", "C:\\new"]),
)
NUMBERS = st.one_of(
    st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
SCALARS = st.one_of(st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)


def value_for(setting):
    """Draw values of about the type of a setting, unusual ones among them."""
    form = setting.type.form
    if form == "flag":
        return st.booleans()
    if form == "choice":
        return st.sampled_from(setting.type.choices)
    if form == "text":
        return TEXT
    if form == "lines":
        return st.lists(TEXT, max_size=4)
    if form == "table":
        return st.dictionaries(TEXT, VALUES, max_size=3)
    if form == "sections":
        return st.lists(st.dictionaries(TEXT, SCALARS, max_size=3), max_size=2)
    return st.one_of(NUMBERS, TEXT, st.lists(NUMBERS, max_size=3), st.lists(st.lists(NUMBERS)))


@st.composite
def trees(draw):
    tree = {}
    for path in draw(st.sets(st.sampled_from([*all_settings()]), max_size=4)):
        setting = all_settings()[path]
        section = tree.setdefault(setting.section, {}) if setting.section else tree
        section[setting.name] = draw(value_for(setting))
    return tree


def through_a_browser(fields):
    """Return text with the line ends that browsers send."""
    return {path: text.replace("\n", "\r\n") for path, text in fields.items()}


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_examples_come_back_as_they_were(file):
    tree = tomllib.loads(file.read_text(encoding="utf-8"))
    assert tree_of(through_a_browser(fields_of(tree))) == (tree, {})


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_resolved_settings_come_back_too(file):
    """Settings as in a run directory, with every value given, survive the round trip."""
    config = build_run_config(tomllib.loads(file.read_text(encoding="utf-8")), source="it")
    tree, faults = tree_of(through_a_browser(fields_of(tomllib.loads(dump_toml(config)))))
    assert faults == {}
    assert build_run_config(tree, source="it") == config


@given(trees())
def test_any_values_come_back_as_they_were(tree):
    tree = {k: v for k, v in tree.items() if v != {}}
    same = tomllib.loads(tomli_w.dumps(tree))
    found, faults = tree_of(through_a_browser(fields_of(same)))
    assert faults == {}
    assert tomli_w.dumps(found) == tomli_w.dumps(in_order(same))  # 1 does not equal true here


def in_order(tree):
    """Return the same tree with its settings in the order of the form."""
    ordered = {}
    for setting in all_settings().values():
        own = tree.get(setting.section, {}) if setting.section else tree
        if setting.name in own:
            target = ordered.setdefault(setting.section, {}) if setting.section else ordered
            target[setting.name] = own[setting.name]
    return ordered


@given(st.dictionaries(st.sampled_from([*all_settings()]), st.text(max_size=40), max_size=6))
@example({"output_dir": "", "dataset.config": "\0"})
def test_whatever_is_typed_is_settings_or_an_error_at_its_field(fields):
    tree, faults = tree_of(fields)
    assert set(faults) <= set(fields)
    with contextlib.suppress(ConfigError):
        build_run_config(tree, source="typed")


def test_a_setting_that_there_is_not_is_named():
    with pytest.raises(ConfigError, match=r"training\.speed"):
        fields_of({"training": {"speed": 3}})
    with pytest.raises(ConfigError, match="speed"):
        fields_of({"speed": 3})


def test_former_names_become_present_ones():
    assert fields_of({"training": {"weights": "bf16"}}) == {"training.weight_dtype": "bf16"}
