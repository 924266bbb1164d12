"""A whole run whose images and caches are in an object store."""

import pytest
from click.testing import CliRunner
from flat_models import one_level_model
from object_store import make_bucket, put_folder, refusing
from runs import StopAt, exported

from impasto.cli.main import impasto as commands
from impasto.errors import StorageError
from impasto.storage import objects
from impasto.training.trainer import resume, train

nano_model = one_level_model

LENGTH = {"max_steps": 5}  # with a second epoch
_MADE = {}


@pytest.fixture
def stored(pictures, bucket, s3):
    """The run's images in a bucket for all tests, and the place for this test's caches."""
    if "pictures" not in _MADE:
        _MADE["pictures"] = make_bucket(s3, "pictures-of-all")
        put_folder(pictures, _MADE["pictures"] / "pictures")
    return {
        "image_dir": "s3://pictures-of-all/pictures",
        "cache_dir": f"s3://{bucket.name}/derived",
    }


@pytest.fixture
def local(train_config, tmp_path_factory):
    """The export of the same run with its images on a disk; trained once for all tests."""
    if "local" not in _MADE:
        folder = tmp_path_factory.mktemp("local") / "run"
        _MADE["local"] = exported(train(train_config(output_dir=str(folder), training=LENGTH)))
    return _MADE["local"]


def test_a_run_learns_what_it_learns_from_a_disk(
    train_config, tmp_path, stored, local, monkeypatch
):
    there = train(
        train_config(
            output_dir=str(tmp_path / "there"),
            dataset={**stored, "decode_workers": 1},  # a spawned process, which reads itself
            training={**LENGTH, "cache_text_to_disk": True},
        )
    )
    assert exported(there) == local

    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    again = train(train_config(output_dir=str(tmp_path / "again"), dataset=stored, training=LENGTH))
    assert exported(again) == local
    written = (again.path / "config.toml").read_text(encoding="utf-8")
    assert stored["image_dir"] in written
    assert stored["cache_dir"] in written
    for file in again.path.rglob("*"):
        assert not file.is_file() or b"of-no-use" not in file.read_bytes()


def test_a_run_is_resumed_on_another_machine(train_config, tmp_path, stored, local, monkeypatch):
    config = train_config(
        output_dir=str(tmp_path / "half"),
        dataset=stored,
        training=LENGTH,
        saving={"state_every_steps": 2},
    )
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    assert exported(resume(tmp_path / "half")) == local


def test_a_store_that_fails_while_training_ends_the_run_with_a_sentence(
    train_config, tmp_path, stored, s3, monkeypatch
):
    short = {"max_steps": 1}
    train(train_config(output_dir=str(tmp_path / "before"), dataset=stored, training=short))
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    with (
        s3.failing(refusing("ExpiredToken", 400, ".safetensors")),
        pytest.raises(StorageError, match=r"have expired\. Renew them"),
    ):
        train(train_config(output_dir=str(tmp_path / "run"), dataset=stored))


@pytest.mark.parametrize(
    "words",
    [
        ("dataset", "clean", "URL"),
        ("dataset", "edit", "URL", "--add", "tag"),
        ("dataset", "undo", "URL"),
        ("dataset", "crop", "URL/000.png", "--remove"),
        ("dataset", "mask", "URL"),
        ("dataset", "tag", "URL"),
        ("dataset", "caption", "URL"),
        ("dataset", "cache", "URL", "MODEL", "--export-npz"),
        ("dataset", "show", "URL/000.png"),
        ("dataset", "plan", "URL", "--simulate", "1000"),
    ],
    ids=lambda words: " ".join(words[1:]),
)
def test_what_needs_files_of_this_machine_is_refused(stored, bucket, nano_model, words):
    url = stored["image_dir"]
    given = [word.replace("URL", url).replace("MODEL", str(nano_model)) for word in words]
    result = CliRunner().invoke(commands, given)
    assert "is in an object store" in str(result.exception), result.output
    assert objects.find(bucket).objects == {}
    images = objects.find(_MADE["pictures"]).objects
    assert len(images) == 26, "with their captions"
    assert all(key.startswith("pictures/") for key in images)


@pytest.mark.parametrize("verb", ["scan", "plan", "list", "report"])
def test_verbs_that_look_at_images_take_urls(stored, tmp_path, verb):
    words = ["dataset", verb, stored["image_dir"], "--cache-dir", stored["cache_dir"]]
    words += ["--out", str(tmp_path / "report.html")] if verb == "report" else []
    result = CliRunner().invoke(commands, words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "13" in result.output


def test_words_of_stored_images_are_merged_into_a_file_that_finds_them(stored, tmp_path):
    file = tmp_path / "meta.json"
    words = ["dataset", "merge", stored["image_dir"], str(file), "--keys", "absolute"]
    result = CliRunner().invoke(commands, words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert f'"{stored["image_dir"]}/000.png"' in file.read_text(encoding="utf-8")
    scan = ["dataset", "scan", str(file), "--image-dir", stored["image_dir"]]
    result = CliRunner().invoke(commands, scan)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "13" in result.output
