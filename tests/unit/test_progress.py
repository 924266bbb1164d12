"""Progress displays: grammatical counts, no leftover lines, and every wait is named."""

import contextlib
import io
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console as RichConsole

from impasto import progress
from impasto.cli import stages
from impasto.cli.console import Console
from impasto.progress import SilentProgress, counted, none_of, singular


@pytest.mark.parametrize(
    ("number", "words", "sentence"),
    [
        (0, "images", "0 images"),
        (1, "images", "1 image"),
        (12345, "files", "12,345 files"),
        (1, "files were", "1 file was"),
        (2, "files were", "2 files were"),
        (1, "captions have", "1 caption has"),
        (1, "tag frequencies are", "1 tag frequency is"),
        (1, "batches", "1 batch"),
        (1, "boxes", "1 box"),
        (1, "groups of images are", "1 group of images is"),
        (1, "MiB", "1 MiB"),
    ],
)
def test_counts_are_grammatical(number, words, sentence):
    assert counted(number, words) == sentence


def test_what_is_denied_of_all_is_grammatical():
    assert none_of(1, "images") == "Not one image"
    assert none_of(1200, "images") == "None of the 1,200 images"


def test_units_of_all_stages_have_a_singular():
    units = ("images", "files", "chunks", "shards", "settings", "entries", "patches", "classes")
    singulars = ["image", "file", "chunk", "shard", "setting", "entry", "patch", "class"]
    assert [singular(unit) for unit in units] == singulars


