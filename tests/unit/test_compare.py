"""Runs side by side: their different settings, their results, their common samples."""

import base64
import io
import json
import math
import re

import pytest
from conftest import impasto
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs_made import made_run, sample

from impasto.config.differences import about_setting, differences, read_settings
from impasto.config.load import settings_by_path
from impasto.config.run import RunConfig
from impasto.errors import RunError
from impasto.report.charts import curves_chart
from impasto.report.compare_page import line_class, write_comparison
from impasto.report.comparison import figures_of, nearest
from impasto.report.matching import matching_samples
from impasto.runs import RunDirectory, step_name

BASE = '[model]\npath="a"\n[dataset]\nimage_dir="d"\n[training]\nmax_steps=5\n'
MINIMAL = f'output_dir="o"\n{BASE}'


def paths(*texts):
    return {d.path: d.values for d in differences([read_settings(text)[0] for text in texts])}


# settings


def test_a_default_that_is_written_down_does_not_differ_from_one_that_is_not():
    written = MINIMAL + "[optimizer]\nlr=1e-6\n"
    default = settings_by_path(
        RunConfig.model_validate(
            {
                "output_dir": "o",
                "model": {"path": "a"},
                "dataset": {"image_dir": "d"},
                "training": {"max_steps": 5},
            }
        )
    )["optimizer.lr"]
    assert paths(MINIMAL, MINIMAL + f"[optimizer]\nlr={default}\n") == {}
    assert paths(MINIMAL, written) == ({} if default == 1e-6 else {"optimizer.lr": (default, 1e-6)})


def test_only_what_differs_is_named_and_the_output_folder_is_not():
    found = paths(
        f'output_dir="one"\nseed=1\n{BASE}',
        f'output_dir="two"\nseed=2\n{BASE}',
        f'output_dir="three"\nseed=1\n{BASE}',
    )
    assert found == {"seed": (1, 2, 1)}


def test_of_settings_that_cannot_be_read_nothing_is_compared_and_the_fault_is_said():
    settings, fault = read_settings("not = [toml")
    assert settings == {}
    assert "not TOML" in fault
    assert paths(MINIMAL, "not = [toml") == {}


def test_settings_of_another_version_are_compared_as_they_stand():
    old = MINIMAL.replace('path="a"', 'path="b"\nlong_gone=1')
    settings, fault = read_settings(old)
    assert "not valid in this version" in fault
    assert settings["model.long_gone"] == 1
    assert paths(MINIMAL, old)["model.path"] == ("a", "b")


@pytest.mark.parametrize(
    "path", ["optimizer.lr", "model.path", "dataset.datasets[0].subsets[1].num_repeats"]
)
def test_settings_are_explained_by_the_first_words_of_their_documentation(path):
    words = about_setting(path)
    assert 5 < len(words) < 200
    assert "\n" not in words


def test_every_setting_that_can_differ_has_words():
    settings, fault = read_settings(MINIMAL)
    assert fault == ""
    assert [path for path in settings if path != "output_dir" and not about_setting(path)] == []


def test_an_unknown_setting_has_no_words():
    assert about_setting("nothing.of.the_kind") == ""


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)), min_size=2, max_size=4))
def test_what_is_the_same_everywhere_never_differs(settings):
    found = {difference.path for difference in differences(settings)}
    known = [one for one in settings if one]
    for path in "abc":
        values = {one.get(path) for one in known}
        assert (path in found) == (len(values) > 1)


# numbers


def test_figures_name_the_last_and_the_best_value_with_their_steps(tmp_path):
    run = made_run(
        tmp_path / "run", losses=[(1, 0.9), (2, 0.2), (9, 0.5)], validation=[(1, 0.8), (9, 0.7)]
    )
    found = figures_of(run)
    assert (found.loss.best, found.loss.best_step) == (0.2, 2)
    assert (found.loss.last, found.loss.last_step) == (0.5, 9)
    assert (found.validation_loss.best, found.validation_loss.best_step) == (0.7, 9)
    assert (found.images_per_s, found.memory_mib, found.samples_seen) == (2.0, 109, 36)
    assert found.state == "finished"


