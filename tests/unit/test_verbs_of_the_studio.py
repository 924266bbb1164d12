"""Verbs for all that the studio can do: a run's learning, models and their users, tasks."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs_made import made_run
from support.warm import running
from test_learning import make_models, write_losses
from test_run_status import GONE

from impasto.cli import main
from impasto.owners import current_process
from impasto.runs.queue import Queue
from impasto.studio.folders import HOME
from impasto.studio.tasks import TASKS, Tasks


def impasto(*words):
    """Run the command line in this process; return its output."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        command = [str(word) for word in words]
        code = main._run(lambda: main.impasto.main(command, standalone_mode=False))
    return subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def plain(done):
    """Return the output, without the line breaks of a narrow terminal."""
    return " ".join((done.stdout + done.stderr).split())


# impasto show


def test_a_run_is_shown_in_words(tmp_path):
    run = made_run(
        tmp_path / "runs" / "dog",
        losses=[(1, 0.9), (9, 0.5)],
        validation=[(0, 0.9), (4, 0.5), (9, 0.8)],
    )
    make_models(run, "dog-step00000004.safetensors", "dog-step00000009.safetensors")
    rows = [(1, "a.png", 10, 1.0), (1, "b.png", 10, 3.0), (2, "c.png", 10, 2.0)]
    write_losses(run.image_losses_file, rows)
    said = plain(impasto("show", run.path, "--images", "2"))
    assert "lowest, 0.5000, after 4 steps and has risen since: the model is over-fitting" in said
    assert "dog-step00000004.safetensors, of step 4" in said
    assert "of 3 images b.png 1.50 × the usual loss, shown once c.png 1.00 ×" in said
    assert "a.png" not in said
    found = json.loads(impasto("show", run.path, "--json", "--images", "1").stdout)
    assert found["is_overfitting"] is True
    assert (found["best_step"], found["best_loss"]) == (4, 0.5)
    assert Path(found["checkpoint"]).name == "dog-step00000004.safetensors"
    assert found["checkpoint_step"] == 4
    assert found["images"] == [{"path": "b.png", "ratio": 1.5, "times": 1}]


def test_what_is_not_known_of_a_run_is_said_with_how_to_know_it(tmp_path):
    run = made_run(tmp_path / "bare")
    said = plain(impasto("show", run.path))
    assert "validation.split holds images out" in said
    assert "logging.image_losses = true" in said
    assert "Best model" not in said
    assert json.loads(impasto("show", run.path, "--json").stdout)["checkpoint_step"] is None
    measured = made_run(tmp_path / "measured", validation=[(0, 0.9), (4, 0.5)])
    assert "No model was kept of that step" in plain(impasto("show", measured.path))
    assert impasto("show", tmp_path / "missing").returncode == 5


# impasto models


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base.safetensors").write_bytes(b"x" * 2048)
    (tmp_path / "models" / "notes.txt").write_bytes(b"x")
    return tmp_path


def uses(place, name, **status):
    settings = {"model": {"path": str(place / "models" / "base.safetensors")}}
    return made_run(place / "runs" / name, settings=settings, **status)


def test_models_are_listed_with_those_of_runs(place):
    run = uses(place, "dog")
    run.export.mkdir()
    (run.export / "dog.ckpt").write_bytes(b"x")
    found = {Path(one["path"]).name: one for one in lines(impasto("models", "list", "--json"))}
    assert found.keys() == {"base.safetensors", "dog.ckpt"}
    assert found["base.safetensors"]["bytes"] == 2048
    assert found["base.safetensors"]["run"] is None
    assert Path(found["dog.ckpt"]["run"]).name == "dog"
    assert "of the run dog" in plain(impasto("models", "list", "runs"))
    (place / "empty").mkdir()
    assert "No models in empty" in plain(impasto("models", "list", "empty"))
    assert impasto("models", "list", "missing").returncode == 5


