"""The command-line arguments that take a URL; all others refuse one at once."""

import sys

import click
import pytest
from click.testing import CliRunner
from conftest import draw_images
from object_store import put_folder

from impasto.cli.local_paths import LocalPath
from impasto.cli.main import impasto
from impasto.errors import ConfigError

TAKE_URLS = {
    "ask run", "compare runs", "ema run", "publish source", "report run", "resume run", "send run",
    "show run", "evaluate images", "evaluate training", "new data", "new output_dir",
}  # fmt: skip
"""Path arguments that may be URLs, except those of `OF_IMAGES`; each verb documents its own."""

OF_IMAGES = {"source", "image_dir", "cache_dir"}
"""Commands of `impasto dataset`: they read from a store, or refuse with a specific message."""

OWN_WORDS = {"dataset show image", "dataset crop image"}


def parameters(command, words=()):
    """Return the name of each command -> its parameters that are paths."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from parameters(command.get_command(context, name), (*words, name))
    else:
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                yield " ".join(words), parameter


def test_each_path_takes_a_url_or_refuses_it():
    found = {f"{verb} {p.name}": p for verb, p in parameters(impasto)}
    plain = {name for name, p in found.items() if not isinstance(p.type, LocalPath)}
    plain -= {name for name in plain if name.split()[-1] in OF_IMAGES and "dataset" in name}
    assert plain == TAKE_URLS | OWN_WORDS


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "a", "b", "--out", "s3://bucket/m.safetensors"),
        ("convert", "a", "memory://m.safetensors"),
        ("find-lr", "run.toml", "--out", "s3://bucket/lr.html"),
        ("draw-worker", "gs://bucket/drawings"),
        ("train", "s3://bucket/run.toml"),
        ("sample", "a", "a cat", "--out", "http://somewhere/drawn"),
        ("dataset", "tag", "pictures", "--metadata", "s3://bucket/meta.json"),
        ("runs", "s3://bucket/runs"),
        ("queue", "list", "--queue", "s3://bucket/queue"),
    ],
)
def test_a_url_is_refused_before_anything_is_done(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(impasto, words).exception
    assert isinstance(error, ConfigError), error
    url = next(word for word in words if "://" in word)
    assert f"is {url}, which is a URL; expected a path on this machine. " in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no colon in names")
def test_a_folder_of_such_a_name_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue:").mkdir()
    result = CliRunner().invoke(impasto, ["queue", "list", "--queue", "queue:/one"])
    assert result.exit_code == 0, result.exception


def test_new_settings_name_places_in_a_store_by_their_urls(in_memory, nano_model, tmp_path):
    put_folder(draw_images(tmp_path / "drawn", 2), in_memory / "cats")
    url, out = f"memory://{in_memory.name}", tmp_path / "run.toml"
    words = ["new", "--goal", "style", "--data", f"{url}/cats", "--model", str(nano_model)]
    words += ["--output-dir", f"{url}/run", "--out", str(out)]
    result = CliRunner().invoke(impasto, words)
    assert result.exit_code == 0, (result.output, result.exception)
    written = out.read_text(encoding="utf-8")
    assert f'image_dir = "{url}/cats"' in written
    assert f'output_dir = "{url}/run"' in written
