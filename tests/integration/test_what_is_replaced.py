"""A model replaces a model on request, and nothing else; a moved run is found complete."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from component_files import VAE_FILE
from flat_models import one_level_model
from runs_made import made_run
from safetensors.torch import load_file, save_file

from impasto.checkpoints.keymap import ComponentKind
from impasto.cli.main import impasto as commands
from impasto.config.load import build_run_config
from impasto.config.setting_files import read_toml
from impasto.datasets.build import survey
from impasto.errors import ConfigError, RunError
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.conversion import convert_model, save_model
from impasto.models.writing.targets import why_not_replaced
from impasto.owners import current_process
from impasto.runs import RunDirectory
from impasto.training.events import SilentEvents
from impasto.training.saving.own_models import OwnModels
from impasto.training.trainer import resume, train

nano_model = one_level_model

THREE_STEPS = {"training": {"max_steps": 3}}


class Noted(SilentEvents):
    """Records a run's messages."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def convert(*words):
    """Run the command in this process; its exceptions are passed on."""
    commands.main(["convert", *map(str, words)], standalone_mode=False)


def test_a_folder_with_other_files_is_not_replaced_by_a_model(nano_model, tmp_path):
    target = tmp_path / "models"
    shutil.copytree(nano_model, target)
    assert why_not_replaced(target, by_folder=True) == ""
    (target / "unet" / "notes").mkdir()
    assert "unet/notes" in why_not_replaced(target, by_folder=True)
    (target / "unet" / "notes").rmdir()
    (target / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"also holds holiday\.jpg"):
        convert(nano_model, target, "--overwrite")
    assert (target / "holiday.jpg").is_file()


def test_a_folder_is_not_replaced_by_a_model_made_of_what_is_in_it(nano_model, tmp_path):
    source = tmp_path / "models" / "base.safetensors"
    source.parent.mkdir()
    convert(nano_model, source)
    with pytest.raises(ConfigError, match=r"base\.safetensors is in"):
        convert(source, source.parent, "--overwrite")
    assert source.is_file()


def test_the_model_of_a_run_is_not_replaced_by_one_made_of_the_run(nano_model, tmp_path):
    run = made_run(tmp_path / "run", model="export/style.safetensors")
    export = run.export / "style.safetensors"
    convert_model(str(nano_model), export, "safetensors", {}, OpenOptions())
    before = export.read_bytes()
    half = {ComponentKind.UNET: torch.float16}
    with pytest.raises(ConfigError, match="is the source itself"):
        convert_model(str(run.path), export, "safetensors", half, OpenOptions(), overwrite=True)
    model = load_base_model(run.path)
    with pytest.raises(ConfigError, match="is the source itself"):
        save_model(model, export, dtype=torch.float16, overwrite=True)
    vae = str(export)
    with pytest.raises(ConfigError, match="is the source itself"):
        convert_model(
            str(nano_model), export, "safetensors", {}, OpenOptions(vae=vae), overwrite=True
        )
    assert export.read_bytes() == before


def test_another_vae_is_written_and_not_replaced_by_the_model_that_took_it(nano_model, tmp_path):
    other = shutil.copytree(nano_model, tmp_path / "other")
    tensors = {name: tensor + 1 for name, tensor in load_file(other / VAE_FILE).items()}
    save_file(tensors, other / VAE_FILE)
    file = tmp_path / "other.safetensors"
    convert_model(str(other), file, "safetensors", {}, OpenOptions())
    before = file.read_bytes()
    for vae, target in ((file, file), (other, other), (other / "vae", other)):
        model = load_base_model(nano_model, OpenOptions(vae=str(vae)))
        with pytest.raises(ConfigError, match=r"is the source itself|vae is in"):
            save_model(model, target, overwrite=True)
    assert file.read_bytes() == before
    saved = load_file(save_model(model, tmp_path / "out") / VAE_FILE)
    assert all(torch.equal(saved[name], tensors[name]) for name in tensors)


def test_files_and_folders_do_not_replace_each_other(tmp_path):
    file = tmp_path / "model"
    file.write_bytes(b"x")
    assert "it is a file" in why_not_replaced(file, by_folder=True)
    assert "it is a folder" in why_not_replaced(tmp_path, by_folder=False)
    assert why_not_replaced(tmp_path / "missing", by_folder=True) == ""


