"""Validation in real runs: exact across a resume, as before in old runs, on any processes.

If this failed, a curve would jump where a run was resumed, or two machines would get different
losses.
"""

import json
import types

import pytest
import tomli_w
from click.testing import CliRunner
from conftest import draw_images
from flat_models import one_level_model
from runs import KillAt, trained_and_killed
from short_runs import settings, short_run

from impasto import resume, train
from impasto.cli.main import impasto as commands
from impasto.config.former import FORMER_VALUES
from impasto.config.load import load_begun_config, load_run_config
from impasto.parsing import parse_toml
from impasto.progress import SilentProgress
from impasto.runs.evidence import difference, standard_error
from impasto.runs.learning import kept_best, read_learning
from impasto.training.assembly.build import build_session
from impasto.training.builders.overrides import Overrides
from impasto.training.devices import build_accelerator

nano_model = one_level_model

HELD_OUT = {"split": 0.3, "every_steps": 2, "timesteps": 2}
SHORT = {"training": {"max_steps": 4}}
MEASURED = ("validation_loss", "validation_images", "training_sample_loss", "validation_change")


def measured(run):
    lines = [line for line in run.read_metrics() if "validation_loss" in line]
    return [{name: line.get(name) for name in ("step", *MEASURED)} for line in lines]


@pytest.fixture(scope="module")
def run_and_killed(tmp_path_factory, nano_model):
    """A run with losses by tag and folder, and its copy as if killed."""
    folder = tmp_path_factory.mktemp("shared")
    pictures = draw_images(folder / "pictures", 13)
    for number, file in enumerate(sorted(pictures.glob("*.txt"))):
        file.write_text(f"a ball, {'left' if number % 2 else 'right'}", encoding="utf-8")
    config = settings(
        short_run(folder, nano_model, pictures),
        validation={**HELD_OUT, "split": 0.6, "by": ["tag", "subset"], "by_images": 2},
        saving={"state_every_steps": 3},
        **SHORT,
    )
    return trained_and_killed(config, step=4, saved=3)


def test_a_run_says_how_sure_its_validation_is(run_and_killed):
    run, _ = run_and_killed
    base, *_, last = [line for line in run.read_metrics() if "validation_loss" in line]
    values = last["validation_images"]
    assert len(values) >= 2
    assert sum(values) / len(values) == pytest.approx(last["validation_loss"])
    assert last["validation_se"] == pytest.approx(standard_error(values), rel=1e-4)
    change = difference(values, base["validation_images"])
    assert last["validation_change"] == pytest.approx(change.mean)
    assert last["validation_change"] == pytest.approx(
        last["validation_loss"] - base["validation_loss"], abs=1e-6
    )
    assert last["training_sample_loss"] > 0
    learning = read_learning(run)
    assert learning.is_known
    kept = kept_best(run, learning)
    assert (kept is None) == (learning.best.step == 0)
    if kept is not None:
        assert kept[0].exists()
        assert kept[1] == learning.best.step
    page = run.report
    from impasto import write_report

    text = write_report(run).read_text(encoding="utf-8")
    assert page.is_file()
    for words in ("Base model", "Next step", "Loss by noise level", "Gradient norm", "Larger"):
        assert words in text, words
    changed = run.read_json("changed-settings.json")["paths"]
    assert "validation.split" in changed
    assert "validation.copies" not in changed


def test_a_run_of_an_earlier_version_goes_on_as_it_began(train_config):
    """A run of an earlier version, whose settings lack newer options, keeps its images and
    draws."""
    former = {"validation": {}, "saving": {}}
    for path, value in FORMER_VALUES.items():
        section, _, name = path.partition(".")
        former[section][name] = value
    config = train_config(
        validation={**HELD_OUT, **former["validation"]},
        saving={"state_every_steps": 3, **former["saving"]},
        **SHORT,
    )
    kill = KillAt(config.output_dir, step=4, saved=3)
    expected = measured(train(config, kill))
    kill.put_back()
    file = config.output_dir / "config.toml"
    tree = parse_toml(file.read_text(encoding="utf-8"))
    for section, own in former.items():
        for name in own:
            tree[section].pop(name)
    file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    for state in (config.output_dir / "states").glob("*/state.json"):
        content = json.loads(state.read_text(encoding="utf-8"))
        for path in FORMER_VALUES:
            content["fingerprint"].pop(path, None)
        content.pop("has_hashes", None)
        state.write_text(json.dumps(content), encoding="utf-8")
        (state.parent / "hashes.json").unlink()
    assert load_run_config(file).validation.copies == "near"
    assert load_begun_config(file).validation.copies == "bytes"
    assert measured(resume(config.output_dir)) == expected
    assert not (config.output_dir / "models").exists()  # no best model, as before


def test_processes_measure_a_share_each_and_get_the_same(train_config):
    config = train_config(validation=HELD_OUT, training={"batch_size": 1})
    session = build_session(config, build_accelerator(), SilentProgress(), Overrides())
    draws = session.validator.held_out
    session.trainable.unet.eval()

    def found(accelerator):
        return draws.measure(
            session.trainable.unet, session.eval_conditioner, session.recipe, accelerator
        )

    whole = found(None)
    for number in (2, 3):
        passes, parts = [], []
        for rank in range(number):
            alone = types.SimpleNamespace(
                process_index=rank, num_processes=number, reduce=lambda sums, _: sums
            )
            passes.append(len(list(draws._own_groups(alone))))
            parts.append(found(alone))
        assert len(set(passes)) == 1  # equal numbers of forward passes, as a sharded model requires
        assert (sum(parts) == whole).all()
        assert all(bool((part == 0).any()) for part in parts)


def test_losses_are_told_by_tag_and_folder_and_alike_after_a_kill(run_and_killed):
    """The groups' image counts add up to the total, and changes are relative to the base model."""
    whole, killed = run_and_killed
    lines = {m["step"]: m for m in whole.read_metrics() if "validation_loss" in m}
    for step, line in lines.items():
        rows = {row["name"]: row for row in line["validation_by"]}
        assert set(rows) == {"a ball", "left", "right", "pictures (1.1)"}
        assert rows["a ball"]["loss"] == pytest.approx(line["validation_loss"], rel=1e-6)
        assert rows["a ball"]["se"] == pytest.approx(line["validation_se"], rel=1e-4)
        parts = [rows[name]["images"] * rows[name]["loss"] for name in ("left", "right")]
        assert sum(parts) == pytest.approx(rows["a ball"]["images"] * rows["a ball"]["loss"])
        if step:
            change = rows["left"]["loss"] - by_name(lines[0])["left"]["loss"]
            assert rows["left"]["change"] == pytest.approx(change, abs=1e-7)
            assert rows["a ball"]["change_se"] == pytest.approx(
                line["validation_change_se"], rel=1e-3
            )
    shown = CliRunner().invoke(commands, ["show", str(whole.path)])
    assert shown.exit_code == 0, shown.output
    assert "Loss of held-out images at step 4, by what they share" in shown.output
    assert "tag left" in shown.output
    expected = measured(whole)
    assert measured(killed) == expected[:2]
    again = resume(killed.path)
    assert measured(again) == expected
    resumed = {m["step"]: m for m in again.read_metrics() if "validation_by" in m}
    assert resumed[4]["validation_by"] == lines[4]["validation_by"]


def by_name(line):
    return {row["name"]: row for row in line["validation_by"]}
