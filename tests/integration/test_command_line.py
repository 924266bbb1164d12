"""The real command line on real files: a whole workflow, kills, and users' mistakes."""

import hashlib
import json
import signal
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import draw_images, impasto
from support.warm import running

from impasto.cli.main import main
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.reading.recorded import has_random_weights

GOLDEN_LOSSES = Path(__file__).parents[1] / "golden" / "losses.json"


def export_hash(run: Path) -> str:
    digest = hashlib.sha256()
    exported = (p for p in (run / "export").rglob("*") if p.is_file())
    for file in sorted(p for p in exported if p.name != "impasto.json"):  # contains the date
        digest.update(file.relative_to(run).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def call(*words: object) -> None:
    """Run the command line in this process, for speed."""
    main([str(word) for word in words])


def refused(*words: object) -> int:
    """Run a command that is refused, and return the exit code."""
    with pytest.raises(SystemExit) as caught:
        call(*words)
    return int(caught.value.code)


class Links(HTMLParser):
    """Collects every address that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.sources, self.images = [], 0

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in {"src", "href", "xlink:href"} and not value.startswith(("data:", "#")):
                self.sources.append(value)
        self.images += tag == "img"


def test_the_whole_job(run_file, tmp_path, deeper_model, capsys):
    """Training, report and sampling work from the command line; losses equal the recorded ones."""
    file = run_file(
        model={"path": str(deeper_model)},
        validation={"split": 0.25, "copies": "bytes", "standard_error": 0},  # as before
        previews={"prompts": ["a red ball"], "width": 32, "height": 32, "steps": 2},
    )
    result = impasto("train", file, "--set", "training.max_steps=8")
    assert result.returncode == 0, result.stderr
    assert "The validation loss" in result.stdout
    assert "claims are 95 % certain" in result.stdout.replace("\n", " ")
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recorded = json.loads(GOLDEN_LOSSES.read_text(encoding="utf-8"))
    for name, values in recorded["losses"].items():
        found = [record[name] for record in records if name in record]
        assert found == pytest.approx(values, rel=1e-4), "a change of numerics: see golden/README"

    page = (run / "report.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert links.sources == []
    assert links.images == 2
    assert "base model" in page

    call(
        "sample", run, "a red ball", "x", "--width", 32, "--height", 32, "--steps", 2,
        "--out", tmp_path / "samples", "--grid", "--count", 2,
    )  # fmt: skip
    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names == ["0000-1.png", "0001-2.png", "0002-3.png", "0003-4.png", "grid.png"]

    capsys.readouterr()
    call("resume", run)
    assert "is finished" in capsys.readouterr().out


KILLED_BEFORE = (2, 4, 7, 11, 18, 24)  # files appear only by renames of each process
DYING_BEFORE_RENAME = """
import os, signal, sys

real, count = os.replace, 0


def replace(*arguments, **options):
    global count
    count += 1
    if count == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)


os.replace = os.rename = replace
from impasto.cli.main import main

main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_kill_9_before_any_write(run_file, tmp_path):
    """After six kills while starting, caching, training or saving, the result has the same bits."""
    changes = {"saving": {"state_every_steps": 1}, "training": {"max_steps": 6}}
    whole = impasto("train", run_file(output_dir=str(tmp_path / "whole"), **changes))
    assert whole.returncode == 0, whole.stderr
    file = run_file(**changes, dataset={"cache_dir": str(tmp_path / "other-derived")})
    command, killed = ["train", str(file)], 0
    for renames in KILLED_BEFORE:
        program = DYING_BEFORE_RENAME.format(number=renames)
        done = running.run("-c", program, *command)
        killed += done.returncode == -signal.SIGKILL
        if (tmp_path / "run" / "config.toml").is_file():
            command = ["resume", str(tmp_path / "run")]
    assert killed == len(KILLED_BEFORE), done.stderr
    finished = impasto("resume", tmp_path / "run")
    assert finished.returncode == 0, finished.stderr
    assert export_hash(tmp_path / "run") == export_hash(tmp_path / "whole")


def wait_for(path: Path, process) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be caught on Windows")
def test_sigterm_saves_and_exits_cleanly(run_file, tmp_path):
    file = run_file(training={"max_steps": 100000}, logging={"every_steps": 1})
    process = running.start("-m", "impasto", "train", file)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "the state is saved" in errors
    assert "Traceback" not in errors
    status = json.loads((tmp_path / "run" / "status.json").read_text(encoding="utf-8"))
    assert status["phase"] == "stopped"
    assert len(list((tmp_path / "run" / "states").iterdir())) == 1


