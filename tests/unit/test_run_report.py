"""The page of a run: result, evidence and next step first, and no praise for a ruined run."""

import json
import math
import re

import pytest
from runs_made import made_run

from impasto.report.page import write_report
from impasto.runs.schema import CHANGED_SETTINGS

STEPS = (0, 10, 20, 30)


def measured(run, courses, training=None):
    """Return validation lines: a series of losses for each image."""
    for n, step in enumerate(STEPS):
        values = [course[n] for course in courses]
        line = {
            "step": step, "validation_loss": sum(values) / len(values),
            "validation_images": values, "validation_se": 0.01, "time": 1.0,
        }  # fmt: skip
        if training is not None:
            line["training_sample_loss"] = training[n]
        run.append_metrics(line)


def courses(*means):
    """Return eight images of different losses, which change almost in parallel."""
    return [
        [
            (0.5 + 0.1 * n) * mean * (1 + 0.004 * ((n * 7 + k * 3) % 5))
            for k, mean in enumerate(means)
        ]
        for n in range(8)
    ]


def page_of(run):
    text = write_report(run).read_text(encoding="utf-8")
    verdict = re.search(r'<p class="verdict (\w*)">(.*?)</p>', text)
    return text, verdict[1], verdict[2]


@pytest.fixture
def run(tmp_path):
    losses = [(step, 1 / step) for step in range(1, 31)]
    return made_run(tmp_path / "dog", losses=losses, settings={"optimizer": {"lr": 1e-5}})


@pytest.mark.parametrize(
    ("means", "mood", "words"),
    [
        ((1, 0.8, 0.7, 0.6), "good", "no sign of over-fitting"),
        ((1, 0.5, 0.6, 0.7), "bad", "the model is over-fitting"),
        ((1, 0.5, 1.2, 2.0), "bad", "does worse on held-out images than the base model"),
        ((1, 1, 1, 1), "", "within the noise"),
    ],
)
def test_the_head_says_what_is_known(run, means, mood, words):
    measured(run, courses(*means))
    text, found, sentence = page_of(run)
    assert (found, words in sentence) == (mood, True)
    assert ('<b class="good">' in text) == (mood == "good")
    for name in ("Base model", "owner/base", "Next step"):
        assert name in text


def test_a_loss_that_became_nan_is_no_success(run):
    measured(run, courses(1, 0.5, 0.4, math.nan))
    text, mood, sentence = page_of(run)
    assert mood == "bad"
    assert "ruined" in sentence
    assert "nan" not in re.sub(r"<[^>]*>", " ", text).split()


def test_the_best_model_is_what_to_use_after_over_fitting(run):
    measured(run, courses(1, 0.5, 0.6, 0.7))
    for folder, name in (("models", "dog-best.safetensors"), ("export", "dog.safetensors")):
        (run.path / folder).mkdir()
        (run.path / folder / name).write_bytes(b"")
    record = {"written": ["models/dog-best.safetensors", "export/dog.safetensors"]}
    (run.path / "models.json").write_text(json.dumps(record), encoding="utf-8")
    run.write_status("finished", step=30, total_steps=30, model="export/dog.safetensors")
    text, _, _ = page_of(run)
    assert "Use dog-best.safetensors, the model of step 10, not the last" in text
    assert str(run.path.parent) not in text


@pytest.mark.parametrize(
    ("means", "keeps_best", "words"),
    [
        # better in the middle, and uncertain at the end: the stored one is the one to use
        ((1, 0.5, 1, 0.75), True, "Use dog-best.safetensors, the model of step 10, not the last"),
        ((1, 0.5, 1, 0.75), False, "The next run can end after 10 steps"),
        # it has risen, but is still far below the base model
        ((0.5, 0.2, 0.22, 0.25), False, "This model is still better than the base model"),
        ((0.5, 0.2, 0.6, 0.9), False, "Do not use this model"),
        ((1, 1, 1, 1), False, "Train longer"),
        ((1, 0.9, 0.8, 0.7), False, "should hold out more images"),  # of four images
    ],
)
def test_the_next_step_is_what_the_claim_says(run, means, keeps_best, words):
    noise = (0.9, -0.9, 0.6, -0.6, 0.3, -0.3, 0.8, -0.8)
    is_uneven, are_few = means[-1] in (0.75, 1), means[-1] == 0.7
    own = courses(*means)[: 4 if are_few else 8]
    if is_uneven:  # the last validation is inconclusive, since its images differ too much
        own = [[*course[:3], course[3] * (1 + n)] for course, n in zip(own, noise, strict=True)]
    measured(run, own)
    names = ["export/dog.safetensors", *(["models/dog-best.safetensors"] if keeps_best else [])]
    for name in names:
        (run.path / name).parent.mkdir()
        (run.path / name).write_bytes(b"")
    (run.path / "models.json").write_text(json.dumps({"written": names}), encoding="utf-8")
    run.write_status("finished", step=30, total_steps=30, model=names[0])
    text, mood, _ = page_of(run)
    assert (mood == "") == (is_uneven or are_few)
    assert words in text
    assert ("Do not use" in text) == ("Do not use" in words)
    assert ("Train longer" in text) == ("Train longer" in words)


def test_a_finished_run_that_was_stopped_while_made_longer_goes_on(run):
    (run.path / "export").mkdir()
    (run.path / "export" / "dog.safetensors").write_bytes(b"")
    record = {"written": ["export/dog.safetensors"]}
    (run.path / "models.json").write_text(json.dumps(record), encoding="utf-8")
    run.write_status("finished", step=30, total_steps=30, model="export/dog.safetensors")
    assert "Draw with the model and check the images" in page_of_text(run)
    run.write_status(
        "stopped", step=40, total_steps=60, finished_step=30, model="export/dog.safetensors"
    )
    text = page_of_text(run)
    assert "Draw with the model and check the images" not in text
    assert "The run is not finished" in text


def page_of_text(run):
    return write_report(run).read_text(encoding="utf-8")


def test_charts_have_a_narrow_form_and_open(run):
    measured(run, courses(1, 0.8, 0.7, 0.6), training=(1, 0.6, 0.3, 0.1))
    text, _, _ = page_of(run)
    for name in ("loss", "gap", "lr"):
        assert f'href="#{name}"' in text
        figure = text[text.index(f'id="{name}"') :].partition("</figure>")[0]
        assert 'viewBox="0 0 920' in figure
        assert 'viewBox="0 0 440' in figure
    assert "trained on" in text
    assert 'id="norm"' not in text  # it was not measured, so there is no chart


def test_settings_as_usual_are_folded(run):
    (run.path / CHANGED_SETTINGS).write_text(
        json.dumps({"paths": ["optimizer.lr", "model.path"]}), encoding="utf-8"
    )
    text = write_report(run).read_text(encoding="utf-8")
    shown, _, folded = text[text.index("<h2>Settings</h2>") :].partition("<summary>All settings")
    assert "optimizer.lr" in shown
    assert "max_steps" not in shown
    assert "max_steps" in folded


def test_images_with_the_highest_loss_are_named_without_their_folders(run, tmp_path):
    rows = [
        (1, f"{tmp_path}/pictures/{name}.png", 5, loss) for name, loss in (("odd", 2), ("x", 1))
    ]
    lines = ["step,image,timestep,loss", *(",".join(map(str, row)) for row in rows)]
    run.image_losses_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert text.index("pictures/odd.png") < text.index("pictures/x.png")
    assert str(tmp_path) not in text
