"""Scan, plan, report, cache and training show the same numbers of one folder, in any order."""

import json
import re

import pytest
from broken import make_broken_images
from conftest import impasto

from impasto.config.load import build_run_config
from impasto.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SIDES = ["--resolution", "80", "--min-side", "32", "--max-side", "96", "--step", "32"]
ROWS = {
    "Usable images": "usable", "Without words": "without", "Skipped": "aside",
    "Also found": "also",
}  # fmt: skip


def rows(done):
    assert done.returncode == 0, done.stderr
    found = re.findall(rf"^({'|'.join(ROWS)}) +(\d+)$", done.stdout, re.MULTILINE)
    return {ROWS[name]: int(number) for name, number in found}


def test_every_verb_counts_the_same(tmp_path, run_values, nano_model):
    folder = tmp_path / "set"
    expected = make_broken_images(folder)
    (folder / "grey.txt").write_text("noise", encoding="utf-8")
    (folder / "x.jxl").write_bytes(b"\xff\n")
    (folder / "lost.txt").write_text("x", encoding="utf-8")
    out = tmp_path / "r.html"
    counts = [
        rows(impasto("dataset", *words))
        for words in (
            ("plan", folder, *SIDES),
            ("scan", folder),
            ("cache", folder, nano_model, *SIDES),
            ("report", folder, *SIDES, "--whole-paths", "--out", out),
            ("merge", folder, tmp_path / "m.json"),
        )
    ]
    usable = sum(reason == "" for reason in expected.values())
    assert counts[0]["usable"] == usable
    assert counts[0]["aside"] == len(expected) - usable + 1
    assert counts == [counts[0]] * len(counts)
    dataset = {**run_values["dataset"], "image_dir": str(folder)}
    config = {**run_values, "dataset": dataset}
    run = train(build_run_config({**config, "training": {"max_steps": 1}}, source="test"))
    said = run.read_json("dataset.json")
    health = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    for summary, names in ((said, ("usable", "uncaptioned")), (health["tally"], ("usable",))):
        assert summary[names[0]] == usable
    assert said["uncaptioned"] == counts[0]["without"]
    assert {item["path"] for item in said["set_aside"]} == {
        item["path"] for item in health["set_aside"]
    }
    assert len(said["unused"]) == counts[0]["also"] == health["tally"]["also_found"]
    planned = impasto("train", run.config_file, "--plan", "--set", f"output_dir={tmp_path / 'x'}")
    assert planned.returncode == 0, planned.stderr
    assert f"{counts[0]['aside']} skipped" in planned.stdout


def test_metadata_that_merge_writes_is_read_by_scan(tmp_path):
    from PIL import Image

    for name in ("a.png", "sub/b.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(path)
        path.with_suffix(".txt").write_text(f"a\u2028{name}", encoding="utf-8")
    (tmp_path / "far").mkdir()
    for style in ("relative", "absolute", "stem"):
        for target in ("m.json", "m.jsonl", "set/m.json", "far/m.jsonl"):
            file = tmp_path / target
            file.unlink(missing_ok=True)
            done = impasto("dataset", "merge", "set", file, "--keys", style, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            if target.startswith("far"):
                assert "--image-dir" in done.stdout
                found = impasto("dataset", "scan", file, "--image-dir", "set", cwd=tmp_path)
            else:
                assert "--image-dir" not in done.stdout
                found = impasto("dataset", "scan", file, cwd=tmp_path)
            seen = rows(found)
            # names below `set` in a file above it are found by their ends, which is said
            assert seen.pop("also", 0) <= (target in ("m.json", "m.jsonl") and style != "absolute")
            assert seen == {"usable": 2, "without": 0, "aside": 0}, (style, target)
    refused = impasto("dataset", "scan", "set", "--image-dir", "set", cwd=tmp_path)
    assert refused.returncode == 2
    assert "metadata file" in refused.stderr
