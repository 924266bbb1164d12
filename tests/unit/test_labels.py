"""Labels of settings: each has one, and the names of other trainers find them."""

import pytest

from impasto.config.labels import _TABLE, Label, label_of
from impasto.config.tree import all_settings
from impasto.sdscripts.flags import ROWS


def test_every_setting_has_a_label_and_nothing_else_has():
    assert set(_TABLE) == set(all_settings())


def test_labels_fit_a_column_and_are_told_apart_within_a_section():
    seen = {}
    for path in all_settings():
        title = label_of(path).title
        assert 2 < len(title) <= 32, path
        assert title[0].isupper() or title[0].isdigit(), path
        key = (path.rpartition(".")[0], title)
        assert key not in seen, (path, seen.get(key))
        seen[key] = path


@pytest.mark.parametrize("flag", [row for row in ROWS if row.to], ids=lambda row: row.name)
def test_an_option_of_sd_scripts_leads_to_the_setting_that_it_sets(flag):
    known = {path: label_of(path).sd_scripts for path in _TABLE}
    path = flag.to if flag.to in known else flag.to.rpartition(".")[0]
    if path == "saving.metadata":  # many settings match
        assert any(name.startswith("metadata_") for name in known[path])
        return
    assert flag.name in known[path]


def test_no_label_names_an_option_that_sd_scripts_does_not_have():
    options = {row.name for row in ROWS}
    for path in _TABLE:
        assert set(label_of(path).sd_scripts) <= options, path


def test_other_names_are_told_unless_they_are_the_same():
    label = Label("Batch size", ("train_batch_size",), ("Batch Size", "Local Batch Size"))
    told = "sd-scripts: train_batch_size; OneTrainer: Local Batch Size"
    assert label.elsewhere("batch_size") == told
    assert Label("Seed", ("seed",)).elsewhere("seed") == ""
