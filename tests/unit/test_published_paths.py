"""Paths with spaces, within sentences and of any system, are removed from published data."""

import shlex
from pathlib import Path

import pytest

from impasto.publishing import redact_settings, redact_text, short_path
from impasto.report.shortening import shortened

HOME = "/home/Jane Doe"


@pytest.fixture(autouse=True)
def home(monkeypatch):
    """The home folder of this process."""
    monkeypatch.setenv("HOME", "/nobody")
    monkeypatch.setenv("USERPROFILE", "/nobody")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"Continue with: impasto resume '{HOME}/runs/x'", "Continue with: impasto resume 'x'"),
        (f"a byte copy of {HOME}/other pics/b.png, which", "a byte copy of b.png, which"),
        (f"{HOME}/b.png, of which 1/2 is black", "b.png, of which 1/2 is black"),
        (r"C:\Users\Jane Doe\pics\a.png is bad", "a.png is bad"),
        (r"copy C:\Jane Doe\a b.png to D:\Jane Doe\c.png", "copy a b.png to c.png"),
        (f"copied {HOME}/a b.png to {HOME}/c d.png", "copied a b.png to c d.png"),
        (f"cannot read {HOME}/a.png: see docs/guide", "cannot read a.png: see docs/guide"),
        (f"path:{HOME}/a.png", "path:a.png"),
        (f"file://{HOME}/a.png", "a.png"),
        (r"on \\server\Jane Doe\a.png it ended", "on a.png it ended"),
        (f'"{HOME}/pics" and 3/4', '"pics" and 3/4'),
        (f"in {HOME}/Jane's pics/a.png", "in a.png"),
        ("see https://example.org/a/b and a/b", "see https://example.org/a/b and a/b"),
        ("2 images/s, 1/2; and / or", "2 images/s, 1/2; and / or"),
    ],
)
def test_what_is_left_of_a_sentence(text, told):
    assert redact_text(text, ()) == told
    assert redact_text(text, ("paths",)) == text


def test_a_quoted_apostrophe_hides_nothing():
    text = f"Continue with: impasto resume {shlex.quote('/home/Jane O' + chr(39) + 'Neil/runs/x')}"
    assert "Neil" not in redact_text(text, ())


def test_the_home_folder_itself_names_nobody(monkeypatch):
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.setenv("USERPROFILE", HOME)
    assert redact_text(f"{HOME} cannot be read", ()) == "~ cannot be read"
    assert redact_text(f"{HOME}: Doe, J./a.png", ()) == "~: Doe, J./a.png"
    assert redact_text(f"in {HOME}/a b/c.png", ()) == "in c.png"
    assert shortened({"place": HOME}, HOME, ()) == {"place": "~"}


def test_known_folders_keep_what_is_below_them():
    text = f"{HOME}/b.png is a copy of {HOME}/my pics/sub dir/a.png"
    assert redact_text(text, (), [f"{HOME}/my pics"]) == (
        "b.png is a copy of my pics/sub dir/a.png"
    )
    assert redact_text(f"{HOME}/my pics-2/a.png", (), [f"{HOME}/my pics"]) == "a.png"


def test_a_dataset_report_cuts_sentences_and_leaves_words():
    place = f"{HOME}/my, pics"
    content = {
        "place": place,
        "set_aside": [{"path": f"{place}/sub/a.png",
                       "reason": f"a byte copy of {HOME}/other pics/b.png, which is used"}],
        "missing": [Path(HOME, "other pics", "c.png")],
        "tags": {":/": 2, "\\m/": 3}, "same": [["by a /b/ c", 2]],
    }  # fmt: skip
    assert shortened(content, place, ()) == {
        "place": "my, pics",
        "set_aside": [{"path": "my, pics/sub/a.png",
                       "reason": "a byte copy of b.png, which is used"}],
        "missing": ["c.png"],
        "tags": {":/": 2, "\\m/": 3}, "same": [["by a /b/ c", 2]],
    }  # fmt: skip


def test_settings_with_paths_in_their_texts():
    told = redact_settings(
        {"optimizer": {"arguments": {"note": f"as in {HOME}/x y/z.json"}},
         "dataset": {"caption_separator": "/", "caption_prefix": "by a/b"}}, ()
    )  # fmt: skip
    assert told == {
        "optimizer": {"arguments": {"note": "as in z.json"}},
        "dataset": {"caption_separator": "/", "caption_prefix": "by a/b"},
    }


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/data/pics/a.png", "pics/a.png"),
        ("/home/Jane Doe/a.png", "a.png"),
        (r"C:\Users\Jane Doe\a.png", "a.png"),
        (r"C:\Users\Jane Doe\pics\a.png", "pics/a.png"),
        ("/a.png", "a.png"),
        ("a.png", "a.png"),
    ],
)
def test_a_file_of_a_run_by_its_folder(path, told):
    assert short_path(path) == told
