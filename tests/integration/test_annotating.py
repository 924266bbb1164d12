"""Captions and tags by models and rules from the command line, and undoing every change."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import captioners
import pytest
import taggers
from conftest import impasto as in_a_process
from flat_models import one_level_model
from PIL import Image
from support.warm import running

from impasto.annotate.annotation import ImageReading, _AsyncWriter, annotate
from impasto.annotate.caption_targets import MetadataTarget, Sidecars
from impasto.annotate.dataset_folders import DatasetFolders
from impasto.annotate.journal import Journal
from impasto.annotate.notes import journals_in
from impasto.annotate.undoing import undo
from impasto.cli.dataset_annotation import _command_key
from impasto.cli.dataset_caption import append_caption
from impasto.cli.main import main
from impasto.data.folders.metadata import read_metadata
from impasto.data.scanning.scan import scan_folder
from impasto.demo.recipe import HELD_OUT, PICTURES
from impasto.errors import DatasetError, RunError
from impasto.progress import SilentProgress

nano_model = one_level_model

TAGGER = Path(__file__).parents[2] / "src" / "impasto" / "demo" / "tagger"
CAPTIONER = TAGGER.with_name("captioner")
TAG = ("dataset", "tag", "--model", TAGGER)
SCRIPTS = Path(__file__).parents[2] / "finetune"


def impasto(*words):
    """Run a command in this process, which imports the taggers' libraries once."""
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code or 0
    return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())


@pytest.fixture
def folder(tmp_path):
    """Twelve images without captions, a file that is not an image, and a caption from elsewhere."""
    target = tmp_path / "pictures"
    target.mkdir()
    for path in sorted(PICTURES.glob("*.webp"))[:12]:
        shutil.copy(path, target)
    (target / "zz.png").write_bytes(b"no picture")
    (target / "0000-sun.txt").write_bytes("mine, söl\r\n".encode())
    return target


def folders_of(folder, metadata=None):
    return DatasetFolders((folder,), folder / ".impasto" / "annotations", metadata)


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".impasto" not in path.parts
    }


def test_tags_are_written_and_taken_back_byte_for_byte(folder):
    before = files_of(folder)
    for existing in ("append", "overwrite", "missing"):
        done = impasto(
            "dataset", "tag", folder, "--model", TAGGER, "--existing", existing, "--rating", "last"
        )
        assert done.returncode == 0, done.stderr
        assert "Skipped: " in done.stdout
        text = (folder / "0000-sun.txt").read_text(encoding="utf-8").strip()
        tags = text.split(", ")
        assert ("mine" in tags) == (existing in ("append", "missing"))
        assert ("sun" in tags) == (existing != "missing")
        assert "butterfly" in (folder / "0001-butterfly.txt").read_text().split(", ")
        assert impasto("dataset", "undo", folder).returncode == 0
        assert files_of(folder) == before
    nothing = impasto("dataset", "undo", folder)
    assert nothing.returncode == 5
    assert "nothing to undo" in nothing.stderr


def test_words_are_appended_to_each_line_and_once(folder):
    """The lines of a caption are alternatives, so each gets the new tags, once."""
    path = folder / "0000-sun.txt"
    path.write_text("mine\nmine, too\n", encoding="utf-8")
    for _ in range(2):
        assert impasto(*TAG, folder, "--existing", "append").returncode == 0
        first, second = path.read_text(encoding="utf-8").splitlines()
        assert first.startswith("mine, sun")
        assert second == f"mine, too{first[4:]}"


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "a cat"), ("a cat", "a cat"), ("my style, a cat", "my style, a cat"), ("a", "a, a cat")],
)
def test_a_caption_that_is_there_is_not_appended_again(before, after):
    assert append_caption(before, "a cat") == after


def test_a_dry_run_only_prints(folder):
    before = files_of(folder)
    done = impasto("dataset", "tag", folder, "--model", TAGGER, "--dry-run", "--counts")
    assert done.returncode == 0, done.stderr
    assert "0001-butterfly.webp: butterfly" in done.stdout
    assert files_of(folder) == before
    assert not (folder / ".impasto" / "annotations").exists()


