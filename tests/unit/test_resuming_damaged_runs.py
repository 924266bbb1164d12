"""`--resume` with flags, on a run with a damaged config.toml or one of an earlier version."""

import pytest

from impasto.errors import ConfigError
from impasto.runs import RunDirectory
from impasto.sdscripts.flag import FINE_TUNE
from impasto.sdscripts.resuming import resumed_config

WHOLE = 'output_dir = "r"\nmodel.path = "m"\ndataset.image_dir = "p"\ntraining.max_steps = 2\n'


def resumed_with(tmp_path, text, flags):
    run = RunDirectory(tmp_path / "r")
    run.path.mkdir()
    run.config_file.write_text(text, encoding="utf-8")
    return resumed_config(FINE_TUNE, run, flags, without_gpu=None, has_tensorboard=False)


def resumed(tmp_path, text):
    return resumed_with(tmp_path, text, {"max_train_steps": 5})[0]


@pytest.mark.parametrize(
    ("found", "damaged"),
    [
        ('model.path = "m"\n', ""),
        ('model.path = "m"', "model = 3"),
        ('model.path = "m"', "model.path = 3"),
        ('model.path = "m"', "model = []"),
        ('dataset.image_dir = "p"\n', ""),
        ('dataset.image_dir = "p"', 'dataset = "p"'),
        ('dataset.image_dir = "p"', 'dataset.image_dir = "p"\ndataset.resolution = ["x", []]'),
        ("training.max_steps = 2", "training = 2"),
        ("training.max_steps = 2", "training.max_steps = 2\nsaving = 1"),
        ("training.max_steps = 2", "training.max_steps = 2\nmethod = [1]"),
        ("training.max_steps = 2", "training.max_steps = 2\noptimizer = true"),
    ],
)
def test_the_settings_file_and_its_fault_are_named(tmp_path, found, damaged):
    assert found in WHOLE
    with pytest.raises(ConfigError, match=r"config\.toml: "):
        resumed(tmp_path, WHOLE.replace(found, damaged))


def test_what_is_whole_goes_on(tmp_path):
    assert resumed(tmp_path, WHOLE).training.max_steps == 5


@pytest.mark.parametrize(
    ("began", "told"), [(0.1, "this one was started with"), (None, "it has no")]
)
def test_a_flag_that_is_passed_over_now_is_told_as_the_run_has_it(tmp_path, began, told):
    """Earlier versions turned the flag into a setting, which their runs keep."""
    text = WHOLE if began is None else f"{WHOLE}loss.noise_loss_like_v = {began}\n"
    config, notices = resumed_with(tmp_path, text, {"v_pred_like_loss": 0.1})
    assert config.loss.noise_loss_like_v == began
    (notice,) = notices
    assert told in notice
