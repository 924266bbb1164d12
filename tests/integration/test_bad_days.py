"""Damage, kills, signals and full disks in whole runs are explained, and nothing is lost."""

import errno
import json
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import impasto
from flat_models import one_level_model
from runs import FOUR, KillAt, StopAt, copied, exported, trained_and_killed
from safetensors.torch import load_file

from impasto import files, locks
from impasto.cli.main import impasto as commands
from impasto.cli.main import run_and_report
from impasto.errors import (
    DatasetError,
    Interrupted,
    NonFiniteLossError,
    RunError,
    StorageError,
)
from impasto.runs import RunDirectory
from impasto.training.events import SilentEvents
from impasto.training.saving import saver
from impasto.training.signals import STOPPING, StoppedBySignal, StopRequest
from impasto.training.trainer import resume, train

nano_model = one_level_model

EACH_STEP = {"state_every_steps": 1, "keep_states": 9}


class Noted(SilentEvents):
    """Records notes."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def kept_and_killed(shared_config):
    """A run of four steps with a state after each, and its copy as if killed in the last step."""
    return trained_and_killed(shared_config(saving=EACH_STEP, **FOUR), step=4, saved=3)


@pytest.fixture
def whole(kept_and_killed):
    """The uninterrupted run. Read-only by agreement."""
    return kept_and_killed[0]


@pytest.fixture
def killed(kept_and_killed, tmp_path):
    """The same run, killed when the state of step three was its newest."""
    return copied(kept_and_killed[1], tmp_path)


def test_damaged_newest_states_are_named_and_the_one_before_is_taken(killed, whole):
    run = killed
    damaged = {3: "weights.safetensors", 2: "optimizer.safetensors"}
    for step, name in damaged.items():
        flip_a_bit(run.states / f"step-{step:08d}" / name)
    events = Noted()
    resume(run.path, events)
    said = [note for note in events.notes if "damaged" in note]
    for (step, name), note in zip(damaged.items(), said, strict=True):
        assert name in note
        assert f"step-{step:08d}-damaged" in note
        assert f"the earlier state step-{step - 1:08d}" in note
        assert (run.states / f"step-{step:08d}-damaged" / name).is_file(), "no file is deleted"
    assert run.saved_steps() == [1, 2, 3, 4], "the same steps are saved again"
    assert exported(run) == exported(whole)


def test_without_a_whole_state_nothing_is_begun_or_deleted(killed):
    run = killed
    for step in run.saved_steps():
        flip_a_bit(run.states / f"step-{step:08d}" / "weights.safetensors")
    with pytest.raises(RunError, match="no older undamaged state") as caught:
        resume(run.path)
    assert "Delete" not in str(caught.value)
    assert len(list(run.states.iterdir())) == 3


def test_a_state_without_hashes_is_read_and_this_is_said(killed, whole):
    run = killed
    for folder in run.states.iterdir():
        (folder / "hashes.json").unlink()
        file = folder / "state.json"
        described = json.loads(file.read_text(encoding="utf-8"))
        del described["has_hashes"]
        file.write_text(json.dumps(described), encoding="utf-8")
    events = Noted()
    resume(run.path, events)
    assert any("without hashes" in note for note in events.notes)
    assert exported(run) == exported(whole)


def test_a_model_that_was_due_with_the_newest_state_appears_after_a_resume(
    train_config, monkeypatch
):
    """A model whose state exists but which was not written before a kill is written on resume."""
    from impasto.training.pauses import Pauses

    saving = {"model_every_steps": 2, "state_every_steps": 2, "format": "safetensors"}
    config = train_config(saving=saving, training={"max_steps": 3})
    kill, real = KillAt(config.output_dir, step=2, saved=2), Pauses.export_intermediate

    def killed(loop, done, **options):
        kill.stepped(done)
        real(loop, done, **options)

    monkeypatch.setattr(Pauses, "export_intermediate", killed)
    undisturbed = models_of(train(config))
    monkeypatch.undo()
    run = kill.put_back()
    assert run.saved_steps() == [2], "the state was there"
    assert not (run.path / "models").exists(), "and the model was not"
    resume(run.path)
    assert models_of(run) == undisturbed
    assert len(undisturbed) == 1


def models_of(run):
    """Return the checkpoints of a run without their metadata, which contains the date."""
    return {
        file.name: {name: tensor.tolist() for name, tensor in load_file(file).items()}
        for file in (run.path / "models").iterdir()
    }


def test_a_report_that_is_missing_after_a_kill_is_made(whole, tmp_path):
    run = copied(whole, tmp_path)
    assert not run.report.exists()
    assert "is finished" in resumed_by_command(run)
    assert run.report.is_file()


def resumed_by_command(run):
    done = CliRunner().invoke(commands, ["resume", str(run.path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_an_abandoned_attempt_leaves_its_samples_and_best_model_out(train_config, tmp_path):
    """A new attempt at another rate, after its states were moved away, ignores the earlier one's
    files.
    """
    config = train_config(
        saving={**EACH_STEP, "format": "safetensors"},
        validation={
            "split": 0.4, "every_steps": 2, "timesteps": 1, "standard_error": 0,
            "training_images": 1,
        },
        previews={
            "every_steps": 2, "prompts": ["a cat"], "at_first": False,
            "width": 32, "height": 32, "steps": 1,
        },
        training={"max_steps": 3},
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    run = RunDirectory(config.output_dir)
    before = (run.samples / "step-00000002" / "000.png").read_bytes()
    run.states.rename(tmp_path / "moved")
    models = run.read_json("models.json")
    lowest = {"best": {key: {"step": 2, "loss": 0.0} for key in models["best"]}}
    files.write_json(run.path / "models.json", models | lowest)
    text = run.config_file.read_text("utf-8")
    changed = text.replace("lr = 0.001", "lr = 1e-12")
    assert changed != text
    run.config_file.write_text(changed, encoding="utf-8")
    told = Noted()
    resume(run.path, told)
    assert (run.path / "samples-abandoned/step-00000002/000.png").read_bytes() == before
    assert (run.samples / "step-00000002" / "000.png").read_bytes() != before
    assert [note for note in told.notes if "samples-abandoned" in note]
    assert {"step": 2, "loss": 0.0} not in run.read_json("models.json")["best"].values()


def test_a_damaged_status_is_no_hindrance(killed, whole):
    (killed.path / "status.json").write_bytes(bytes(200))
    resumed_by_command(killed)
    assert exported(killed) == exported(whole)


def test_a_run_that_goes_on_is_neither_resumed_nor_begun(train_config):
    class Beside(SilentEvents):
        said = None

        def stepped(self, step):
            if step == 1:
                with pytest.raises(RunError, match="being trained just now"):
                    train(train_config(model={"path": "/nowhere"}))
            if step == 2:
                beside = impasto("resume", config.output_dir)
                self.said = beside.returncode, beside.stderr

    config, events = train_config(saving=EACH_STEP, training={"max_steps": 3}), Beside()
    run = train(config, events)
    code, words = events.said
    assert code == 5
    assert "is being trained just now by process" in " ".join(words.split())
    assert "Traceback" not in words
    assert run.saved_steps()[-1] == 3
    assert run.exported_model() is not None
    assert not (run.path / locks.LOCK_NAME).exists()


def test_a_cache_that_is_deleted_while_training(train_config, whole):
    """Shards that are already open stay readable; a shard not yet opened raises an error."""
    from impasto.data.sharding.mapped_shards import MappedShards

    class Deleting(SilentEvents):
        def stepped(self, step):
            if step == 2:
                shutil.rmtree(config.dataset.derived_dir / "latents")
                MappedShards.columns = gone

    real = MappedShards.columns

    def gone(self, name):
        self._open.clear()
        return real(self, name)

    config = train_config(**FOUR)
    try:
        with pytest.raises(DatasetError, match=r"removed or damaged.*state after \d steps is s"):
            train(config, Deleting())
    finally:
        MappedShards.columns = real
    run = resume(config.output_dir)
    assert run.read_json("status.json")["phase"] == "finished"
    assert exported(run) == exported(whole)


def test_a_disk_of_models_that_goes_away_costs_no_step(train_config, tmp_path):
    """If a checkpoint and its average cannot be written, the state still is, and no step is
    lost."""
    folder = tmp_path / "models"

    class Unplugging(SilentEvents):
        def stepped(self, step):
            if step == 2:
                folder.rename(tmp_path / "unplugged")
                folder.write_text("no folder any more")

    folder.mkdir()
    saving = {"model_dir": str(folder), "model_every_steps": 2, "average": "beside"}
    config = train_config(saving=saving, training={"ema_decay": 0.9, "max_steps": 3})
    with pytest.raises(StorageError, match=r"state after \d steps is saved. Continue with: .*res"):
        train(config, Unplugging())
    run = RunDirectory(config.output_dir)
    assert max(run.saved_steps()) >= 2
    folder.unlink()
    assert resume(config.output_dir).exported_model() is not None


def test_a_state_that_cannot_be_written_names_the_one_before(train_config, monkeypatch):
    real = saver.save_state

    def failing(run, state, *, keep):
        if state.step > 2:
            raise StorageError("the disk is full.")
        real(run, state, keep=keep)

    monkeypatch.setattr(saver, "save_state", failing)
    with pytest.raises(StorageError, match=r"is full. The state of step 2 is kept, and nothing"):
        train(train_config(saving=EACH_STEP))


def test_weights_that_are_found_broken_while_saving_hide_no_error(train_config, monkeypatch):
    """The reported error is the one that ended the run, not that of the broken weights."""

    class Unplugging(SilentEvents):
        def stepped(self, step):
            if step == 3:
                raise StorageError("models/my.safetensors cannot be written.")

    real = saver.Saver._require_finite

    def found_broken(self, done):
        if done == 3:
            raise NonFiniteLossError("After 3 steps there are weights that are NaN.")
        real(self, done)

    monkeypatch.setattr(saver.Saver, "_require_finite", found_broken)
    said = (
        r"my.safetensors cannot be written\. The state after 3 steps was not saved: After 3 steps "
        r"there are weights .*\. The state of step 2 is kept, and nothing after it"
    )
    with pytest.raises(StorageError, match=said):
        train(train_config(saving={"state_every_steps": 2}), Unplugging())


def test_a_disk_that_is_full_at_a_line_of_numbers(train_config, monkeypatch):
    class Full:
        """A file on a disk that accepts ten more bytes."""

        def __init__(self, file):
            self._file, self._room = file, 10

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, content):
            if not self._room:
                raise OSError(errno.ENOSPC, "No space left on device")
            count, self._room = self._file.write(content[: self._room]), 0
            return count

    real = Path.open

    def open_(path, mode="r", *args, **options):
        file = real(path, mode, *args, **options)
        is_full = path.name == named[-1] and mode == "ab" and path.is_file() and path.stat().st_size
        return Full(file) if is_full else file

    config, named = train_config(logging={"every_steps": 1, "image_losses": True}, **FOUR), []
    for name, begin in (
        ("metrics.jsonl", lambda: train(config)),
        ("image_losses.csv", lambda: resume(config.output_dir)),
    ):
        named.append(name)
        monkeypatch.setattr(Path, "open", open_)
        with pytest.raises(StorageError, match=rf"disk is full: .*{name}"):
            begin()
        monkeypatch.undo()
        text = (config.output_dir / name).read_text(encoding="utf-8")
        assert text.endswith("\n"), "no partial line remains"
    assert resume(config.output_dir).exported_model() is not None


def test_scanning_a_folder_that_cannot_be_written(pictures, monkeypatch):
    real = files.new_file

    def refuse(folder, name_of):
        if folder.name.startswith("scan"):
            raise StorageError(f"{folder} could not be written: Read-only file system.")
        return real(folder, name_of)

    monkeypatch.setattr(files, "new_file", refuse)
    result = CliRunner().invoke(commands, ["dataset", "scan", str(pictures)])
    assert result.exit_code == 0, result.output
    assert "Read-only file system" in result.output


def test_a_signal_while_preparing_is_one_sentence(train_config):
    class Press(SilentEvents):
        def __init__(self, number):
            self.number = number

        def stage(self, description, total, unit):
            if description.startswith("Encoding"):
                signal.raise_signal(self.number)
            return super().stage(description, total, unit)

    config = train_config(training={"max_steps": 1})
    said = r"Nothing was trained yet.*same command again"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with pytest.raises(Interrupted, match=said) as caught:
            train(config, Press(number))
        assert caught.value.exit_code == code
        assert not config.output_dir.exists()
    assert train(config).exported_model() is not None


def test_ctrl_c_is_acknowledged_at_once_and_the_second_stops_now(train_config, whole):
    class Press(Noted):
        said = threading.Event()

        def note(self, message):
            super().note(message)
            if message == STOPPING:
                self.said.set()

        def stepped(self, step):
            if step == 3:
                signal.raise_signal(signal.SIGINT)
                assert self.said.wait(60), "nothing is reported before the step is complete"
                signal.raise_signal(signal.SIGINT)

    config, events = train_config(saving=EACH_STEP, **FOUR), Press()
    with pytest.raises(Interrupted, match=r"Stopped at once.*impasto resume"):
        train(config, events)
    run = RunDirectory(config.output_dir)
    assert run.saved_steps() == [1, 2]
    assert run.read_json("status.json")["phase"] == "stopped"
    assert exported(resume(run.path)) == exported(whole)


def test_requests_to_stop_only_hold_while_updates_are_made():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        with stop.after_step():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal_number == signal.SIGTERM
        with pytest.raises(StoppedBySignal):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be caught on Windows")
def test_sigterm_ends_any_command_in_words(capsys):
    with pytest.raises(SystemExit) as caught:
        run_and_report(lambda: signal.raise_signal(signal.SIGTERM))
    assert caught.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "Stopped.\n"
