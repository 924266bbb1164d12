"""`python -m bench quality`: the settings of its rows, and a whole comparison of two rows."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # `bench` is beside `src`, not in it

from bench import quality_job, quality_rows, quality_table
from bench.quality import measure
from bench.quality_job import Place, read_result
from bench.quality_rows import (
    BASE,
    MERGES,
    REFERENCE,
    UNMERGED,
    Row,
    Setup,
    config_of,
    prior_folder,
    rows,
    scale,
)
from bench.quality_table import MEASURES, as_markdown, at_equal_content, gather

from impasto.config.goals import GOALS
from impasto.config.load import settings_by_path
from impasto.demo import recipe

SETUP = Setup(steps=2, batch=2, seeds=(1,), per_prompt=1, drawing_steps=2)
BY_NAME = {row.name: row for row in rows(SETUP)}


def settings_of(row, tmp_path):
    return settings_by_path(config_of(row, SETUP, 5, tmp_path / "run", tmp_path))


@pytest.mark.parametrize(
    "row", [row for row in rows(SETUP) if row.way == "preset"], ids=lambda r: r.name
)
def test_an_option_is_the_preset_with_its_own_changes_alone(row, tmp_path):
    preset = settings_of(Row("preset", "preset"), tmp_path)
    found = settings_of(row, tmp_path)
    differing = {
        path for path in preset.keys() | found.keys() if preset.get(path) != found.get(path)
    }
    if row.rate != 1:
        assert found["optimizer.lr"] == pytest.approx(row.rate * preset["optimizer.lr"])
        differing.remove("optimizer.lr")
    if row.merges:
        assert found["saving.merge_ratio"] < preset["saving.merge_ratio"] == 1
        differing.remove("saving.merge_ratio")
    if row.chooses:  # its run is validated for a best model, and stores averages
        differing -= {path for path in differing if path.startswith(("validation.", "saving."))}
        differing.remove("training.posthoc_ema")
    if row.prior_weight is not None:
        places = [found[f"dataset.datasets[0].subsets[{n}].image_dir"] for n in range(2)]
        assert places[1] == str(prior_folder(tmp_path))
        differing = {path for path in differing if not path.startswith("dataset.")}
    assert differing == set(row.changes)
    for path, value in row.changes.items():
        assert found[path] == value


def test_the_preset_has_the_goals_values_at_the_demos_rate(tmp_path):
    found = settings_of(BY_NAME["our preset"], tmp_path)
    assert found["optimizer.lr"] == pytest.approx(GOALS["style"].lr * scale())
    assert found["noise.offset"] == GOALS["style"].noise_offset
    assert found["schedule.warmup_steps"] == GOALS["style"].warmup
    for path, (value, _) in GOALS["style"].more.items():
        assert found[path] == value


def test_sd_scripts_has_its_own_defaults(tmp_path):
    found = settings_of(BY_NAME[REFERENCE], tmp_path)
    assert found["optimizer.lr"] == pytest.approx(2e-6 * scale())
    assert (found["schedule.kind"], found["schedule.warmup_steps"]) == ("constant", 0)
    assert (found["training.max_steps"], found["training.batch_size"]) == (2, 2)
    assert found["dataset.bucket_selection"] == "kohya"
    assert found["noise.offset"] == 0
    assert found["training.ema_decay"] is None


@pytest.fixture
def small_images(tmp_path, monkeypatch):
    """Eight training images, four held out, small samples, and one draw per loss."""
    of_name = {"PICTURES": (8, quality_job, quality_rows), "HELD_OUT": (4, quality_job)}
    for name, (number, *modules) in of_name.items():
        folder = tmp_path / name.lower()
        folder.mkdir()
        for image in sorted(getattr(recipe, name).glob("*.webp"))[:number]:
            for file in (image, image.with_suffix(".txt")):
                shutil.copy(file, folder)
        for module in (recipe, *modules):
            monkeypatch.setattr(module, name, folder)
    monkeypatch.setattr(quality_table, "SHOWN", (0, 3))
    monkeypatch.setattr(quality_job, "SIDE", 64)
    monkeypatch.setattr(quality_job, "DRAWS_OF_LOSS", 1)


@pytest.mark.usefixtures("fresh_accelerate", "small_images")
def test_a_row_is_trained_and_measured_once_beside_the_reference(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.quality.default_workers", lambda: 1)
    measure(tmp_path, SETUP, only="min-SNR 5")
    place = Place(tmp_path, SETUP)
    numbers = [read_result(place, name, 1)["numbers"] for name in (REFERENCE, "min-SNR 5")]
    assert numbers[0].keys() == numbers[1].keys() >= MEASURES.keys()
    assert numbers[0]["validation_loss"] != numbers[1]["validation_loss"]
    assert (place.folder / "quality.png").is_file()
    monkeypatch.setattr("bench.quality.run_job", lambda *_: pytest.fail("it was there already"))
    shown = measure(tmp_path, SETUP, only="min-SNR 5")
    merged = [derived.name for derived in BY_NAME[REFERENCE].derived]
    assert shown.keys() == {REFERENCE, *merged, "min-SNR 5"}


def put_numbers(place, name, seed, **numbers):
    place.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"numbers": dict.fromkeys(MEASURES, 1.0) | numbers})
    place.result(name, seed).write_text(text, encoding="utf-8")


def test_differences_are_taken_seed_by_seed(tmp_path):
    """Differences are paired by seed: rows vary by 10 between seeds, and differ by 0.9 to 1.1."""
    place = Place(tmp_path, Setup(seeds=(1, 2, 3)))
    for seed, (loss, change) in enumerate([(10.0, -0.9), (20.0, -1.0), (30.0, -1.1)], 1):
        put_numbers(place, REFERENCE, seed, validation_loss=loss)
        put_numbers(place, "other", seed, validation_loss=loss + change)
    found = gather(place, [BY_NAME[REFERENCE], Row("other", "plain")])
    own = found["other"]["validation_loss"]
    assert own["mean"] == pytest.approx(19.0)
    assert own["difference"] == pytest.approx(-1.0)
    assert own["difference_error"] == pytest.approx(0.1 / 3**0.5)
    means, differences = as_markdown(found).split("Differences")
    assert "| other | 19.0 ± 5.7 (+) |" in means  # lower is better
    assert f"| {REFERENCE} | 20.0 ± 5.8 | 1.000 ± 0.000 |" in means
    assert "| other | -1.000 ± 0.058 (+) | +0.000 ± 0.000 |" in differences


def test_a_difference_that_three_seeds_do_not_show_has_no_sign(tmp_path):
    """A t of 3 with two degrees of freedom has a probability of 10 %, so there is no sign."""
    place = Place(tmp_path, Setup(seeds=(1, 2, 3)))
    for seed, change in enumerate((-0.5, -1.0, -1.5), 1):
        put_numbers(place, REFERENCE, seed, validation_loss=10.0)
        put_numbers(place, "other", seed, validation_loss=10.0 + change)
    found = gather(place, [BY_NAME[REFERENCE], Row("other", "plain")])
    assert "| other | -1.00 ± 0.29 | +0.000" in as_markdown(found)


def test_style_is_compared_where_as_much_is_kept(tmp_path):
    """The reference preserves 0.7, which is halfway between the mixtures at 0.5 and 0.75."""
    place = Place(tmp_path, Setup(seeds=(1,)))
    way = {BASE: (1.0, 10.0), MERGES[0.25]: (0.9, 8.0), MERGES[0.5]: (0.8, 6.0),
           MERGES[0.75]: (0.6, 3.0), MERGES[0.875]: (0.3, 2.0), UNMERGED: (0.2, 1.0)}  # fmt: skip
    for name, (share, distance) in way.items():
        put_numbers(place, name, 1, prompt_tags=share, kernel_distance=distance)
    put_numbers(place, REFERENCE, 1, prompt_tags=0.7, kernel_distance=5.0)
    [words] = at_equal_content(place).values()
    assert words == "-0.5 (1 seed)"
    put_numbers(place, REFERENCE, 1, prompt_tags=0.1, kernel_distance=5.0)
    assert at_equal_content(place) == {}
