"""A run that is just starting names its models, and leaves no files behind if it fails."""

from pathlib import Path

import pytest

from impasto.errors import DatasetError
from impasto.runs.preparing import runs_prepared
from impasto.training import trainer
from impasto.training.planning import resolved_run


def test_a_run_names_its_models_while_its_images_are_looked_at(train_config, tmp_path, monkeypatch):
    config = train_config(output_dir=str(tmp_path / "runs" / "sub" / "dog"))
    seen = []

    def survey(*_, **__):
        seen.extend(runs_prepared([tmp_path / "runs"]))
        raise DatasetError("there are no images")

    monkeypatch.setattr(resolved_run, "survey", survey)
    with pytest.raises(DatasetError):
        trainer.train(config)
    (run,) = seen
    assert run.path == config.output_dir
    assert run.settings["model"]["path"] == config.model.path
    assert run.folder == str(Path.cwd())
    assert not config.output_dir.exists()
    assert runs_prepared([tmp_path / "runs"]) == []