def test_categories_that_no_tag_is_of(folder):
    words = ("dataset", "tag", folder, "--model", TAGGER, "--dry-run", "--counts", "--only")
    done = impasto(*words, "artist")
    assert done.returncode == 0, done.stderr
    assert "No tags were written." in done.stdout
    done = impasto(*words, "artists")
    assert done.returncode == 2
    assert "'artists' is not one of" in done.stderr


def test_a_rating_is_written_whatever_else_is_taken(folder):
    words = (*TAG, folder, "--dry-run", "--only")
    done = impasto(*words, "artist", "--rating", "last")
    assert "0001-butterfly.webp: general\n" in done.stdout, done.stderr
    done = impasto(*words, "rating")
    assert done.returncode == 2
    assert "--only rating has no effect: --rating is off" in done.stderr


def test_tags_are_named_as_the_model_or_as_the_files_spell_them(folder):
    done = impasto(
        *TAG, folder, "--dry-run", "--drop", "brown_background", "--first", "pool_8_ball",
        "--replace", "no_humans,nobody;nonsense,x",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0002-pool-8-ball.webp: pool 8 ball, " in done.stdout
    assert "background" not in done.stdout
    assert "solo, nobody" in done.stdout
    assert "has no tag 'nonsense'" in " ".join(done.stdout.split())


def test_files_that_training_would_not_read_are_not_written(folder, tmp_path):
    file = folder / "meta.json"
    file.write_text('{"0001-butterfly.webp": {}}', encoding="utf-8")
    data = tmp_path / "data.json"
    subset = {"image_dir": str(folder), "caption_extension": "words"}
    data.write_text(json.dumps({"datasets": [{"subsets": [subset]}]}), encoding="utf-8")
    for source, option, value in ((file, "--metadata", file), (data, "--ending", ".words")):
        done = impasto(*TAG, source)
        assert done.returncode == 2
        assert f"Add {option} {value}." in " ".join(done.stderr.split())
        assert impasto(*TAG, source, option, value).returncode == 0
    assert "butterfly" in file.read_text(encoding="utf-8")
    assert (folder / "0001-butterfly.words").is_file()
    assert not (folder / "0001-butterfly.txt").exists()


def test_the_small_tagger_knows_the_demos_pictures():
    """Precision and recall on the captions of 112 unseen images, at the tagger's default
    threshold."""
    from impasto.annotate.annotation import TagAnnotator
    from impasto.annotate.onnx_tagger import OnnxTagger
    from impasto.annotate.tags import Selection, Spelling

    tagger = OnnxTagger(TAGGER)
    tagging = TagAnnotator(tagger, Selection(0.35), Spelling())
    names = set(tagger.table.names[4:]) - set(ATTRIBUTES)
    right = wrong = missed = 0
    for source in (PICTURES, HELD_OUT):
        records = scan_folder(source).records
        for record in records:
            (pixels,) = tagging.prepare([record.path])
            (row,) = tagger.scores([pixels])
            found = {tag.name for tag in tagging.found(row)} & names
            stem = record.path.stem.partition("-")[2]
            truth = {part.replace("-", "_") for part in stem.split("_")}
            right += len(found & truth)
            wrong += len(found - truth)
            missed += len(truth - found)
    precision, recall = right / (right + wrong), right / (right + missed)
    assert min(precision, recall) > 0.9, (precision, recall)


ATTRIBUTES = (
    "fruit", "food", "drink", "animal", "plant", "vehicle", "building", "ball",
    "musical_instrument", "tool", "clothes", "sky", "white_background", "brown_background",
    "monochrome", "multicolored", "solo", "duo", "no_humans",
)  # fmt: skip


def test_the_small_captioner_knows_the_demos_pictures(folder):
    (folder / "0000-sun.txt").unlink()
    words = ("dataset", "caption", folder, "--model", CAPTIONER, "--min-length", 0, "--batch", 4)
    done = impasto(*words)
    assert done.returncode == 0, done.stderr
    right = 0
    pictures = sorted(folder.glob("*.webp"))
    for path in pictures:
        said = path.with_suffix(".caption").read_text(encoding="utf-8").strip()
        right += said == (PICTURES / path.name).with_suffix(".txt").read_text().strip()
    assert right >= 9
    again = impasto(*words)
    assert "Left unchanged  12" in again.stdout


def test_a_run_goes_on_where_it_was_stopped(folder):
    """After a crash at the fifth image the first four are not examined again."""
    records = scan_folder(folder).records
    seen = []

    class Words:
        broken = True

        @staticmethod
        def prepare(paths):
            return list(paths)

        def annotate(self, prepared, _):
            seen.extend(path.name for path in prepared)
            if self.broken and len(seen) > 4:
                raise ZeroDivisionError
            return [f"words of {path.name}" for path in prepared]

    folders, annotator = folders_of(folder), Words()
    target = Sidecars(".txt", "overwrite", lambda a, b: b, folders)
    before = files_of(folder)
    with pytest.raises(ZeroDivisionError), Journal(folders, "mine") as journal:
        annotate(
            records,
            annotator,
            target,
            journal,
            SilentProgress(),
            reading=ImageReading(batch_size=1, workers=0),
        )
    annotator.broken = False
    seen.clear()
    with Journal(folders, "mine") as journal:
        done = annotate(
            records,
            annotator,
            target,
            journal,
            SilentProgress(),
            reading=ImageReading(batch_size=1, workers=0),
        )
    assert len(seen) == 8
    assert (done.written, done.done_before) == (8, 4)
    assert undo(folders).restored == 12
    assert files_of(folder) == before
    with Journal(folders, "other") as journal:  # another command starts from the first image
        assert journal.done == set()


def test_what_somebody_changed_since_is_left_alone(folder):
    assert impasto("dataset", "tag", folder, "--model", TAGGER).returncode == 0
    edited = folder / "0001-butterfly.txt"
    edited.write_text("edited by hand\n", encoding="utf-8")
    done = in_a_process("dataset", "undo", folder)
    assert "Left unchanged: 0001-butterfly.txt: " in done.stdout
    assert edited.read_text(encoding="utf-8") == "edited by hand\n"
    assert not (folder / "0002-pool-8-ball.txt").exists()


def test_one_odd_file_stops_no_folder_and_words_are_never_joined(folder, tmp_path):
    """A folder with another kind of caption, an outside link, twin names and names of 242 bytes is
    undone.
    """
    sources = sorted(folder.glob("*.webp"))
    long = folder / ("長" * 79 + ".webp")
    shutil.copy(sources[2], long)
    (folder / "0001-butterfly.caption").write_text("a sentence of mine\n", encoding="utf-8")
    shutil.copy(sources[3], folder / "shared.webp")
    Image.open(sources[3]).save(folder / "shared.png")
    profile = tmp_path / "profile"
    profile.write_text("own", encoding="utf-8")
    linked = sources[4].with_suffix(".txt")
    linked.symlink_to(profile)
    before = files_of(folder)
    done = impasto("dataset", "tag", folder, "--model", TAGGER)
    assert done.returncode == 0, done.stderr
    assert not (folder / "0001-butterfly.txt").exists()
    assert "Left unchanged  3" in done.stdout  # own file, sentence, link's target
    assert "its text would be written to shared.txt, as would that of shared.png" in done.stdout
    assert long.with_suffix(".txt").is_file()
    forced = impasto("dataset", "tag", folder, "--model", TAGGER, "--existing", "overwrite")
    assert f"{linked.name}: a link that leads out of the dataset" in forced.stdout
    assert profile.read_text(encoding="utf-8") == "own"
    assert "Skipped         2" in forced.stdout
    for _ in range(2):
        assert impasto("dataset", "undo", folder).returncode == 0
    assert files_of(folder) == before


def test_words_go_into_metadata(folder, tmp_path):
    file = tmp_path / "meta.json"
    file.write_text('{"0000-sun.webp": {"caption": "a sun", "tags": "old", "mark": 5}}')
    before = file.read_bytes()
    words = ("dataset", "tag", folder, "--model", TAGGER, "--metadata", file)
    assert impasto(*words, "--existing", "append").returncode == 0
    entries = {entry.key: entry for entry in read_metadata(file).entries}
    assert entries["0000-sun.webp"].tags.startswith("old, sun")
    assert entries["0000-sun.webp"].caption == "a sun"
    assert dict(entries["0000-sun.webp"].others) == {"mark": 5}
    assert len(entries) == 12
    assert not list(tmp_path.glob("*.bak*"))
    with pytest.raises(RunError, match="Add --metadata and its path"):
        undo(folders_of(folder))
    assert undo(folders_of(folder, file)).restored == 1
    assert file.read_bytes() == before


def test_words_that_were_found_before_a_fault_are_in_the_metadata(folder, tmp_path):
    """Captions are written every two minutes, so that a fault or Ctrl-C loses no more than that."""
    file = tmp_path / "m.jsonl"
    target = MetadataTarget(
        file, "tags", "missing", lambda a, b: b, lambda r: r.name, folders_of(folder, file)
    )
    records = scan_folder(folder).records
    for fault, record in ((KeyboardInterrupt, records[0]), (DatasetError, records[1])):
        with pytest.raises(fault), Journal(target.folders, "x") as journal:  # noqa: SIM117
            with _AsyncWriter(journal, target) as writer:
                writer.keep(record, f"words of {record.path.name}")
                raise fault("x")
    entries = {entry.key: entry.tags for entry in read_metadata(file).entries}
    assert len(entries) == 2


def test_the_key_of_a_command_names_its_metadata(tmp_path):
    asked = {"existing": "missing", "ending": ".txt"}
    keys = {
        _command_key(["tag"], {**asked, "metadata": metadata})
        for metadata in (None, tmp_path / "a.json", tmp_path / "b.json")
    }
    assert len(keys) == 3


def test_words_that_cannot_be_appended_to_are_named(folder):
    odd = next(r for r in scan_folder(folder).records if "butterfly" in r.path.name)
    (folder / "0001-butterfly.txt").write_bytes(b"\xff\xfe\x00")
    target = Sidecars(".txt", "append", lambda a, b: f"{a}, {b}", folders_of(folder))
    told = impasto("dataset", "tag", folder, "--model", TAGGER, "--dry-run")
    assert "0001-butterfly.webp: " in told.stdout
    with pytest.raises(DatasetError, match="not UTF-8"):
        target.text(odd, "x")
    (folder / "0001-butterfly.txt").write_bytes(b"x" * (2 << 20))
    with pytest.raises(DatasetError, match="2 MiB, too large for captions"):
        target.text(odd, "x")


def test_metadata_words_know_what_is_there(folder, tmp_path):
    file = tmp_path / "m.jsonl"
    folders = DatasetFolders((folder,), tmp_path / "j", file)

    def target():
        return MetadataTarget(file, "tags", "missing", lambda a, b: b, lambda r: r.name, folders)

    words = target()
    worded, record, *_ = scan_folder(folder).records
    assert words.needs_caption(record)
    assert not words.needs_caption(worded)  # a caption from elsewhere is beside it
    with Journal(folders, "x") as journal:
        words.write(journal, record, "a, b")
        words.close(journal)
    assert not target().needs_caption(record)
    assert undo(folders).restored == 1
    assert not file.exists()
    with pytest.raises(RunError):
        undo(folders)
    assert journals_in(folders.journals) == []


def test_words_in_metadata_are_counted_and_not_cleaned_in_silence(folder):
    file = folder / "meta.json"
    file.write_text('{"0001-butterfly.webp": {"tags": "wings, sky, sky"}}', encoding="utf-8")
    done = impasto("dataset", "tags", file)
    assert "2 tags in 1 image" in done.stdout, done.stderr
    done = impasto("dataset", "clean", file, "--yes")
    assert done.returncode == 0, done.stderr
    assert "its caption is not in a separate file" in " ".join(done.stdout.split())
    assert "0 of 0 files change." in done.stdout


def test_metadata_is_matched_in_the_folder_of_images_alone_as_training_does(folder, tmp_path):
    """A file of the same name beside the metadata is another image, as in training."""
    shutil.copy(folder / "0001-butterfly.webp", tmp_path / "other.webp")
    file = tmp_path / "meta.json"
    file.write_text('{"0001-butterfly.webp": {}, "other.webp": {}}', encoding="utf-8")
    folders = folders_of(folder, file)
    target = MetadataTarget(file, "tags", "missing", lambda a, b: b, lambda r: r.name, folders)
    assert target._named == {folder / "0001-butterfly.webp": "0001-butterfly.webp"}
    elsewhere = DatasetFolders((tmp_path / "away",), tmp_path / "j", file)
    target = MetadataTarget(file, "tags", "missing", lambda a, b: b, lambda r: r.name, elsewhere)
    assert target._named == {tmp_path / "other.webp": "other.webp"}


def test_cleaning_shows_changes_before_it_writes(folder):
    (folder / "0001-butterfly.txt").write_text("shirt, white_shirt\n", encoding="utf-8")
    (folder / "0001-butterfly.caption").write_text("arafed lady\n", encoding="utf-8")
    before = files_of(folder)
    shown = impasto("dataset", "clean", folder, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "- shirt, white_shirt\n+ white shirt" in shown.stdout
    assert files_of(folder) == before
    asked = in_a_process("dataset", "clean", folder, input="n\n")
    assert files_of(folder) == before, asked.stdout
    assert impasto("dataset", "clean", folder, "--yes").returncode == 0
    assert (folder / "0001-butterfly.caption").read_text() == "lady\n"
    assert impasto("dataset", "undo", folder).returncode == 0
    assert files_of(folder) == before
    rules = in_a_process("dataset", "clean", folder, "--show")
    (folder.parent / "mine.toml").write_text(rules.stdout, encoding="utf-8")
    own = impasto("dataset", "clean", folder, "--rules", folder.parent / "mine.toml", "--dry-run")
    changes = [text.partition("\n")[2] for text in (own.stdout, shown.stdout)]
    assert changes[0] == changes[1]
    counted = impasto("dataset", "tags", folder)
    assert "white_shirt" in counted.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "wd-swin-v3"], 2, "Nearest: wd-swinv2-v3"),
        (
            ["--model", TAGGER, "--threshold", "2"],
            2,
            "from 0 to 1, balance or model",
        ),
        (["--model", TAGGER, "--threshold", "balance"], 2, "No balance threshold is known"),
        (["--model", TAGGER, "--category-threshold", "hair=1"], 2, "expected general or"),
        (["--model", TAGGER, "--replace", "a"], 2, "does not have two sides"),
        (["--model", TAGGER, "--provider", "cuda"], 7, "no provider cuda here; it has cpu"),
        (["--model", TAGGER, "--stop-on-error"], 0, ""),
    ],
)
def test_what_is_wrong_is_said(folder, words, code, said):
    done = impasto("dataset", "tag", folder, *words)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stderr


