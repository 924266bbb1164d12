"""Whole runs whose directory is in an object store, alone and with all other files there too."""

import json
import shutil
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner
from conftest import draw_images
from flat_models import one_level_model
from object_store import make_bucket, put_folder, refusing
from runs import StopAt, exported

from impasto.cli.main import impasto as commands
from impasto.errors import NotSentError, RunError
from impasto.runs import RunDirectory
from impasto.runs.remote import ownership
from impasto.runs.remote.contents import whole_states
from impasto.runs.remote.fetching import list_run
from impasto.runs.remote.local_folders import working_folder
from impasto.storage import claims, objects
from impasto.training.events import SilentEvents
from impasto.training.trainer import resume, train

nano_model = one_level_model

CHANGES = {
    "training": {"max_steps": 4},
    "saving": {"state_every_steps": 1, "keep_states": 2, "model_every_steps": 2, "keep_models": 1},
}


def model_in(place):
    found = {key: objects.read(place / key) for key in list_run(place) if key.startswith("export/")}
    return {
        key.removeprefix("export/"): content
        for key, content in found.items()
        if not key.endswith("impasto.json")  # contains the date and the run's name
    }


def losses(text):
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if "loss" in name or name == "step"
        }
        for line in text.splitlines()
    ]


_MADE = {}


@pytest.fixture
def local(train_config, tmp_path_factory):
    """The same run on a disk, uninterrupted; trained once for all tests."""
    if "local" not in _MADE:
        folder = tmp_path_factory.mktemp("local") / "run"
        _MADE["local"] = train(train_config(output_dir=str(folder), **CHANGES))
    return _MADE["local"]


@pytest.fixture
def stopped(train_config, s3, tmp_path, monkeypatch):
    """The same run in a store, stopped after step 3, and its address, as seen by another machine.

    It was trained once, and is uploaded again for each test.
    """
    url, place = "s3://stopped/run", Path("s3://stopped/run")
    if "stopped" not in _MADE:
        make_bucket(s3, "stopped")
        with pytest.raises(ZeroDivisionError):
            train(train_config(output_dir=url, **CHANGES), StopAt(3))
        _MADE["stopped"] = {key: objects.read(place / key) for key in objects.find(place).objects}
    for key in objects.find(place).objects:
        objects.remove(place / key)
    for key, content in _MADE["stopped"].items():
        claims.write(place / key, content)
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    return url, place


def test_a_run_in_a_store_is_that_of_a_disk_to_the_bit(train_config, bucket, local):
    place = bucket / "runs" / "there"
    run = train(train_config(output_dir=f"s3://{bucket.name}/runs/there", **CHANGES))
    assert exported(run) == exported(local)
    assert model_in(place) == exported(local)
    assert run.address == f"s3://{bucket.name}/runs/there"
    listed = list_run(place)
    of_disk = {p.relative_to(local.path).as_posix() for p in local.path.rglob("*") if p.is_file()}
    assert set(listed) == {key for key in of_disk if not key.startswith((".", "commands/"))}
    assert whole_states(listed) == local.saved_steps()
    settings = objects.read(place / "config.toml").decode()
    assert f'output_dir = "s3://{bucket.name}/runs/there"' in settings
    for key in listed:
        content = objects.read(place / key)
        assert b"of-no-use" not in content, key
        assert b"store-cache" not in content, key


def test_a_run_goes_on_on_another_machine_to_the_bit(tmp_path, stopped, local):
    url, place = stopped
    assert json.loads(objects.read(place / "status.json"))["phase"] == "failed"
    run = resume(url)
    assert run.path == working_folder(place)
    assert str(tmp_path / "another machine") in str(run.path)
    assert exported(run) == exported(local)
    assert model_in(place) == exported(local)
    written = objects.read(place / "metrics.jsonl").decode()
    assert losses(written) == losses(local.metrics_file.read_text(encoding="utf-8"))
    assert whole_states(list_run(place)) == local.saved_steps()
    models = {key.split("/")[1] for key in list_run(place) if key.startswith("models/")}
    assert models == {file.name for file in (local.path / "models").iterdir()}


def test_a_damaged_state_is_passed_over_for_an_older_one_in_the_store(stopped, local):
    url, place = stopped
    newest = whole_states(list_run(place))[-1]
    weights = place / f"states/step-{newest:08d}/weights.safetensors"
    content = bytearray(objects.read(weights))
    content[-3] ^= 1
    claims.write(weights, bytes(content))
    told = Told()
    assert exported(resume(url, told)) == exported(local)
    assert [note for note in told.notes if "is damaged" in note and "continuing" in note]