def test_the_speed_is_the_median_of_all_lines(tmp_path):
    run = made_run(tmp_path / "run")
    for step, speed in enumerate((1.0, 2.0, 4.0, 9.0), 1):
        run.append_metrics({"step": step, "images_per_s": speed, "time": 1.0})
    assert figures_of(run).images_per_s == 3.0


def test_a_damaged_run_is_compared_as_far_as_it_can_be_read(tmp_path):
    run = made_run(tmp_path / "run", losses=[(1, 0.5)], phase="training")
    with run.metrics_file.open("ab") as file:
        file.write(b'\xff\xfe{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1e999}\n{"step"')
    run.status_file.write_text("{", encoding="utf-8")
    run.config_file.unlink()
    found = figures_of(run)
    assert found.loss.last == 0.5
    assert found.faults[0].startswith("config.toml:")
    assert any("status.json" in fault for fault in found.faults)


def test_a_killed_run_is_killed_and_has_the_steps_of_its_metrics(tmp_path):
    run = made_run(tmp_path / "run", losses=[(4, 0.5)], phase="training", step=2)
    found = figures_of(run)
    assert (found.state, found.step) == ("killed", 4)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        figures_of(RunDirectory(tmp_path))


def test_samples_are_matched_by_prompt_and_seed_and_not_by_their_names(tmp_path):
    one = made_run(tmp_path / "1", samples={3: {"000.png": "a\nSeed: 1", "001.png": "b\nSeed: 2"}})
    two = made_run(tmp_path / "2", samples={8: {"000.png": "b\nSeed: 2", "001.png": "a\nSeed: 7"}})
    rows = {row.parameters: row.files for row in matching_samples([one, two])}
    assert rows == {
        "b\nSeed: 2": ("001.png", "000.png"),
        "a\nSeed: 1": ("000.png", None),
        "a\nSeed: 7": (None, "001.png"),
    }
    assert matching_samples([one, two])[0].parameters == "b\nSeed: 2"


def test_samples_of_other_settings_are_matched_and_what_differs_is_shown(tmp_path):
    of_one = "a, b: c\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 64x64"
    of_two = of_one.replace("\n", "\nNegative prompt: d\n").replace("DDIM", "Euler")
    one = made_run(tmp_path / "1", samples={3: {"000.png": of_one}})
    two = made_run(
        tmp_path / "2", samples={3: {"000.png": of_one.replace("64x", "8x"), "001.png": of_two}}
    )
    row = matching_samples([one, two])[0]
    assert (row.parameters, row.files) == (of_one, ("000.png", "001.png"))
    assert row.differing == (
        "Sampler: DDIM, Negative prompt: none", "Sampler: Euler, Negative prompt: d",
    )  # fmt: skip


def test_what_one_run_draws_twice_is_matched_in_order(tmp_path):
    both = {f"00{n}.png": f"a\nSampler: {name}, Seed: 1" for n, name in enumerate(("x", "y"))}
    runs = [made_run(tmp_path / name, samples={3: both}) for name in "12"]
    rows = matching_samples(runs)
    assert [row.files for row in rows] == [("000.png", "000.png"), ("001.png", "001.png")]
    assert [row.differing for row in rows] == [("", "")] * 2


@given(st.lists(st.integers(0, 100)), st.integers(0, 100))
def test_the_nearest_step_is_never_farther_than_another(steps, wanted):
    found = nearest(steps, wanted)
    assert found is None if not steps else found in steps
    assert all(abs(found - wanted) <= abs(step - wanted) for step in steps)


# the page


def test_lines_of_twenty_four_runs_look_different():
    assert len({line_class(number) for number in range(24)}) == 24


def test_a_chart_of_nothing_but_faults_is_none():
    assert curves_chart("x", [("run", "a", [(1, math.nan)]), ("run", "b", [])], smooth=True) == ""
    assert "<circle" in curves_chart("x", [("run", "a", [(1, 2.0)])], smooth=True)


