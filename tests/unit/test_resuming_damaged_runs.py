"""`--resume` with flags, on a run whose config.toml is damaged: its fault is named."""

import pytest

from impasto.errors import ConfigError
from impasto.runs import RunDirectory
from impasto.sdscripts.flag import FINE_TUNE
from impasto.sdscripts.resuming import resumed_config

WHOLE = 'output_dir = "r"\nmodel.path = "m"\ndataset.image_dir = "p"\ntraining.max_steps = 2\n'


def resumed(tmp_path, text):
    run = RunDirectory(tmp_path / "r")
    run.path.mkdir()
    run.config_file.write_text(text, encoding="utf-8")
    flags = {"max_train_steps": 5}
    return resumed_config(FINE_TUNE, run, flags, without_gpu=None, has_tensorboard=False)[0]


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
