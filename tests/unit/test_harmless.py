"""Foreign text (names, captions, metadata) cannot send control sequences to a terminal."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from impasto.cli.console import Console, show_error
from impasto.cli.harmless import escape, harmless, json_text
from impasto.cli.main import impasto, main
from impasto.demo.recipe import PICTURES
from impasto.errors import Interrupted, RunError

TITLE = "\x1b]0;owned\x07"
HOSTILE = f"x{TITLE}\x1b[31mred\x9b2J\r\x08\u202egnp\u2066\u2028\x7f"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat, 猫, é\n\tb", "a cat, 猫, é\n\tb"),
        ("👩\u200d🎨", "👩\u200d🎨"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b2J\r", r"\x9b2J\x0d"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("\udc92\udcb1.png", r"\x92\xb1.png"),
        ("\ud83d", r"\ud83d"),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert harmless(text) == shown
    assert harmless(shown) == shown


def test_json_stays_the_same_value():
    value = {"a": HOSTILE, "猫": [1, "\udc92", None]}
    text = json_text(value)
    assert not OBEYED.search(text)
    assert "猫" in text
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("it is gone."), "Error: it is gone."),
        (Interrupted("41 of 240 steps are done.", 2), "Stopped: 41 of 240 steps are done."),
        (Interrupted("Stopped at once. Nothing is lost.", 2), "Stopped at once. Nothing is lost."),
    ],
)
def test_an_error_begins_with_one_word(capsys, error, line):
    show_error(error)
    assert capsys.readouterr().err == f"{line}\n"


def test_markup_of_a_stranger_is_plain_text(capsys):
    console = Console()
    console.table({"[link=http://evil]click[/link]": "[bold]b[/bold] :smile:"})
    console.table({HOSTILE: HOSTILE})
    console.note(f"[red]{HOSTILE}")
    console.paragraph(f"[red]{HOSTILE}")
    console.heading(f"[red]{HOSTILE}")
    with console.stage(f"[red]{HOSTILE}", 3, "files") as advance:
        advance(3)
    show_error(RunError(f"[red]{HOSTILE}"))
    said = capsys.readouterr()
    text = said.out + said.err
    assert not OBEYED.search(text)
    assert "[link=http://evil]click[/link]  [bold]b[/bold] :smile:" in text
    assert text.count("[red]x") == 5
    assert escape("[red]") == r"\[red]"


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "pictures"
    target.mkdir()
    for path in sorted(PICTURES.glob("*.webp"))[:3]:
        shutil.copy(path, target)
        (target / path.name).with_suffix(".txt").write_text(f"shirt, white_shirt, {HOSTILE}\n")
    if sys.platform != "win32":
        (target / f"b{TITLE}.png").write_bytes(b"junk")
        shutil.copy(path, target / f"c{TITLE}\u202e.webp")
    return target


@pytest.mark.parametrize(
    "words",
    [
        ("scan",),
        ("scan", "--json"),
        ("plan", "--resolution", "128", "--min-side", "64", "--max-side", "256"),
        ("captions",),
        ("tags",),
        ("clean", "--dry-run"),
    ],
)
def test_every_verb_shows_a_strangers_data_set_harmless(folder, words):
    verb, *options = words
    done = CliRunner().invoke(impasto, ["dataset", verb, str(folder), *options])
    assert done.exit_code == 0, done.output
    assert not OBEYED.search(done.output), words


@pytest.mark.parametrize("options", [["--no-hash"], ["--no-hash", "--json"]])
def test_a_strangers_metadata_is_shown_harmless(tmp_path, options):
    file = tmp_path / "model.safetensors"
    texts = {"modelspec.title": HOSTILE, "[link=http://evil]k[/link]": HOSTILE, HOSTILE: "x"}
    save_file({"a": np.zeros(1, np.float32)}, file, texts)
    done = CliRunner().invoke(impasto, ["inspect", str(file), *options])
    assert done.exit_code == 0, done.output
    assert "owned" in done.output
    assert not OBEYED.search(done.output)


def test_messages_about_arguments_too(capsys):
    with pytest.raises(SystemExit):
        main(["dataset", "scan", "x", f"--no-such-option{TITLE}"])
    text = capsys.readouterr().err
    assert "owned" in text
    assert not OBEYED.search(text)