def script(name, *words, cwd=None):
    done = running.run(SCRIPTS / f"{name}.py", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_scripts_of_sd_scripts_one_after_the_other(folder, tmp_path, nano_model):
    """The scripts run in the order of sd-scripts' guide: captions, tags, merges, cleaning,
    latents."""
    (folder / "zz.png").unlink()
    script(
        "make_captions", folder, "--caption_weights", CAPTIONER, "--beam_search", "--num_beams=3",
        "--min_length=0", "--batch_size=4",
    )  # fmt: skip
    assert (folder / "0001-butterfly.caption").read_text() == "a butterfly\n"
    out = script(
        "tag_images_by_wd14_tagger",
        folder,
        *("--repo_id", TAGGER, "--onnx", "--remove_underscore", "--use_rating_tags_as_last_tag"),
        *("--undesired_tags", "monochrome, solo", "--always_first_tags", "animal, butterfly"),
        *("--tag_replacement", "no humans,nobody;brown background,ochre", "--frequency_tags"),
    )
    tags = (folder / "0001-butterfly.txt").read_text().strip().split(", ")
    assert tags[:2] == ["animal", "butterfly"]
    assert tags[-1] == "general"
    assert "ochre" in tags
    assert not {"monochrome", "solo", "brown background"} & set(tags)
    assert "--onnx: taggers always run on ONNX Runtime" in out
    assert "Tag frequencies" in out

    meta = tmp_path / "meta.json"
    script("merge_captions_to_metadata", folder, meta)
    script("merge_dd_tags_to_metadata", folder, meta)
    content = json.loads(meta.read_text(encoding="utf-8"))
    assert content["0001-butterfly"]["caption"] == "a butterfly"
    assert content["0001-butterfly"]["tags"].startswith("animal, butterfly")
    content["0001-butterfly"]["tags"] = "1girl, white_shirt, shirt"
    meta.write_text(json.dumps(content), encoding="utf-8")
    script("clean_captions_and_tags", meta, tmp_path / "clean.json")
    cleaned = json.loads((tmp_path / "clean.json").read_text(encoding="utf-8"))
    assert cleaned["0001-butterfly"]["tags"] == "1girl, white shirt"
    assert len(cleaned) == 12

    said = script(
        "prepare_buckets_latents", folder, tmp_path / "clean.json", tmp_path / "lat.json",
        nano_model, "--max_resolution=128,128", "--min_bucket_reso=64", "--max_bucket_reso=256",
        "--flip_aug",
    )  # fmt: skip
    assert "--alpha_mask" not in said, "it was not given"
    prepared = json.loads((tmp_path / "lat.json").read_text(encoding="utf-8"))
    assert len(list(folder.glob("*.npz"))) == 12
    for path in folder.glob("*.webp"):
        with Image.open(path) as image:
            assert prepared[path.stem]["image_size"] == list(image.size)
        width, height = prepared[path.stem]["train_resolution"]
        assert width * height <= 128 * 128
        assert width % 64 == height % 64 == 0


def test_tags_of_all_pictures_in_one_file(folder, tmp_path):
    common = (folder, "--repo_id", TAGGER, "--output_path")
    script("tag_images_by_wd14_tagger", *common, tmp_path / "all.json")
    first = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    entry = first[str(folder / "0001-butterfly.webp")]
    assert entry["tags"].startswith("butterfly, ")
    assert len(entry["image_size"]) == 2
    assert not (folder / "0001-butterfly.txt").exists()
    script("tag_images_by_wd14_tagger", *common, tmp_path / "all.jsonl", "--thresh=0.9")
    lines = (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(lines[0])) == {"image_path", "caption", "image_size"}
    for name, column in (("all.json", "tags"), ("all.jsonl", "caption")):
        file = tmp_path / name
        text = file.read_text(encoding="utf-8").replace("butterfly, ", "mine, butterfly, ", 1)
        file.write_text(text, encoding="utf-8")
        script("tag_images_by_wd14_tagger", *common, file, "--append_tags")
        assert '"mine, butterfly, ' in file.read_text(encoding="utf-8"), column
    lines = (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(lines[0])) == {"image_path", "caption", "image_size"}


def test_captions_by_git(folder, tmp_path):
    """A tiny random GIT writes a caption for each image, the same in each run."""
    captioners.git(tmp_path / "git")
    words = ("make_captions_by_git", folder, "--model_id", tmp_path / "git", "--max_length=6")
    script(*words, "--remove_words", "--batch_size=4")
    first = {path.name: path.read_text() for path in folder.glob("*.caption")}
    assert len(first) == 12
    script(*words, "--remove_words")
    assert {path.name: path.read_text() for path in folder.glob("*.caption")} == first


def test_wrong_flags_and_weights(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "make_captions_by_git.py"), str(folder), "--wrong"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "unrecognized arguments: --wrong" in done.stderr
    weights = tmp_path / "model_large_caption.pth"
    weights.write_bytes(b"x")
    refused = impasto("dataset", "caption", folder, "--model", weights)
    assert refused.returncode == 4
    assert "in the format of the original BLIP program" in refused.stderr


def test_a_fixed_batch_is_filled_up(folder, tmp_path):
    taggers.make("joytag", tmp_path / "tagger")
    taggers.means_model(tmp_path / "tagger" / "model.onnx", side=448, channels_first=True, batch=5)
    done = impasto(
        "dataset", "tag", folder, "--model", tmp_path / "tagger", "--threshold", "0", "--dry-run",
        "--existing", "overwrite",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": a, b, c") == 12