def test_a_list_of_models_that_is_cut_says_so(place, monkeypatch):
    from click.testing import CliRunner

    from impasto.cli.models import list_models
    from impasto.studio import models

    assert "may be missing" not in CliRunner().invoke(list_models, ["models"]).stderr
    monkeypatch.setattr(models, "MOST_SCANNED", 1)
    for words in ([], ["--json"]):
        shown = CliRunner().invoke(list_models, ["models", *words])
        assert "models has over 1 folders and models" in shown.stderr
        assert "may be missing" not in shown.stdout


def test_a_model_is_deleted_after_who_needs_it_was_named(place):
    model = place / "models" / "base.safetensors"
    uses(place, "dog")
    settings = f"output_dir = 'runs/new'\n[model]\npath = '{model.as_posix()}'\n"
    Queue(place / "queue").add(settings, "next", place)
    asked = impasto("models", "delete", model)
    assert asked.returncode == 0
    assert re.search(r"^What +\.safetensors · 2\.0 KiB · ", asked.stdout, re.M)
    assert "runs/dog (model.path)" in plain(asked).replace(os.sep, "/")
    assert "job 1 of the queue, next (model.path)" in plain(asked)
    assert "Add --yes" in plain(asked)
    assert model.is_file()
    done = impasto("models", "delete", model, "--yes")
    assert done.returncode == 0
    assert not model.exists()
    (kept,) = (place / "models" / ".trash").glob("*/base.safetensors")
    assert kept.stat().st_size == 2048
    assert impasto("models", "list", "--json").stdout == ""
    assert "2.0 KiB. Nothing was removed" in plain(impasto("models", "empty-trash", "models"))
    assert kept.is_file()
    assert "Removed 1 model permanently. That freed 2.0 KiB." in plain(
        impasto("models", "empty-trash", "models", "--yes")
    )
    assert not kept.exists()


def test_a_deleted_model_is_listed_restored_and_removed_for_good(place):
    model = place / "models" / "base.safetensors"
    uses(place, "dog")
    assert "in the trash of models" in plain(impasto("models", "list", "--deleted", "models"))
    impasto("models", "delete", model, "--yes")
    (one,) = lines(impasto("models", "list", "--deleted", "--json", "models"))
    kept = Path(one["path"])
    assert (place / one["from"]).resolve() == model.resolve()
    assert "deleted 20" in plain(impasto("models", "list", "--deleted", "models"))
    model.write_bytes(b"new")
    refused = impasto("models", "restore", kept)
    assert refused.returncode == 4
    assert "nothing is replaced" in plain(refused)
    model.unlink()
    assert "Restored to" in plain(impasto("models", "restore", kept))
    assert model.stat().st_size == 2048
    assert impasto("models", "restore", kept).returncode == 4
    impasto("models", "delete", model, "--yes")
    (one,) = lines(impasto("models", "list", "--deleted", "--json", "models"))
    asked = plain(impasto("models", "purge", one["path"]))
    assert "runs/dog (model.path)" in asked.replace(os.sep, "/")
    assert "Add --yes" in asked
    assert "That freed 2.0 KiB." in plain(impasto("models", "purge", one["path"], "--yes"))
    assert lines(impasto("models", "list", "--deleted", "--json", "models")) == []


def test_a_model_that_a_run_works_with_is_not_deleted(place):
    model = place / "models" / "base.safetensors"
    run = uses(place, "dog")
    with run.held() as held:
        held.write_status("training", step=1, total_steps=9)
        refused = impasto("models", "delete", model, "--yes")
    assert refused.returncode == 5
    assert "Nothing was deleted: dog works with it now" in plain(refused)
    assert model.is_file()