def test_overwriting_in_a_run_spares_folders_with_other_files(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    target = tmp_path / "models" / "my-style-v1.5"
    target.mkdir(parents=True)
    own = OwnModels(run, overwrite=True)
    own.require_free([target])
    (target / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match=r"holiday\.jpg"):
        own.require_free([target])
    assert own.claim(target) == target.with_name("my-style-v1.5-2")


def test_a_run_that_was_moved_with_its_models_goes_on(train_config, tmp_path, nano_model):
    before = tmp_path / "before"
    config = train_config(
        output_dir=str(before / "run"),
        saving={
            "model_dir": str(before / "models"),
            "model_every_steps": 2,
            "state_every_steps": 2,
            "format": "safetensors",
        },
        **THREE_STEPS,
    )
    run = train(config)
    model = run.exported_model()
    assert model == before / "models" / "model.safetensors"
    before.rename(tmp_path / "after")
    moved = RunDirectory(tmp_path / "after" / "run")
    assert moved.exported_model() == tmp_path / "after" / "models" / "model.safetensors"
    own = OwnModels(moved)
    own.require_free((tmp_path / "after" / "models").glob("*.safetensors"))


def test_the_model_of_a_run_is_the_one_that_it_recorded(train_config):
    run = train(
        train_config(saving={"average": "beside"}, training={"ema_decay": 0.9, "max_steps": 1})
    )
    (run.export / "README.md").write_text("of the user", encoding="utf-8")
    assert run.exported_model() == run.export / "model"


def test_states_are_dropped_after_the_end_is_recorded(train_config, monkeypatch):
    seen = []
    real = RunDirectory.write_status

    def write_status(self, phase, **details):
        if phase == "finished":
            seen.extend(self.saved_steps())
        real(self, phase, **details)

    monkeypatch.setattr(RunDirectory, "write_status", write_status)
    config = train_config(
        saving={"keep_final_state": False, "state_every_steps": 1}, training={"max_steps": 2}
    )
    run = train(config)
    assert seen
    assert run.saved_steps() == []
    with pytest.raises(RunError, match="its states are gone"):
        resume(run.path)


def test_what_a_killed_scan_left_half_written_is_removed(train_config, tmp_path):
    dead = replace(current_process(), start=1).token
    derived = tmp_path / "derived"
    derived.mkdir()
    (derived / f".scan-1.json.{dead}.00000000.partial").write_text("half", encoding="utf-8")
    survey(train_config())
    assert not list(derived.glob(".*.partial"))


def test_a_run_goes_on_from_another_folder_than_its_own(tmp_path, run_values, monkeypatch):
    """A run resumes from another folder with its original paths, to the same bits."""
    copied = shutil.copytree(run_values["model"]["path"], tmp_path / "base")
    values = {**run_values, "output_dir": "runs/dog", "model": {"path": copied.name}}
    values["dataset"] = {**values["dataset"], "image_dir": "pictures", "cache_dir": "derived"}
    values["saving"] = {"state_every_steps": 2, "model_dir": "models"}
    values["training"] = {**values["training"], "max_steps": 3}
    monkeypatch.chdir(tmp_path)
    train(build_run_config(values, source="test"))
    last = Path("runs/dog/states/step-00000003")
    weights = (last / "weights.safetensors").read_bytes()
    shutil.rmtree(last)
    monkeypatch.chdir(tmp_path / "runs")
    told = Noted()
    run = resume(Path("dog"), told)
    where = f"Relative paths of the run are resolved from {tmp_path}, where it was started."
    assert [note for note in told.notes if "resolved from" in note] == [where]
    assert run.status()["folder"] == str(tmp_path)
    assert sorted(p.name for p in Path().iterdir()) == ["dog"]
    assert (tmp_path / last / "weights.safetensors").read_bytes() == weights


def test_a_run_that_was_renamed_knows_its_models(train_config, tmp_path):
    """The checkpoint is replaced by the next one, and the finished model keeps its name."""
    saving = {"model_every_steps": 1, "keep_models": 1, "state_every_steps": 1, "name": None}
    run = train(train_config(output_dir=str(tmp_path / "a"), saving=saving, **THREE_STEPS))
    before = {path.relative_to(run.path) for path in OwnModels(run).paths() if path.exists()}
    shutil.rmtree(run.states / "step-00000003")
    run.path.rename(tmp_path / "b")
    moved = resume(tmp_path / "b")
    after = {path.relative_to(moved.path) for path in OwnModels(moved).paths() if path.exists()}
    assert after == before
    assert {path.name.partition("-")[0].partition(".")[0] for path in after} == {"a"}
    settings = read_toml(moved.config_file)
    assert (settings["output_dir"], settings["saving"]["name"]) == (str(moved.path), "a")


def test_a_copy_of_a_run_writes_models_of_its_own(train_config, tmp_path):
    """Models outside the directory belong to the original run, now and later."""
    saving = {
        "model_dir": str(tmp_path / "models"), "format": "safetensors", "name": None,
        "model_every_steps": 1, "keep_models": 1,
    }  # fmt: skip
    run = train(train_config(output_dir=str(tmp_path / "a"), saving=saving, **THREE_STEPS))
    before = {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    shutil.copytree(run.path, tmp_path / "b")
    file = tmp_path / "b" / "config.toml"
    for steps in (4, 5):
        longer = file.read_text(encoding="utf-8").replace(
            f"max_steps = {steps - 1}", f"max_steps = {steps}"
        )
        file.write_text(longer, encoding="utf-8")
        told = Noted()
        copied = resume(tmp_path / "b", told)
        assert any("is a copy of" in note for note in told.notes) is (steps == 4)
    after = {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    assert after.items() > before.items()
    assert {name.partition("-")[0].partition(".")[0] for name in after.keys() - before.keys()} == {
        "b"
    }
    assert copied.exported_model() == tmp_path / "models" / "b.safetensors"
    assert len(after) == len(before) + 2  # the finished model, and the newest checkpoint


@pytest.mark.parametrize(("keep", "stays"), [(None, ["a-step-9"]), (1, ["a-step-4", "a-step-9"])])
def test_models_that_stay_of_an_attempt_are_no_free_room(tmp_path, keep, stays):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    own = OwnModels(run)
    targets = [tmp_path / name for name in ("a-step-4", "a-step-9")]
    for target in targets:
        own.claim(target).write_bytes(b"x")
    planned = [tmp_path / "a-step-2", tmp_path / "a-step-4"]
    found = OwnModels(run).staying(planned, keeps_newest=bool(keep))
    assert [path.name for path in found] == stays
    (run.states / "step-00000004").mkdir(parents=True)
    assert run.saved_steps()
    assert OwnModels(run).staying(planned, keeps_newest=bool(keep)) == ()
    own.restart()
    assert [p.name for p in OwnModels(run).staying(planned, keeps_newest=bool(keep))] == stays