def test_plan_says_what_would_happen_and_does_nothing(run_file, tmp_path):
    result = impasto("train", run_file(), "--plan")
    assert result.returncode == 0, result.stderr
    for words in ("13 to train on", "SD 1.x, predicts epsilon", "6 in all", "optimizer.lr = 0.001"):
        assert words in result.stdout
    assert not (tmp_path / "run").exists()


def test_dataset_verbs(pictures, nano_model, tmp_path, capsys):
    (pictures / "broken.png").write_bytes(b"")
    scanned = impasto("dataset", "scan", pictures, "--json", "--decode")
    assert scanned.returncode == 0, scanned.stderr
    listed = json.loads(scanned.stdout)
    assert listed["images"] == 13
    assert listed["set_aside"][0]["reason"] == "the file is empty"
    geometry = ("--resolution", 80, "--min-side", 32, "--max-side", 96, "--step", 32)
    call("dataset", "plan", pictures, *geometry)
    planned = capsys.readouterr().out
    assert "64x96" in planned
    assert "Cropped most" not in planned, "nothing is cropped: five lines of 0 % are useless"
    call("dataset", "plan", pictures, *geometry, "--step", 64, "--min-side", 64,
         "--max-side", 128)  # fmt: skip
    assert "Cropped most      001.png (33 %)" in capsys.readouterr().out
    assert refused("dataset", "captions", pictures, "--images=-1") == 2
    assert "-1 is not in the range x>=0" in capsys.readouterr().err
    assert refused("dataset", "captions", pictures, "--match", "nowhere") == 2
    assert "'nowhere'" in capsys.readouterr().err
    options = (*geometry, "--cache-dir", tmp_path / "derived")
    for encoded in ("13", "0"):
        call("dataset", "cache", pictures, nano_model, *options)
        lines = capsys.readouterr().out.splitlines()
        assert encoded in next(line for line in lines if "Encoded now" in line)


def test_init_and_doctor(tmp_path, capsys):
    call("init", "tiny", tmp_path / "model", "--dtype", "fp16")
    assert has_random_weights(open_model(str(tmp_path / "model"), OpenOptions()))
    assert (tmp_path / "model" / "model_index.json").is_file()
    assert refused("init", "tiny", tmp_path / "model") == 5
    assert "already exists" in capsys.readouterr().err
    advice = impasto("doctor")
    assert advice.returncode == 0, advice.stderr
    assert "Python" in advice.stdout


WRONG = {
    "unknown verb": (["trian"], 2, "trian"),
    "unknown option": (["train", "x.toml", "--fast"], 2, "--fast"),
    "missing file": (["train", "nowhere.toml"], 2, "nowhere.toml does not exist"),
    "unknown key": (["train", "{file}", "--set", "optimizer.rate=1"], 2, "optimizer.rate"),
    "wrong type": (["train", "{file}", "--set", "training.batch_size=many"], 2, "batch_size"),
    "missing folder": (
        ["train", "{file}", "--set", "dataset.image_dir=gone"],
        3,
        "gone does not exist",
    ),
    "missing model": (["train", "{file}", "--set", "model.path=gone"], 4, "gone does not exist"),
    "no run": (["resume", "gone"], 5, "not a run directory"),
    "no run to report": (["report", "gone"], 5, "not a run directory"),
    "unknown architecture": (["init", "huge", "x"], 2, "choose one of tiny, sd1, sd2, sdxl"),
    "unknown sampler": (["sample", "x", "y", "--sampler", "magic"], 2, "no sampler 'magic'"),
    "odd size": (
        ["sample", "x", "y", "--width", "100"],
        2,
        "--width is 100; expected a multiple of 8",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_paragraph_and_an_exit_code(run_file, tmp_path, case, capsys):
    words, code, message = WRONG[case]
    arguments = [word.format(file=run_file()) for word in words]
    before = sorted(tmp_path.rglob("*"))
    assert refused(*arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert "Traceback" not in captured.err
    new = [p for p in sorted(tmp_path.rglob("*")) if p not in before]
    assert all("derived" in p.parts for p in new)


@pytest.mark.parametrize("kind", ["empty", "without words"])
def test_unusable_folders(run_file, tmp_path, kind, capsys):
    folder = tmp_path / "other"
    folder.mkdir()
    if kind == "without words":
        draw_images(folder, 3, captions=False)
    assert refused("train", run_file(dataset={"image_dir": str(folder)}), "--plan") == 3
    expected = {"empty": "holds no images", "without words": "None of the 3 images"}
    assert expected[kind] in capsys.readouterr().err.replace("\n", " ")


def test_a_plan_refuses_a_loss_for_the_other_kind_of_model(run_file, capsys):
    file = run_file(loss={"v_loss_as_noise_loss": True})
    assert refused("train", file, "--plan") == 2, "training would not start"
    assert "is for velocity models" in capsys.readouterr().err.replace("\n", " ")
