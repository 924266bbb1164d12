"""The real command line on images inside tars and tables."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import draw_images, impasto
from flat_models import one_level_model
from packing import PACKED, pack_parquet, pack_tars
from PIL import Image
from safetensors.torch import load_file

from impasto.cli.main import impasto as commands

nano_model = one_level_model

DEMO = Path(__file__).parents[2] / "src" / "impasto" / "demo"
BUCKETS = ("--resolution", 80, "--min-side", 32, "--max-side", 96, "--step", 32)


def planned(place):
    result = impasto("dataset", "plan", place, *BUCKETS, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_plans_are_those_of_files(pictures, tmp_path):
    outside = planned(pictures)
    for kind, pack in PACKED.items():
        inside = planned(pack(pictures, tmp_path / kind))
        assert inside["buckets"] == outside["buckets"]
        assert inside["mean_cropped_fraction"] == outside["mean_cropped_fraction"]
        paths = [image["path"] for image in inside["images"]]
        assert len(set(paths)) == len(paths) == 13
        assert not any("@" in path for path in paths)


def test_training_reads_them_and_encodes_nothing_twice(pictures, run_values, run_file, tmp_path):
    """Images in tars and tables, and then the same images as files, share their encodings."""
    subsets = []
    for kind, pack, numbers in (("tars", pack_tars, "00?"), ("tables", pack_parquet, "01?")):
        (tmp_path / "parts" / kind).mkdir(parents=True)
        for file in pictures.glob(f"{numbers}.*"):
            shutil.copy(file, tmp_path / "parts" / kind)
        packed = pack(tmp_path / "parts" / kind, tmp_path / kind)
        subsets.append({"image_dir": str(packed), "recursive": True})
    derived = tmp_path / "derived"
    as_files = {**run_values["dataset"], "cache_dir": str(derived)}
    packed = {key: value for key, value in as_files.items() if key != "image_dir"}
    found = []
    for name, dataset in (
        ("packed", {**packed, "datasets": [{"subsets": subsets}]}),
        ("files", as_files),
    ):
        run_values["dataset"] = dataset
        out = str(tmp_path / f"run-{name}")
        result = impasto("train", run_file(output_dir=out, training={"max_steps": 1}))
        assert result.returncode == 0, result.stderr
        found.append(sorted((derived / "latents").rglob("*.safetensors")))
    assert sum(len(load_file(shard)["mean"]) for shard in found[0]) == 13
    assert found[1] == found[0]


def test_a_bad_day_is_said_in_one_sentence(pictures, tmp_path):
    place = pack_parquet(pictures, tmp_path / "p")
    data = tmp_path / "data.toml"
    subset = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{place}'\nimage_column = 'img'\n"
    data.write_text(subset, encoding="utf-8")
    result = impasto("dataset", "scan", data)
    assert result.returncode != 0
    assert "recursive is off" in result.stderr  # as in sd-scripts, where the tables are in data/
    data.write_text(f"{subset}recursive = true\n", encoding="utf-8")
    result = impasto("dataset", "scan", data)
    assert result.returncode != 0
    assert "no column 'img'" in result.stderr
    assert "image, text" in result.stderr
    tars = pack_tars(pictures, tmp_path / "t")
    shard = tars / "shard-001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    result = impasto("dataset", "scan", tars)
    assert result.returncode == 0, result.stderr
    said = result.stderr + result.stdout
    assert "shard-001.tar: the tar is cut short at byte 3000" in said


def test_words_are_changed_in_a_metadata_file(pictures, tmp_path):
    place, meta = pack_tars(pictures, tmp_path / "t"), tmp_path / "meta.json"
    assert "in tars or tables" in impasto("dataset", "clean", place, "--yes").stderr
    result = impasto("dataset", "merge", place, meta)
    assert result.returncode == 0, result.stderr
    beside = place / "meta.json"
    beside.write_text(meta.read_text("utf-8"), encoding="utf-8")
    assert "in tars or tables" in impasto("dataset", "clean", beside, "--yes").stderr
    beside.unlink()
    entries = json.loads(meta.read_text("utf-8"))
    assert entries["shard-000.tar/000.png"] == {"tags": "a red ball"}
    result = impasto("dataset", "plan", meta, "--image-dir", place, *BUCKETS, "--json")
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["images"]) == 13


def test_a_list_and_a_report_name_what_is_inside(pictures, tmp_path):
    few = draw_images(tmp_path / "few", 3)
    Image.new("RGB", (110, 64)).save(few / "002.png")  # cropped, and therefore listed
    place = pack_tars(few, tmp_path / "t")
    out = tmp_path / "list.jsonl"
    result = impasto("dataset", "list", place, *BUCKETS, "--out", out)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()[1:]]
    assert [line["path"] for line in lines] == [f"shard-000.tar/00{n}.png" for n in range(3)]
    page = tmp_path / "page.html"
    result = impasto("dataset", "report", place, *BUCKETS, "--out", page)
    assert result.returncode == 0, result.stderr
    assert "@0000" not in page.read_text("utf-8") + page.with_suffix(".json").read_text("utf-8")
    assert "data:image/jpeg" in page.read_text("utf-8")


def run(*words):
    return CliRunner().invoke(commands, [str(word) for word in words])


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_words_of_models_go_into_metadata_and_come_back(kind, tmp_path):
    place = PACKED[kind](draw_images(tmp_path / "few", 3), tmp_path / "packed")
    meta, before = tmp_path / "meta.json", {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    for verb in ("tag", "caption"):
        asked = ("--model", DEMO / f"{verb}{'ger' if verb == 'tag' else 'er'}", "--metadata", meta)
        result = run("dataset", verb, place, *asked, "--existing", "overwrite")
        assert result.exit_code == 0, (result.output, result.exception)
    entries = json.loads(meta.read_text("utf-8"))
    words = [entry[column] for entry in entries.values() for column in ("tags", "caption")]
    assert len(words) == 6
    assert all(words)
    for left in (["tags"], None):
        result = run("dataset", "undo", place, "--metadata", meta)
        assert result.exit_code == 0, (result.output, result.exception)
        found = json.loads(meta.read_text("utf-8")).values() if meta.exists() else []
        assert all(list(entry) == left for entry in found)
    assert not meta.exists()
    assert {p: p.read_bytes() for p in before} == before


def test_what_needs_files_says_so_before_a_model_is_loaded(pictures, tmp_path):
    place = pack_tars(pictures, tmp_path / "t")
    table = pack_parquet(pictures, tmp_path / "p") / "data" / "train-00000-of-00004.parquet"
    for words in (
        ("tag", place),
        ("caption", place),
        ("mask", place),
        ("edit", place, "--add", "x"),
    ):
        error = run("dataset", *words).exception
        assert f"The images of {place} are in tars or tables, " in str(error), words
        assert error.exit_code == 2
    assert "where no masks are made" in str(run("dataset", "mask", place).exception)
    for image, holder in ((place / "shard-000.tar/000.png", "shard-000.tar"),
                          (table.with_name(f"{table.name}#0"), table.name)):  # fmt: skip
        for words in (("show", image), ("crop", image, 0, 0, 32, 32)):
            error = run("dataset", *words).exception
            assert f"{image} is inside {holder}; expected an image that is a separate file" in str(
                error
            )
            assert error.exit_code == 3
    assert not list(tmp_path.rglob("*.crop.json"))
    assert run("dataset", "show", ".").exception.exit_code == 3


def test_metadata_of_packed_images_among_files_writes_nothing_beside_them(pictures, tmp_path):
    """The folder has images as files too, so only a scan finds the ones that metadata names."""
    tars, meta = pack_tars(draw_images(tmp_path / "few", 2), tmp_path / "t"), tmp_path / "t.json"
    assert run("dataset", "merge", tars, meta).exit_code == 0
    tagger = ("--model", DEMO / "tagger", "--existing", "overwrite")
    before = {path for path in tmp_path.rglob("*") if ".impasto" not in path.parts}
    unread = run("dataset", "tag", meta, *tagger).exception
    assert f"training would not read the .txt files. Add --metadata {meta}." in str(unread)
    assert unread.exit_code == 2
    for words in (
        ("clean", meta, "--yes"),
        ("tags", meta),
        ("mask", meta, "--from", pictures / "000.png", "--only", "x.png", "--out", tmp_path / "m"),
        ("merge", meta, "--to-sidecars", "--image-dir", tars),
    ):
        error = run("dataset", *words).exception
        assert f"{tars / 'shard-000.tar' / '000.png'} is in a tar or a table, " in str(error), words
        assert error.exit_code == 2
    assert {path for path in tmp_path.rglob("*") if ".impasto" not in path.parts} == before