def test_a_slow_stage_is_shown_once_it_is_slow(monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    class Told(SilentProgress):
        @contextlib.contextmanager
        def stage(self, *words):
            told.append(words)
            yield told.append
            told.append("ended")

    with progress.slow_stage(Told(), "Measuring", 9, "images") as count:
        count(2)
        now[0] = 1.9
        count(2)
    assert told == []
    with progress.slow_stage(Told(), "Measuring", 9, "images") as count:
        count(2)
        now[0] = 4.0
        count(2)
        count(5)
    assert told == [("Measuring", 5, "images"), 5, "ended"]


def left(output: io.StringIO) -> str:
    """Return the terminal's contents after the last erased line."""
    last = output.getvalue().rsplit("\x1b[2K", 1)[-1]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", last)


def on_a_terminal() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    console = Console()
    console.rich = RichConsole(file=output, force_terminal=True, highlight=False, soft_wrap=True)
    return console, output


def in_a_pipe() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    console = Console()
    console.rich = RichConsole(file=output, force_terminal=False, highlight=False, soft_wrap=True)
    return console, output


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_nothing_is_drawn_for_no_items(kind):
    console, output = on_a_terminal() if kind == "terminal" else in_a_pipe()
    with console.stage("Encoding latents", 0, "images"):
        pass
    assert output.getvalue() == ""


def test_a_stage_leaves_one_line():
    console, output = on_a_terminal()
    with console.stage("Encoding latents", 1, "images") as advance:
        advance(1)
    assert re.fullmatch(r"Encoding latents: 1 image in [\d.]+ s\n", left(output))


def test_a_stage_that_only_waits_leaves_nothing():
    console, output = on_a_terminal()
    with console.stage("Loading PyTorch", None, "modules"):
        pass
    assert left(output) == ""
    assert "0/?" not in output.getvalue()


def test_stages_within_stages_share_the_terminal():
    console, output = on_a_terminal()
    with console.stage("Predicting memory", None, "settings"):  # noqa: SIM117
        with console.stage("Reading the model", 3, "MiB") as advance:
            advance(3)
            console.note("a line that stays")
    assert "a line that stays" in output.getvalue()
    assert "Reading the model: 3 MiB in " in output.getvalue()


def test_a_long_wait_in_a_pipe_is_named_and_moves(monkeypatch):
    monkeypatch.setattr(stages, "FIRST_LINE_AFTER_S", 0.05)
    monkeypatch.setattr(stages, "LINES_EVERY_S", 0.1)
    console, output = in_a_pipe()
    with console.stage("Reading the model", 2000, "MiB") as advance:
        wait_for("Reading the model ...", output)
        advance(1000)
        wait_for("Reading the model: 1,000 of 2,000 MiB", output)
    with console.stage("Predicting memory", None, "settings"):
        wait_for("Predicting memory: running for ", output)


def test_in_a_pipe_a_wait_within_a_wait_is_not_told_twice(monkeypatch):
    monkeypatch.setattr(stages, "FIRST_LINE_AFTER_S", 0.0)
    console, output = in_a_pipe()
    with console.stage("Predicting memory", None, "settings"):
        wait_for("Predicting memory ...", output)
        with console.stage("Loading diffusers", None, "modules"):
            time.sleep(0.2)
        with console.stage("Reading the model", 5, "MiB"):
            wait_for("Reading the model ...", output)
    assert "Loading diffusers" not in output.getvalue()


def wait_for(words: str, output: io.StringIO) -> None:
    for _ in range(3000):
        if words in output.getvalue():
            return
        time.sleep(0.01)
    raise AssertionError(output.getvalue())


def test_json_is_not_mixed_with_progress(tmp_path):
    """The standard output of a verb that prints JSON contains only JSON, whatever is imported."""
    import json

    from safetensors.numpy import save_file

    file = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.alpha": np.ones((), np.float32)}, file)
    program = (
        "from impasto.cli import stages; stages.FIRST_LINE_AFTER_S = 0.0\n"
        "from impasto.cli.main import main\n"
        f"main(['inspect', {str(file)!r}, '--json', '--no-hash'])\n"
        "import logging; logging.getLogger('torch.utils._pytree').warning('noise')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)
    assert "Loading PyTorch ..." in result.stderr
    assert "noise" not in result.stderr  # a deprecation of torch, for its developers


def test_libraries_are_quiet_and_the_users_wishes_stay():
    program = (
        "import os, sys, warnings, logging\n"
        "os.environ['DIFFUSERS_VERBOSITY'] = 'info'\n"
        "from impasto.cli.quiet import quiet_libraries\n"
        "quiet_libraries()\n"
        "warnings.warn('noise'); logging.getLogger('bitsandbytes').warning('noise')\n"
        "print(os.environ['DIFFUSERS_VERBOSITY'], os.environ['HF_HUB_DISABLE_PROGRESS_BARS'])"
    )
    run = {"capture_output": True, "text": True, "check": True}
    quiet = subprocess.run([sys.executable, "-c", program], **run)
    assert (quiet.stdout, quiet.stderr) == ("info 1\n", "")
    asked = subprocess.run([sys.executable, "-W", "default", "-c", program], **run)
    assert "noise" in asked.stderr


@pytest.mark.parametrize("words", [[], ["dataset"], ["dataset", "cache"]])
def test_lines_of_help_are_not_cut(words):
    from click.testing import CliRunner

    from impasto.cli.main import impasto

    output = CliRunner().invoke(impasto, [*words, "--help"], terminal_width=80).output
    assert "..." not in output.partition("Commands:")[2]
    assert max(map(len, output.splitlines())) <= 80


def test_downloads_are_counted_in_mib_and_draw_no_bars(capsys):
    from huggingface_hub.utils.tqdm import _create_progress_bar, hf_thread_map

    from impasto.checkpoints.downloads import _counter_of_bytes

    seen = []
    counter = _counter_of_bytes(seen.append)
    bar = _create_progress_bar(cls=counter, log_level=0, desc="x", total=0, unit="B")
    bar.total += 3 << 20
    for _ in range(6):
        bar.update(1 << 19)
    bar.set_description("y")
    bar.close()
    assert hf_thread_map(str, [1, 2], desc="files", max_workers=2, tqdm_class=counter) == ["1", "2"]
    assert sum(seen) == 3
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "near"), [(["trian"], "train"), (["dataset", "captoin"], "caption")]
)
def test_the_nearest_verb_is_proposed(words, near):
    from click.testing import CliRunner

    from impasto.cli.main import impasto

    assert f"Did you mean {near}?" in CliRunner().invoke(impasto, words).output


@pytest.mark.parametrize(
    ("images_per_s", "words"),
    [(12.34, "12.3 images/s"), (0.4, "0.4 images/s"), (0.0101, "99 s an image"), (0.0, "0.0")],
)
def test_slow_training_says_what_an_image_takes(images_per_s, words, capsys):
    console = Console()
    console.measured({"step": 1, "loss": 0.5, "images_per_s": images_per_s})
    assert words in capsys.readouterr().out


def test_of_many_images_that_cannot_be_used_ten_are_named(capsys):
    summary = {
        "parts": {"unet": 1}, "regularisation": 0, "family": "SD 1.x", "prediction": "epsilon",
        "device": "cpu", "processes": 1, "images": 9, "held_out": 0, "buckets": {"64x64": 9},
        "steps_per_epoch": 9, "too_long": 0, "with_more_lines": 0, "refused_latents": [],
        "set_aside": [{"path": f"{n}.png", "reason": "it is cut short"} for n in range(13)],
    }  # fmt: skip
    console = Console()
    console.started(summary, 0, 9)
    console.ended()
    told = capsys.readouterr().out
    assert told.count("it is cut short") == 10
    assert "... and 3 more, all named in dataset.json" in told