def test_a_model_of_a_run_goes_into_the_trash_beside_the_run(place):
    run = uses(place, "dog", phase="stopped", process=GONE)
    run.export.mkdir()
    (run.export / "dog.safetensors").write_bytes(b"x")
    done = impasto("models", "delete", run.export / "dog.safetensors", "--yes")
    assert "has exported it" in plain(done)
    assert "No run in the current folder and no job of queue needs it" in plain(done)
    (moved,) = (place / "runs" / ".trash").glob("*/dog.safetensors")
    assert f"models restore {moved}" in plain(done)
    assert not (run.path / ".trash").exists()
    for path, words in (
        ("models/notes.txt", "is not a model"),
        ("models", "is not a model"),
        ("models/missing.ckpt", "does not exist"),
    ):
        refused = impasto("models", "delete", path, "--yes")
        assert refused.returncode == 4, path
        assert words in plain(refused)
    assert "models list --deleted" in plain(refused)
    assert (place / "models" / "notes.txt").is_file()


# impasto tasks


def task(place, name, words, **about):
    folder = place / HOME / TASKS / name
    folder.mkdir(parents=True)
    said = {"words": words, "title": "Tag 12 images", "back": "/", "started_at": 1.7e9, **about}
    (folder / "task.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


def test_tasks_are_listed_as_they_stand(tmp_path, monkeypatch):
    assert "has started no tasks" in plain(impasto("tasks", "list", "--runs", tmp_path))
    refused = impasto("tasks", "list", "--runs", tmp_path / "missing")
    assert refused.returncode == 5
    assert "is not a folder. Give the folder of runs of the studio: --runs." in plain(refused)
    monkeypatch.chdir(tmp_path)
    here = plain(impasto("tasks", "list"))
    assert here == "The studio has started no tasks for the runs in the current folder."
    old = task(tmp_path, "20260101-000000-abcdef", ["dataset", "tag"], process=GONE)
    alive = current_process().token
    new = task(tmp_path, "20260102-000000-abcdef", ["convert", "x"], process=alive)
    stage = {"kind": "stage", "text": "Tagging", "done": 3, "total": 12, "unit": "images"}
    events = [{"kind": "begin", "pid": 1}, stage]
    (new / "events.jsonl").write_text(
        "".join(json.dumps({"time": time.time(), **event}) + "\n" for event in events),
        encoding="utf-8",
    )
    found = lines(impasto("tasks", "list", "--runs", tmp_path, "--json"))
    assert [(one["name"], one["state"]) for one in found] == [
        (new.name, "working"), (old.name, "killed"),
    ]  # fmt: skip
    said = plain(impasto("tasks", "list", "--runs", tmp_path))
    assert f"{new.name} working · Tag 12 images · Tagging: 3 of 12 images" in said


def test_a_task_is_stopped_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", running.stand_in() or sys.executable)
    known = Tasks(tmp_path / HOME / TASKS)
    name = known.start(["draw-worker", tmp_path / "drawings", "--idle", "60"], "Draw")
    process = known._started[name]
    try:
        until = time.monotonic() + 60
        while known.state_of(known.find(name)).state != "working" and time.monotonic() < until:
            time.sleep(0.01)
        done = impasto("tasks", "stop", name, "--runs", tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Asked to stop: Draw" in plain(done)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
    refused = impasto("tasks", "stop", name, "--runs", tmp_path)
    assert refused.returncode == 5
    assert f"Task {name} is not running" in plain(refused)
    for missing in ("20260101-000000-abcdef", "../x", "x"):
        refused = impasto("tasks", "stop", missing, "--runs", tmp_path)
        assert refused.returncode == 5, missing
        assert "There is no task" in plain(refused)


@pytest.mark.skipif(sys.platform == "win32", reason="creating links needs a privilege on Windows")
def test_a_folder_of_tasks_that_leads_elsewhere_is_refused(tmp_path):
    (tmp_path / "runs" / ".impasto").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / HOME).symlink_to(tmp_path / "elsewhere")
    refused = impasto("tasks", "list", "--runs", tmp_path / "runs")
    assert refused.returncode == 5
    assert "leads out of" in plain(refused)