class Told(SilentEvents):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def test_a_store_that_fails_for_the_whole_run_costs_no_training(
    train_config, bucket, s3, local, monkeypatch
):
    monkeypatch.setattr("impasto.runs.remote.mirror.PAUSES_S", (0.01,))
    url, place = f"s3://{bucket.name}/run", bucket / "run"
    with (
        s3.failing(refusing("SlowDown", 503, "PUT /" + bucket.name + "/run/config.toml")),
        pytest.raises(NotSentError, match=f"send it with: .*send s3://{bucket.name}/run"),
    ):
        train(train_config(output_dir=url, **CHANGES))
    assert list_run(place) == {}
    assert exported(RunDirectory(working_folder(place))) == exported(local)
    result = CliRunner().invoke(commands, ["send", url])
    assert result.exit_code == 0, (result.output, result.exception)
    assert model_in(place) == exported(local)


def test_a_run_that_another_machine_has_taken_over_stops(train_config, bucket, monkeypatch):
    place = bucket / "run"

    class TakeOver(SilentEvents):
        def stepped(self, step):
            if step == 2:
                said = {"process": "1-1-abcdef", "host": "machine-b", "since": "now"}
                claims.write(place / "owners/00000002.json", json.dumps(said).encode())

    monkeypatch.setattr(ownership, "STALE_S", 0.0)  # checks have expired: one before each put
    with pytest.raises(RunError, match="taken over by process 1 on machine-b"):
        train(train_config(output_dir=f"s3://{bucket.name}/run"), TakeOver())
    assert b"ended" not in objects.read(place / "owners/00000002.json")


def test_a_run_that_does_not_begin_leaves_nothing_in_the_way(train_config, bucket, tmp_path):
    url = f"s3://{bucket.name}/run"
    with pytest.raises(Exception, match="does not exist"):
        train(train_config(output_dir=url, model={"path": str(tmp_path / "no model")}))
    assert list_run(bucket / "run") == {}
    run = train(train_config(output_dir=url, training={"max_steps": 1}))
    assert run.exported_model() is not None


def told_by(*words):
    result = CliRunner().invoke(commands, [str(word) for word in words])
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output


def test_the_main_job_with_everything_in_a_store(
    run_values, nano_model, bucket, tmp_path, monkeypatch
):
    base = f"s3://{bucket.name}"
    put_folder(draw_images(tmp_path / "few", 5), bucket / "pictures")
    put_folder(nano_model, bucket / "models" / "nano")
    dataset = {**run_values["dataset"], "image_dir": f"{base}/pictures"}
    values = {
        **run_values,
        "output_dir": f"{base}/runs/style",
        "model": {"path": f"{base}/models/nano"},
        "dataset": {**dataset, "cache_dir": f"{base}/derived"},
        "previews": {"prompts": ["a red ball"], "width": 64, "height": 64, "steps": 1},
        "training": {**run_values["training"], "max_steps": 2},
        "validation": {"split": 0.2, "timesteps": 1, "standard_error": 0, "training_images": 1},
        "saving": {**run_values["saving"], "format": "safetensors"},
    }
    file = tmp_path / "run.toml"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    assert "Usable images" in told_by("dataset", "scan", f"{base}/pictures")
    told_by("train", file, "--plan")
    assert list_run(bucket / "runs" / "style") == {}
    output = told_by("train", file)
    assert f"{base}/runs/style/export/model.safetensors" in output
    assert f"{base}/runs/style/report.html" in output
    assert not working_folder(bucket / "runs" / "style").exists(), "every file is in the store"
    listed = list_run(bucket / "runs" / "style")
    assert {"report.html", "status.json", "export/model.safetensors"} <= set(listed)

    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    refused = CliRunner().invoke(commands, ["train", str(file)])
    assert "already exists and is not empty" in str(refused.exception)
    assert "is finished" in told_by("show", f"{base}/runs/style")
    assert "is finished; its model is s3://" in told_by("resume", f"{base}/runs/style")
    told_by("report", f"{base}/runs/style")
    assert "Family" in told_by("inspect", f"{base}/runs/style")
    out = tmp_path / "drawn"
    told_by("sample", f"{base}/runs/style", "a ball", "--steps", "1", "--out", out)
    assert len(list(out.iterdir())) == 1
    told_by("convert", f"{base}/runs/style/export/model.safetensors", tmp_path / "m.safetensors")
    settings = objects.read(bucket / "runs/style/config.toml").decode()
    longer = settings.replace("max_steps = 2", "max_steps = 3")
    assert longer != settings
    objects.filesystem_of(bucket).pipe_file(
        f"{bucket.name}/runs/style/config.toml", longer.encode()
    )
    told_by("resume", f"{base}/runs/style")
    assert json.loads(objects.read(bucket / "runs/style/status.json"))["step"] == 3
    shutil.rmtree(tmp_path / "another machine")
    assert "3 of 3" in told_by("show", f"{base}/runs/style")
