"""Losses of held-out images by tag, dataset and subset: members of groups, and reports."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from runs_made import made_run

from impasto.data.records import FileStamp, ImageRecord, Size
from impasto.data.subsets import PLAIN
from impasto.report.page import write_report
from impasto.runs.evidence import difference, standard_error
from impasto.runs.validation_groups import last_groups
from impasto.training.monitoring.image_units import independent_values
from impasto.training.monitoring.validation_groups import (
    MOST_GROUPS,
    group_images,
    group_rows,
    read_base_losses,
    write_base_losses,
)


def records(captions, subset=PLAIN):
    return [
        ImageRecord(Path(f"{n}.png"), Size(64, 64), FileStamp(1, 1), caption, subset=subset)
        for n, caption in enumerate(captions)
    ]


def test_images_are_grouped_by_what_stands_between_commas():
    """A repeated tag counts once; a sentence is one tag; copies are one image of a group."""
    held = records(["cat,  red", "red , cat, red", "cat", "a dog runs", "red", ""])
    found = group_images(held, range(6), ["tag"], 2)
    assert [(g.by, g.name, g.indices) for g in found] == [
        ("tag", "cat", (0, 1, 2)), ("tag", "red", (0, 1, 4))
    ]  # fmt: skip
    copies = [0, 0, 0, 3, 4, 5]
    assert [g.name for g in group_images(held, copies, ["tag"], 2)] == ["red"]
    assert group_images(held, range(6), ["tag"], 4) == []
    assert group_images(held, range(6), [], 2) == []


def test_images_are_grouped_by_dataset_and_by_folder():
    first = replace(PLAIN, root=Path("/secret/place/cats"))
    second = replace(PLAIN, root=Path("/secret/place/dogs"), dataset=1, number=2)
    held = records(["a"] * 3, first) + records(["b"] * 2, second)
    found = group_images(held, range(5), ["subset", "dataset"], 2)
    assert [(g.by, g.name, g.indices) for g in found] == [
        ("subset", "cats (1.1)", (0, 1, 2)), ("subset", "dogs (2.3)", (3, 4)),
        ("dataset", "dataset 1", (0, 1, 2)), ("dataset", "dataset 2", (3, 4)),
    ]  # fmt: skip


def test_of_many_tags_the_most_frequent_are_told():
    words = [f"t{n:03d}" for n in range(MOST_GROUPS + 9)]
    held = records([", ".join(words[n % 3 :]) for n in range(6)])
    found = group_images(held, range(6), ["tag"], 2)
    assert len(found) == MOST_GROUPS
    assert len(found[0].indices) == 6
    assert {g.name for g in found}.isdisjoint({"t000", "t001"})


def test_the_rows_are_paired_and_count_copies_once():
    held = records(["cat"] * 5)
    losses, base = [0.2, 0.3, 0.4, 0.4, 0.1], [0.5, 0.5, 0.6, 0.7, 0.9]
    alike = [0, 1, 2, 2, 3]
    (group,) = group_images(held, alike, ["tag"], 2)
    (row,) = group_rows([group], losses, alike, base)
    assert row["images"] == 5
    assert row["loss"] == pytest.approx(sum(losses) / 5)
    assert row["se"] == pytest.approx(standard_error(independent_values(losses, alike)))
    paired = difference(independent_values(losses, alike), independent_values(base, alike))
    assert row["change"] == pytest.approx(paired.mean)
    assert row["change_se"] == pytest.approx(paired.standard_error)
    (first,) = group_rows([group], losses, alike, None)
    assert set(first) == {"by", "name", "images", "loss", "se"}


@pytest.mark.parametrize("text", ["", "[]", '{"losses": [1, true, 2]}', '{"losses": [1, 2]}'])
def test_base_losses_that_are_damaged_are_not_known(tmp_path, text):
    run = made_run(tmp_path / "r")
    assert read_base_losses(run, 3) is None
    write_base_losses(run, [0.1, 0.2, 0.3])
    assert read_base_losses(run, 3) == [0.1, 0.2, 0.3]
    run.base_losses_file.write_text(text, encoding="utf-8")
    assert read_base_losses(run, 3) is None


ROW = {"by": "tag", "name": "cat", "images": 4, "loss": 0.25, "se": 0.01}


def test_only_rows_that_are_losses_are_read():
    odd = [7, {**ROW, "by": "x"}, {**ROW, "loss": "low"}, {**ROW, "images": True}, {"by": "tag"}]
    lines = [
        {"step": 0, "validation_by": [ROW]},
        {"step": 5, "validation_by": [*odd, {**ROW, "change": -0.1, "change_se": float("nan")}]},
        {"step": 6, "validation_by": "none"},
        {"step": 7, "loss": 1.0},
    ]
    found = last_groups(lines)
    assert found.step == 5
    (group,) = found.groups
    assert group.text == "0.2500 ± 0.0100, -0.1000 from the base model, of 4 images"
    assert last_groups(lines[3:]) is None


@pytest.mark.parametrize("publish", [[], ["prompts"]])
def test_the_page_tells_tags_where_words_may_be_told(tmp_path, publish):
    run = made_run(tmp_path / "r", settings={"saving": {"publish": publish}})
    rows = [{**ROW, "name": "<secret>"}, {**ROW, "by": "subset", "name": "cats (1.1)"}]
    line = {"step": 1, "validation_loss": 0.2, "validation_by": rows, "time": 1.0}
    run.append_metrics(json.loads(json.dumps(line)))
    page = write_report(run).read_text(encoding="utf-8")
    assert "cats (1.1)" in page
    assert "<secret>" not in page
    assert ("&lt;secret&gt;" in page) == bool(publish)
    assert ("1 tags are left out" in page) != bool(publish)
