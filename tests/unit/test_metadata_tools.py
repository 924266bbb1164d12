"""Scripts of sd-scripts' `finetune/` for metadata: their early checks, and their output."""

import json
import sys

import pytest
from PIL import Image

from impasto.sdscripts import annotation_tools, metadata_tools

WORDS = {"a": {"caption": "a cat", "tags": "1girl, white_shirt, shirt"}}


@pytest.fixture
def meta(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("cat", encoding="utf-8")
    file = tmp_path / "meta.json"
    file.write_text(json.dumps(WORDS), encoding="utf-8")
    return file


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script; return its exit code and all output."""

    def run_tool(tool, *words):
        monkeypatch.setattr(sys, "argv", [f"{tool.__name__}.py", *map(str, words)])
        code = 0
        try:
            tool()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, " ".join((out + err).split())

    return run_tool


def prepare(run, meta, out, *words):
    tool = metadata_tools.prepare_buckets_latents
    return run(tool, meta.parent, meta, out, meta.parent / "no-model.safetensors", *words)


def test_metadata_is_read_before_a_model_is(run, meta):
    """Encoding takes hours, which a late error would waste."""
    out = meta.with_name("out.json")
    meta.write_text("{", encoding="utf-8")
    code, told = prepare(run, meta, out)
    assert (code, "meta.json, line 1" in told) == (3, True), told
    meta.unlink()
    code, told = prepare(run, meta, out)
    assert (code, "Run merge_captions_to_metadata.py first" in told) == (3, True), told


def test_where_metadata_goes_is_tried_before_a_model_is_read(run, meta):
    code, told = prepare(run, meta, meta.parent)
    assert (code, "which is a folder; expected a file" in told) == (2, True), told
    (meta.parent / "file").write_text("")
    code, told = prepare(run, meta, meta.parent / "file" / "out.json")
    assert code == 6, told


@pytest.mark.parametrize("batch", [0, -1, "x"])
@pytest.mark.parametrize(
    "tool",
    [
        annotation_tools.make_captions,
        annotation_tools.make_captions_by_git,
        annotation_tools.tag_images_by_wd14_tagger,
        metadata_tools.prepare_buckets_latents,
    ],
)
def test_a_batch_has_one_image_at_least(run, tool, batch):
    code, told = run(tool, "a", "b", "c", "d", f"--batch_size={batch}")
    assert code == 2
    assert "argument --batch_size: " in told


def test_what_was_there_is_kept_and_named(run, meta):
    code, told = run(metadata_tools.clean_captions_and_tags, meta, meta)
    assert code == 0
    assert "1 of 1 entry changed" in told
    assert f"The old file is kept as {meta}.bak." in told
    assert json.loads(meta.with_name("meta.json.bak").read_text("utf-8")) == WORDS
    assert json.loads(meta.read_text("utf-8"))["a"]["tags"] == "1girl, white shirt"


def test_metadata_that_stays_as_it_is_is_not_written(run, meta):
    words = (metadata_tools.merge_dd_tags_to_metadata, meta.parent, meta)
    assert run(*words)[0] == 0
    kept = meta.with_name("meta.json.bak")
    before, _ = meta.stat(), kept.unlink()
    code, told = run(*words)
    assert (code, "contains all of that already" in told) == (0, True), told
    assert not kept.exists()
    assert meta.stat().st_mtime_ns == before.st_mtime_ns
    other = meta.with_name("other.json")
    assert run(metadata_tools.clean_captions_and_tags, meta, other)[0] == 0
    assert other.is_file()  # even if nothing is changed: it was requested


def test_images_without_a_text_file_are_named(run, tmp_path):
    for number in range(8):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.caption").write_text("cat", encoding="utf-8")
    tool, out = metadata_tools.merge_captions_to_metadata, tmp_path / "meta.json"
    code, told = run(tool, tmp_path, out)
    assert (code, "1 of 8 images" in told) == (0, True), told
    named = "0.png, 1.png, 2.png, 4.png, 5.png and 2 more."
    assert f"7 images have no .caption beside them: {named}" in told
    assert json.loads(out.read_text(encoding="utf-8"))["3"] == {"caption": "cat"}
