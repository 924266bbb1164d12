"""Previews compared with real images: in the metrics, on the page, and after a crash."""

import json

import numpy as np
import pytest
from flat_models import one_level_model
from runs import exported, killed_copy

from impasto.annotator_table import DEMO_TAGGER
from impasto.demo.recipe import TAGGER
from impasto.errors import ConfigError, DatasetError
from impasto.evaluation.image_features import CaptionedImage, features_of
from impasto.evaluation.measures import IMAGE, KERNEL, Material, measure
from impasto.evaluation.networks import TaggerNetwork
from impasto.evaluation.preview_distance import PreviewDistance
from impasto.progress import SilentProgress
from impasto.report.page import write_report
from impasto.training.trainer import resume, train

nano_model = one_level_model

PREVIEWS = {
    "prompts": ["a red ball", "a green ball", "a blue ball", "no caption of these"],
    "features": "demo", "every_steps": 2, "steps": 1, "width": 32, "height": 32,
}  # fmt: skip


BRIEF = {"validation": {"split": 0.3, "every_steps": 6}, "training": {"max_steps": 2}}

pytestmark = pytest.mark.usefixtures("encoded_once")


def compared(run):
    return {m["step"]: m for m in run.read_metrics() if "preview_features" in m}


def numbers(line):
    return {k: v for k, v in line.items() if k.startswith("preview_")}


def by_evaluate(run, step, real):
    """Return the measures that `impasto evaluate` gives for the same files."""
    network = TaggerNetwork("demo", DEMO_TAGGER, SilentProgress())
    network.tells_tags = False
    looks = features_of(real, (network,), "real", SilentProgress())
    prompts = tuple(PREVIEWS["prompts"])
    places = [[p.caption for p in looks.images].index(text) if n < 3 else None
              for n, text in enumerate(prompts)]  # fmt: skip
    files = sorted((run.samples / f"step-{step:08d}").glob("*.png"))
    drawn = features_of([CaptionedImage(f) for f in files], (network,), "drawn", SilentProgress())
    material = Material(
        looks, None, False, prompts, tuple(places), 1, (network,), None, 10, 1, {}
    )  # fmt: skip
    found = measure(drawn, material, lambda _: None).estimates
    return found[KERNEL.key, "demo"].value, found[IMAGE.key, "demo"].value


def test_previews_are_compared_as_evaluate_does_and_alike_after_a_crash(
    train_config, tmp_path, pictures
):
    """The comparison uses training images, as none are held out, and does not affect training."""
    assert TAGGER == DEMO_TAGGER
    changes = {"saving": {"state_every_steps": 2}, "training": {"max_steps": 4}}
    folder = str(tmp_path / "whole")
    whole = train(train_config(output_dir=folder, previews=PREVIEWS, **changes))
    lines = compared(whole)
    assert sorted(lines) == [0, 2, 4]
    real = [
        CaptionedImage(file, file.with_suffix(".txt").read_text(encoding="utf-8"))
        for file in sorted(pictures.glob("*.png"))
    ]
    for step, line in lines.items():
        kernel, similarity = by_evaluate(whole, step, real)
        assert line["preview_kernel_distance"] == pytest.approx(kernel, rel=1e-4)
        assert line["preview_similarity"] == pytest.approx(similarity, rel=1e-4)
        assert line["preview_real"] == "13 trained on"
        assert "preview_kernel_distance_se" not in line  # four prompts are too few
    assert len({line["preview_kernel_distance"] for line in lines.values()}) > 1

    # the previews of step 4 exist, as if from before the crash, and are measured after it
    crashed = killed_copy(whole.path, tmp_path / "crashed", after=2)
    metrics = crashed / "metrics.jsonl"
    kept = [
        line for line in metrics.read_text("utf-8").splitlines() if json.loads(line)["step"] < 4
    ]
    metrics.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    run = resume(crashed)
    assert {s: numbers(m) for s, m in compared(run).items()} == {
        s: numbers(m) for s, m in lines.items()
    }
    plain = train(
        train_config(
            output_dir=str(tmp_path / "plain"),
            previews={**PREVIEWS, "features": None},
            training={"max_steps": 4},
            saving={"name": whole.exported_model().stem},
        )
    )
    assert not compared(plain)
    losses = [[m["loss"] for m in r.read_metrics() if "loss" in m] for r in (whole, run, plain)]
    assert losses[0] == losses[1] == losses[2]
    assert list(exported(whole).values()) == list(exported(run).values())

    page = write_report(run).read_text(encoding="utf-8")
    assert 'id="kernel-distance"' in page
    assert 'id="similarity"' in page
    assert "By the features of demo" in page
    assert 'id="kernel-distance"' not in write_report(plain).read_text(encoding="utf-8")


def test_a_comparison_that_fails_ends_no_run(train_config, monkeypatch):
    def fails(self, progress):
        raise DatasetError("none of the real images can be read")

    monkeypatch.setattr(PreviewDistance, "_looks_of_real", fails)
    run = train(train_config(previews=PREVIEWS, **BRIEF))
    assert run.status()["phase"] == "finished"
    assert not compared(run)
    told = (run.path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    words = [json.loads(line).get("text", "") for line in told]
    assert sum("previews of step 2 were not compared: none of the real" in w for w in words) == 1


def test_held_out_images_are_what_previews_are_compared_with(train_config, capsys):
    from impasto.cli.console import Console

    config = train_config(previews=PREVIEWS, **BRIEF)
    run = train(config, Console())
    held_out = json.loads((run.path / "dataset.json").read_text(encoding="utf-8"))["held_out"]
    line = compared(run)[2]
    assert line["preview_real"] == f"{held_out} held out"
    said = " ".join(capsys.readouterr().out.split())
    assert f"Previews at step 2: kernel distance {line['preview_kernel_distance']:.4g}" in said
    assert f"({held_out} held out images)" in said
    assert np.isfinite(line["preview_kernel_distance"])


@pytest.mark.parametrize(
    ("previews", "words"),
    [
        ({"features": "demo"}, "previews.features has no effect without previews"),
        ({**PREVIEWS, "features": "nothing-of-the-kind"}, "There is no feature network"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_done(
    train_config, tmp_path, previews, words
):
    with pytest.raises(ConfigError, match=words):
        train(train_config(previews=previews))
    assert not list(tmp_path.rglob("*.safetensors"))