def test_a_hundred_thousand_points_make_a_short_curve():
    points = [(step, float(step % 7)) for step in range(100_000)]
    for smooth in (True, False):
        assert len(curves_chart("x", [("run", "a", points)], smooth=smooth)) < 60_000


def write(file, *runs):
    figures = [figures_of(run) for run in runs]
    read = [read_settings(f.config)[0] for f in figures]
    write_comparison(file, figures, [(d.path, d.about, d.values) for d in differences(read)])
    return file.read_text(encoding="utf-8")


def test_the_page_tells_no_prompt_and_no_folder_unless_the_runs_allow_it(tmp_path):
    secret = {3: {"000.png": "a secret prompt\nSeed: 1"}}
    settings = {"saving": {"publish": ["prompts"]}}
    asked = {"previews": {"prompts": ["a secret prompt"]}}
    shut = made_run(tmp_path / "shut", samples=secret, settings=asked)
    told = made_run(tmp_path / "told", samples=secret, settings=settings)
    page = write(tmp_path / "page.html", shut, told)
    assert "not published" in page
    assert "secret" not in page
    assert str(tmp_path) not in page
    images = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(images) == 2
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image))) as opened:
            assert opened.info == {}
    assert "a secret prompt" in write(tmp_path / "open.html", told, told)


def test_hostile_names_and_prompts_are_text_in_the_page(tmp_path):
    nasty = "<script>alert(1)</script>"
    settings = {"saving": {"publish": ["prompts"]}, "previews": {"prompts": [nasty]}}
    one = made_run(tmp_path / '<b>"x&', settings=settings, losses=[(1, 1.0)])
    sample(one, 3, "000.png", f"{nasty}\nSeed: 1")
    two = made_run(tmp_path / "two", losses=[(1, 0.5)])
    page = write(tmp_path / "page.html", one, two)
    assert "<script" not in page
    assert "<b>" not in page.replace("<b class", "")
    assert "&lt;b&gt;&#34;x&amp;" in page


def test_a_damaged_preview_leaves_its_place_empty(tmp_path):
    run = made_run(tmp_path / "run", samples={3: {"000.png": "a\nSeed: 1", "001.png": "b"}})
    (run.samples / step_name(3) / "000.png").write_bytes(b"\x89PNG")
    assert write(tmp_path / "page.html", run, run).count("<img") == 2  # the complete one, of each


# the verb


def test_the_verb_prints_and_writes_what_it_found(tmp_path):
    one = made_run(tmp_path / "one", losses=[(1, 0.9), (9, 0.5)], settings={"seed": 3})
    two = made_run(tmp_path / "two", losses=[(2, 0.4)], phase="training")
    page = tmp_path / "out" / "page.html"
    said = impasto("compare", one.path, two.path, "--html", page)
    assert said.returncode == 0, said.stderr
    assert "seed = 3 | 42" in said.stdout
    assert "0.5000 at step 9" in said.stdout
    assert "killed" in said.stdout
    assert "one" in page.read_text(encoding="utf-8")
    found = json.loads(impasto("compare", one.path, two.path, "--json").stdout)
    assert [run["state"] for run in found["runs"]] == ["finished", "killed"]
    assert found["runs"][0]["loss"] == {"last": 0.5, "last_step": 9, "best": 0.5, "best_step": 9}
    assert [d["path"] for d in found["settings"]] == ["seed"]


def test_the_verb_wants_two_different_runs(tmp_path):
    run = made_run(tmp_path / "run")
    for words in ([run.path], [run.path, run.path], [run.path, tmp_path / "missing"]):
        said = impasto("compare", *words)
        assert said.returncode == 5, said.stdout
        assert "run director" in said.stderr


def test_a_page_that_would_be_a_file_of_a_run_is_refused(tmp_path):
    one, two = made_run(tmp_path / "one"), made_run(tmp_path / "two")
    before = one.config_file.read_bytes()
    said = impasto("compare", one.path, two.path, "--html", one.config_file)
    assert said.returncode == 2
    assert one.config_file.read_bytes() == before
