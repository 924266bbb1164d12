"""The metrics of a run that was stopped and resumed are those of one that was not, to the bit."""

import json
import signal

import pytest

from impasto.errors import Interrupted
from impasto.training.events import SilentEvents
from impasto.training.trainer import resume, train

OPTIONS = {
    "logging": {"every_steps": 4, "image_losses": True},
    "saving": {"state_every_steps": 0, "format": "safetensors"},
    "training": {"max_steps": 8},
}


class Press(SilentEvents):
    """Presses Ctrl-C in a step."""

    def __init__(self, step):
        self.step = step

    def stepped(self, step):
        if step == self.step:
            signal.raise_signal(signal.SIGINT)


def lines(run):
    records = [json.loads(line) for line in run.metrics_file.read_text("utf-8").splitlines()]
    of_time = {"images_per_s", "data_wait", "memory_mib", "time"}
    return [{k: v for k, v in record.items() if k not in of_time} for record in records]


@pytest.mark.parametrize("stops", [(2,), (3, 6), (5, 6, 7)], ids=str)
def test_stopping_splits_no_line(train_config, tmp_path, stops):
    whole = train(train_config(output_dir=str(tmp_path / "whole"), **OPTIONS))
    config = train_config(**OPTIONS)
    run = config.output_dir
    for step in stops:
        with pytest.raises(Interrupted, match=f"{step} of 8 steps are done"):
            train(config, Press(step)) if step == stops[0] else resume(run, Press(step))
    done = resume(run)
    assert [line["step"] for line in lines(done)] == [4, 8]
    assert lines(done) == lines(whole)
    assert (done.path / "image_losses.csv").read_text("utf-8") == (
        whole.path / "image_losses.csv"
    ).read_text("utf-8")
