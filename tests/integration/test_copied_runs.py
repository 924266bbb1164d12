"""A copied run continues as a separate run; a renamed one stays the same run."""

import shutil

import pytest
from flat_models import one_level_model
from test_what_is_replaced import Noted

from impasto.config.load import load_begun_config
from impasto.config.setting_files import read_toml
from impasto.errors import RunError
from impasto.training.saving.own_models import OwnModels
from impasto.training.trainer import resume, train

nano_model = one_level_model

SAVING = {"format": "safetensors", "name": None, "model_every_steps": 1, "keep_models": 1}


def of_copies(told):
    return [note for note in told.notes if "is a copy of" in note]


@pytest.fixture
def begun(train_config, tmp_path):
    """Train two steps; `saving` sets where the models are written."""

    def begin(folder, **saving):
        return train(
            train_config(
                output_dir=str(tmp_path / folder),
                saving={**SAVING, **saving},
                training={"max_steps": 2},
            )
        )

    return begin


def longer(run, steps, **saving):
    """Return the run's own settings with more steps, as `--resume` with other flags changes
    them."""
    config = load_begun_config(run / "config.toml")
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"max_steps": steps}),
            "saving": config.saving.model_copy(update=saving),
        }
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_models_in_a_copys_own_directory_keep_their_names(begun, tmp_path):
    """A copy's own models keep their names, or those under the former name would remain for
    ever."""
    run = begun("a")
    copy = shutil.copytree(run.path, tmp_path / "b")
    told = Noted()
    resumed = resume(copy, told, changed=longer(copy, 4))
    assert of_copies(told) == [
        f"This run is a copy of {run.path}. Its models are called a from now on, and those of the "
        f"other run stay unchanged."
    ]
    assert (names(copy / "export"), names(copy / "models")) == (
        ["a.safetensors"], ["a-step00000003.safetensors"]
    )  # fmt: skip
    assert names(run.path / "models") == ["a-step00000001.safetensors"]
    assert {path.parent.parent for path in OwnModels(resumed).paths()} == {copy}


def test_a_copy_that_goes_on_with_other_settings_stays_its_own(begun, tmp_path):
    models = tmp_path / "models"
    run = begun("a", model_dir=str(models))
    copy = shutil.copytree(run.path, tmp_path / "b")
    for steps in (4, 6):
        told = Noted()
        resume(copy, told, changed=longer(copy, steps, name="c"))
        assert ["called c from now on" in note for note in of_copies(told)] == [True] * (steps == 4)
        assert read_toml(copy / "config.toml")["output_dir"] == str(copy)
    assert names(models) == [
        "a-step00000001.safetensors", "a.safetensors", "c-step00000005.safetensors",
        "c.safetensors",
    ]  # fmt: skip


def test_a_renamed_run_is_no_copy_of_the_one_in_its_old_place(begun, tmp_path):
    models = str(tmp_path / "models")
    run = begun("a", model_dir=models, name="first")
    old = run.path.rename(tmp_path / "old")
    begun("a", model_dir=models, name="second")
    told = Noted()
    resume(old, told, changed=longer(old, 4))
    assert of_copies(told) == []
    assert names(tmp_path / "models") == [
        "first-step00000003.safetensors", "first.safetensors", "second-step00000001.safetensors",
        "second.safetensors",
    ]  # fmt: skip


def test_a_copy_of_a_renamed_run_is_known_as_one(begun, tmp_path):
    """A copy of a renamed run is recognised once that has continued: its settings name its
    folder."""
    run = begun("a", model_dir=str(tmp_path / "models"))
    renamed = run.path.rename(tmp_path / "renamed")
    told = Noted()
    resume(renamed, told, changed=longer(renamed, 3))
    assert of_copies(told) == []
    before = {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    copy = shutil.copytree(renamed, tmp_path / "b")
    with pytest.raises(RunError, match=r"a\.safetensors.* and this run did not write it"):
        resume(copy, told, changed=longer(copy, 4))
    [note] = of_copies(told)
    assert note.startswith(f"This run is a copy of {renamed}. Its models are called a from now on")
    resume(copy, changed=longer(copy, 4, name="b"))
    after = {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    assert after.items() > before.items()


def test_a_copy_does_not_replace_the_models_of_the_other_run(begun, tmp_path):
    """The model name is set in the run's settings, so both have it; the copy replaces nothing."""
    run = begun("a", model_dir=str(tmp_path / "models"), name="first")
    before = (tmp_path / "models" / "first.safetensors").read_bytes()
    copy = shutil.copytree(run.path, tmp_path / "b")
    with pytest.raises(RunError, match=r"first\.safetensors.* and this run did not write it"):
        resume(copy, changed=longer(copy, 4))
    assert (tmp_path / "models" / "first.safetensors").read_bytes() == before
