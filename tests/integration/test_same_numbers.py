"""Scan, plan, report, cache and training show the same numbers for a folder, in any order."""

import json
import re

import pytest
from broken import make_broken_images
from PIL import Image

from impasto.cli.main import main
from impasto.config.load import build_run_config
from impasto.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SIDES = ["--resolution", "80", "--min-side", "32", "--max-side", "96", "--step", "32"]
ROWS = {
    "Usable images": "usable", "Without captions": "without", "Skipped": "aside",
    "Also found": "also",
}  # fmt: skip


def rows(output):
    found = re.findall(rf"^({'|'.join(ROWS)}) +(\d+)$", output, re.MULTILINE)
    return {ROWS[name]: int(number) for name, number in found}


@pytest.fixture
def said(capsys):
    """Return the output of a successful command, run in this process."""

    def run(*words):
        capsys.readouterr()
        main([str(word) for word in words])
        return capsys.readouterr().out

    return run


def test_every_verb_counts_the_same(tmp_path, run_values, nano_model, said):
    folder = tmp_path / "set"
    expected = make_broken_images(folder)
    (folder / "grey.txt").write_text("noise", encoding="utf-8")
    (folder / "x.jxl").write_bytes(b"\xff\n")
    (folder / "lost.txt").write_text("x", encoding="utf-8")
    out = tmp_path / "r.html"
    counts = [
        rows(said("dataset", *words))
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
    found = run.read_json("dataset.json")
    health = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    for summary, names in ((found, ("usable", "uncaptioned")), (health["tally"], ("usable",))):
        assert summary[names[0]] == usable
    assert found["uncaptioned"] == counts[0]["without"]
    assert {item["path"] for item in found["set_aside"]} == {
        item["path"] for item in health["set_aside"]
    }
    assert len(found["unused"]) == counts[0]["also"] == health["tally"]["also_found"]
    planned = said("train", run.config_file, "--plan", "--set", f"output_dir={tmp_path / 'x'}")
    assert f"{counts[0]['aside']} skipped" in planned


def test_metadata_that_merge_writes_is_read_by_scan(tmp_path, monkeypatch, said, capsys):
    monkeypatch.chdir(tmp_path)
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
            done = said("dataset", "merge", "set", file, "--keys", style)
            if target.startswith("far"):
                assert "--image-dir" in done
                found = said("dataset", "scan", file, "--image-dir", "set")
            else:
                assert "--image-dir" not in done
                found = said("dataset", "scan", file)
            seen = rows(found)
            # names below `set` in a file above it are matched by suffix, which is reported
            assert seen.pop("also", 0) <= (target in ("m.json", "m.jsonl") and style != "absolute")
            assert seen == {"usable": 2, "without": 0, "aside": 0}, (style, target)
    with pytest.raises(SystemExit) as refused:
        main(["dataset", "scan", "set", "--image-dir", "set"])
    assert refused.value.code == 2
    assert "metadata file" in capsys.readouterr().err
