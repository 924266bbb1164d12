"""Texts of a stage of work: a run's log, and the studio's tasks and plan."""

import pytest

from impasto.runs.events import stage_text
from impasto.studio.watching import line_of


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"text": "Predicting memory", "total": None, "unit": "settings", "done": 0},
         "Predicting memory"),
        ({"text": "Scanning", "total": 1200, "unit": "files", "done": 0},
         "Scanning: 0 of 1,200 files"),
        ({"text": "Scanning", "total": 2, "unit": "files", "done": 2, "ended": True},
         "Scanning: 2 files"),
        ({"text": "Scanning", "total": 2, "unit": "files", "done": 1, "ended": True},
         "Scanning: 1 of 2 files"),
        ({"text": "Reading", "total": None, "unit": "files", "done": 1}, "Reading: 1 file"),
        ({"text": "Odd", "total": "<b>", "done": [3]}, "Odd"),
    ],
)  # fmt: skip
def test_a_stage_says_how_far_it_is_only_where_it_counts(stage, words):
    assert stage_text(stage) == words


def test_the_log_says_of_a_stage_that_counts_nothing_only_what_was_done():
    event = {"kind": "stage", "text": "Predicting memory", "total": None, "unit": "settings",
             "done": 0, "ended": True}  # fmt: skip
    line = line_of(event)
    assert line is not None
    assert line["text"] == "Predicting memory"
