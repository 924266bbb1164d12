"""`--rules kohya` gives sd-scripts' results: values recorded from its own program."""

import pytest

from impasto.annotate.cleaning import KohyaCleaner


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # its test for a longer tag knows plain words only: no hyphen, no sign before the last word
        ("off-shoulder dress, dress", "off-shoulder dress, dress"),
        ("white dress, dress", "white dress"),
        ("very long off-shoulder dress, dress", "very long off-shoulder dress, dress"),
        ("star (symbol) shirt, shirt", "star (symbol) shirt, shirt"),
        ("red hair ornament, hair ornament", "red hair ornament"),
        ("t-shirt, white t-shirt", "white t-shirt"),
        ("half-closed eyes, eyes", "half-closed eyes, eyes"),
        # people are searched for in the rest of the rating
        ("blue eyes, red eyes, rating:2girls", "blue eyes, red eyes"),
        ("2girls, blue-green eyes, red eyes, solo", "2girls, solo"),
        # only commas
        (", ", ""),
        (", , ", ", "),
        ("", ""),
    ],
)
def test_as_sd_scripts_48d368f(before, after):
    assert KohyaCleaner().tags(before) == after
