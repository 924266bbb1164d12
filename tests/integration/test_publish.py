"""The Hub: private data stays out of the model card, and nothing is sent before `--yes`."""

import json
import os
import re
from pathlib import Path
from subprocess import CompletedProcess
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner
from conftest import impasto
from fake_hub import TOKEN, fake_hub, take_for_the_hub
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from runs_made import made_run

from impasto import locks
from impasto.checkpoints import fetching
from impasto.checkpoints.fetching import _partial_name
from impasto.checkpoints.uploading import model_files, require_repo_id
from impasto.cli.main import impasto as commands
from impasto.cli.main import main
from impasto.errors import ConfigError, ImpastoError, ModelError, RunError
from impasto.progress import SilentProgress, size_text
from impasto.report.hub_licenses import COMMON, LICENSES, require_license
from impasto.report.model_card import License, _front_matter, make_card, plain

RAIL = License("creativeml-openrail-m")
WEIGHTS = b"x" * 3_000_000
SAID = {"title": "My | <style>", "trigger_phrase": "in `my` style", "license": "openrail++"}


@pytest.fixture
def run(tmp_path):
    found = made_run(
        tmp_path / "home" / "run",
        settings={
            "model": {"path": "owner/base@main"},
            "dataset": {"image_dir": "/home/ada/private pictures/cats", "caption_prefix": "c"},
            "previews": {"prompts": ["a secret"]},
            "saving": {"metadata": SAID},
        },
        losses=[(1, 0.9), (5, 0.7), (9, 0.5)],
        validation=[(9, 0.6)],
        samples={9: {"000.png": "a secret\nSeed: 1"}},
        model="export/style.safetensors",
    )
    (found.path / "dataset.json").write_text(
        json.dumps({"images": 1200, "held_out": 30, "uncaptioned": 2, "buckets": {"64x64": 9}})
    )
    found.export.mkdir()
    (found.export / "style.safetensors").write_bytes(WEIGHTS)
    return found


@pytest.fixture
def hub():
    with fake_hub() as found:
        yield found


def publish(hub, tmp_path, *words, token=TOKEN):
    clean = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    return impasto(
        "publish", *words, env={**clean, **hub.environment(tmp_path / "hf", token)}, cwd=tmp_path
    )


@pytest.fixture
def published(hub, tmp_path, monkeypatch, capsys):
    """Publish in this process up to the upload; return the exit code and output."""
    take_for_the_hub(hub, tmp_path / "hf", monkeypatch)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.chdir(tmp_path)

    def call(*words, token=TOKEN):
        monkeypatch.setenv("HF_TOKEN", token)
        code = 0
        try:
            main(["publish", *map(str, words)])
        except SystemExit as end:
            code = end.code
        return CompletedProcess(words, code, *capsys.readouterr())

    return call


def front_matter(card):
    assert card.startswith("---\n")
    return yaml.safe_load(card[4 : card.index("\n---\n", 4)])


# the card


def test_the_card_says_what_a_reader_needs(run):
    card = make_card(run.exported_model(), run, RAIL)
    assert front_matter(card.text) == {
        "license": "creativeml-openrail-m",
        "base_model": "owner/base",
        "pipeline_tag": "text-to-image",
        "instance_prompt": "in `my` style",
        "tags": ["stable-diffusion", "text-to-image", "impasto"],
    }
    for words in (
        "# My \\| &lt;style&gt;", "`` in `my` style ``", "| images trained on | 1,200 |",
        "| 9 | 0.5000 | 0.6000 |", "[owner/base](https://huggingface.co/owner/base)",
        "![Sample 1](samples/001.png)", "max_steps = 9", "(curves/loss.svg)",
    ):  # fmt: skip
        assert words in card.text, words
    assert card.images["samples/001.png"].startswith(b"\x89PNG")


def test_the_curves_are_a_drawing_that_needs_nothing_else(run):
    """The curves are an image without external files, with colours for light and dark mode."""
    drawn = make_card(run.exported_model(), run, RAIL).images["curves/loss.svg"]
    root = ElementTree.fromstring(drawn)
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    style = root.find(f"{svg}style").text
    assert {"--first", "--ground"} <= set(re.findall(r"(--[a-z]+):", style))
    assert "prefers-color-scheme: dark" in style
    marked = [dot.find(f"{svg}title").text for dot in root.iter(f"{svg}circle")]
    assert marked == ["0.6000 after 9 steps"]
    classes = {line.get("class") for line in root.iter(f"{svg}polyline")}
    assert classes == {"raw", "first", "second"}
    for name in classes:
        assert f".chart .{name} {{" in style
    assert b"http" not in drawn.replace(b"http://www.w3.org/2000/svg", b"")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("export/style.safetensors", "does worse on held-out images than the base model"),
        ("models/style-best.safetensors", "This is the model after 3 steps"),
        ("models/style-step00000006.safetensors", "which is within the noise"),
        ("models/style-step00000009.safetensors", "It does worse on held-out images"),
        ("models/style-step00000003.safetensors", ""),  # the average was measured
        ("models/other.safetensors", ""),
    ],
)
def test_the_card_of_each_model_says_what_was_measured_of_it(tmp_path, model, words):
    run = made_run(tmp_path / "run", model="export/style.safetensors")
    for step, mean in ((0, 1.0), (3, 0.5), (6, 1.0), (9, 1.4)):
        values = [(0.5 + 0.1 * n) * mean + 0.003 * ((n * 7 + step) % 5) for n in range(8)]
        line = {"step": step, "validation_loss": sum(values) / 8, "validation_images": values}
        run.append_metrics({**line, "time": 1.0})
    endings = ("-best", "-step00000003", "-step00000003-ema", "-step00000006", "-step00000009")
    names = [f"models/style{ending}.safetensors" for ending in endings]
    for name in (*names, "models/other.safetensors", "export/style.safetensors"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_bytes(WEIGHTS)
    record = {"written": [*names, "export/style.safetensors"]}
    (run.path / "models.json").write_text(json.dumps(record), encoding="utf-8")
    text = make_card(run.path / model, run, RAIL).text
    assert words in text
    assert ("held-out images than the base model" in text) == ("noise" not in words and words != "")
    assert ("validation loss is" in text) == (bool(words) and "export" not in model)
    assert ("After" in text or "over-fitting" in text or "Lowest:" in text) == ("export" in model)
    assert ("95 % certain" in text) == bool(words)


def test_a_run_without_losses_has_a_card_without_curves(tmp_path):
    bare = made_run(tmp_path / "run", settings={}, losses=[], model="export/style.safetensors")
    card = make_card(tmp_path / "style.safetensors", bare, RAIL)
    assert "curves" not in card.text
    assert card.images == {}


def test_the_card_tells_no_prompt_and_no_folder(run):
    card = make_card(run.exported_model(), run, RAIL)
    assert "a secret" not in card.text
    assert b"a secret" not in card.images["samples/001.png"]
    assert "private pictures" not in card.text
    assert str(run.path) not in card.text


def test_prompts_are_told_where_the_run_allows_it(tmp_path):
    settings = {"saving": {"publish": ["prompts"]}, "previews": {"prompts": ["a_secret"]}}
    run = made_run(
        tmp_path / "run", settings=settings, samples={9: {"000.png": "a_secret\nSeed: 1"}}
    )
    assert "a\\_secret" in make_card(tmp_path / "m.safetensors", run, RAIL).text


@pytest.mark.parametrize("config", ["not = [toml", "", "model = 3\nsaving = 4\nmethod = 'x'\n"])
def test_a_run_whose_files_are_damaged_has_a_card_all_the_same(run, config):
    run.config_file.write_text(config)
    run.metrics_file.write_bytes(b"\xff{")
    (run.path / "dataset.json").write_text("[]")
    card = make_card(run.exported_model(), run, RAIL)
    assert front_matter(card.text)["license"] == "creativeml-openrail-m"


def test_a_model_without_a_run_has_a_short_card(tmp_path):
    card = make_card(
        tmp_path / "a-model.ckpt", None, License("other", "My Own", "https://x.example")
    )
    assert front_matter(card.text)["license_name"] == "my-own"
    assert "# a-model" in card.text
    assert card.images == {}


@given(st.text())
def test_text_of_anybody_stays_one_line_without_marks(text):
    shown = plain(text)
    assert "\n" not in shown
    assert "<" not in shown
    for mark in "`|*[]":
        assert shown.count(mark) == shown.count(f"\\{mark}")


@given(st.text(), st.text())
def test_what_the_hub_reads_is_always_yaml(title, phrase):
    settings = {"saving": {"metadata": {"trigger_phrase": phrase, "tags": title}}}
    found = front_matter(_front_matter(Path("m"), settings, License("mit")) + "\n")
    assert found["license"] == "mit"
    assert found.get("instance_prompt", "") == " ".join(phrase.split())


def test_the_table_of_losses_has_no_rows_without_any(tmp_path):
    losses, validation = [(10, 0.5), (20, 0.4)], [(0, 1.0), (20, 0.9)]
    run = made_run(tmp_path / "run", losses=losses, validation=validation)
    text = make_card(tmp_path / "m.safetensors", run, License("mit")).text
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert rows == ["| 10 | 0.5000 |  |", "| 20 | 0.4000 | 0.9000 |"]


# licences, names, files


def test_a_folder_with_a_number_in_its_name_keeps_it_in_the_title(tmp_path):
    folder = tmp_path / "model-v1.5"
    folder.mkdir()
    assert "# model-v1.5\n" in make_card(folder, None, RAIL).text
    assert "# a-v1.5\n" in make_card(tmp_path / "a-v1.5.ckpt", None, RAIL).text


def test_a_licence_is_required_and_known():
    assert set(COMMON) <= set(LICENSES)
    for license_id in LICENSES:
        require_license(license_id, "name", "https://x.example/y")
    with pytest.raises(ConfigError, match="A licence is required"):
        require_license(None, None, None)
    with pytest.raises(ConfigError, match=r"Did you mean apache-2\.0"):
        require_license("Apache-2", None, None)
    with pytest.raises(ConfigError, match="--license-name"):
        require_license("other", None, "https://x.example")
    with pytest.raises(ConfigError, match="is not a URL"):
        require_license("other", "x", "javascript:alert(1)")
    with pytest.raises(ConfigError, match="knows no licence"):
        require_license("unknown", None, None)


@pytest.mark.parametrize("name", ["x", "", "a/b/c", "a/../b", "-a/b", "a/b.git", "a b/c", "é/x"])
def test_names_of_no_repository_are_refused(name):
    with pytest.raises(ConfigError):
        require_repo_id(name)


def test_of_a_folder_only_the_model_is_published_and_no_link_out_of_it(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in ("model_index.json", "unet/model.fp16.safetensors", "notes.docx", "token.txt",
                 "optimizer.bin", ".git/x.json", ".env.txt"):  # fmt: skip
        (folder / name).write_text("x")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    found, left_out = model_files(folder)
    assert list(found) == ["model_index.json", "unet/model.fp16.safetensors"]
    assert left_out == [".env.txt", "link.txt", "notes.docx", "optimizer.bin", "token.txt"]


def test_what_is_no_model_is_not_published(tmp_path):
    (tmp_path / "id_rsa").write_text("secret")
    for path in (tmp_path, tmp_path / "id_rsa", tmp_path / "missing.safetensors"):
        with pytest.raises(ModelError, match="not a model to publish"):
            model_files(path)


def test_sizes_are_said_in_words():
    words = [size_text(size) for size in (0, 1, 1023, 1024, 3 << 20, 5 << 30)]
    assert words == ["0 bytes", "1 byte", "1,023 bytes", "1.0 KiB", "3.0 MiB", "5.0 GiB"]


# the verb


def test_a_dry_run_asks_the_hub_nothing_and_writes_what_it_would_send(run, hub, tmp_path):
    said = publish(hub, tmp_path, run.path, "ada/style", "--out", "card")
    assert said.returncode == 0, said.stderr
    assert hub.asked == []
    assert "Nothing was sent" in said.stdout
    assert TOKEN not in said.stdout + said.stderr
    plan = json.loads((tmp_path / "card" / "upload.json").read_text(encoding="utf-8"))
    assert plan["license"] == "openrail++"  # of the run's settings
    assert plan["has_token"] is True
    sizes = {file["name"]: file["bytes"] for file in plan["files"]}
    assert sizes["style.safetensors"] == len(WEIGHTS)
    card = (tmp_path / "card" / "README.md").read_bytes()
    assert sizes["README.md"] == len(card)
    assert (tmp_path / "card" / "samples" / "001.png").is_file()
    assert sizes["curves/loss.svg"] == (tmp_path / "card" / "curves" / "loss.svg").stat().st_size


def test_a_model_is_published_and_an_interrupted_upload_repeated(run, hub, tmp_path):
    words = (run.path, "ada/style", "--license", "openrail++", "--private", "--yes")
    hub.fails_after = 1
    failed = publish(hub, tmp_path, *words)
    assert failed.returncode == 6
    assert "Run the same command again" in failed.stderr
    assert [name for name in hub.repos["ada/style"] if name] == []  # no half of a model
    hub.fails_after = None
    done = publish(hub, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert f"Published: {hub.address}/ada/style" in done.stdout
    repo = hub.repos["ada/style"]
    assert repo[None] is True
    assert repo["style.safetensors"] == WEIGHTS
    assert b"license: openrail++" in repo["README.md"]
    assert set(repo) == {
        None, "README.md", "samples/001.png", "curves/loss.svg", "style.safetensors",
    }  # fmt: skip
    assert len(hub.received) == len(set(hub.received)) == 2  # nothing was sent twice


def test_what_is_to_be_private_is_not_sent_where_everybody_sees_it(run, hub, published):
    hub.repos["ada/style"] = {None: False}
    said = published(run.path, "ada/style", "--private", "--yes")
    assert said.returncode == 2
    assert "already exists and is public" in said.stderr
    assert hub.received == []


def test_without_a_token_it_says_how_to_get_one(run, hub, published):
    said = published(run.path, "ada/style", "--yes", token="")
    assert said.returncode == 2
    assert "hf auth login" in said.stderr
    assert "HF_TOKEN" in said.stderr
    assert hub.asked == []


def test_a_token_that_is_refused_is_said_and_not_shown(run, published):
    said = published(run.path, "ada/style", "--yes", token="hf_wrong")
    assert said.returncode == 6
    assert "has write permission" in said.stderr
    assert "hf_wrong" not in said.stdout + said.stderr


def test_a_card_of_ones_own_is_taken(run, hub, tmp_path, published):
    card = tmp_path / "mine.md"
    card.write_text("---\nlicense: mit\n---\n\nMine.\n", encoding="utf-8")
    words = (run.path, "ada/style", "--license", "mit", "--card", card)
    assert "Mine." in published(*words).stdout
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "loss.svg").write_text("<svg/>", encoding="utf-8")
    card.write_text("---\nlicense: mit\n---\n\n![L](curves/loss.svg)\n", encoding="utf-8")
    said = publish(hub, tmp_path, *words, "--yes")
    assert said.returncode == 0, said.stderr
    repo = hub.repos["ada/style"]
    assert repo["curves/loss.svg"] == b"<svg/>"  # the one beside the card
    assert "samples/001.png" not in repo  # not shown in this card
    card.write_text("Mine.", encoding="utf-8")
    refused = published(*words)
    assert refused.returncode == 2
    assert "does not begin" in refused.stderr


def test_only_images_that_the_card_names_are_sent(run, hub, tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    for name in ("mine 1.png", "shown.png", "strangers.png"):
        (samples / name).write_bytes(b"x")
    card = tmp_path / "mine.md"
    shown = "![a](samples/mine%201.png) <img src='samples/shown.png'> ![L](curves/loss.svg)"
    card.write_text(f"---\nlicense: mit\n---\n\n{shown}\n", encoding="utf-8")
    words = (run.path, "ada/style", "--license", "mit", "--card", card, "--yes")
    said = publish(hub, tmp_path, *words)
    assert said.returncode == 0, said.stderr
    sent = {name for name in hub.repos["ada/style"] if name and "/" in name}
    assert sent == {"samples/mine 1.png", "samples/shown.png", "curves/loss.svg"}


def test_a_new_card_takes_the_images_of_the_former_one_away(run, tmp_path, published):
    samples = tmp_path / "card" / "samples"
    samples.mkdir(parents=True)
    for name in ("005.png", "mine.png"):
        (samples / name).write_bytes(b"x")
    words = (run.path, "ada/style", "--out", "card")
    published(*words)
    assert (samples / "005.png").is_file()  # the card is not from Impasto
    published(*words)
    assert {path.name for path in samples.iterdir()} == {"001.png", "mine.png"}


def test_nothing_is_written_into_what_is_published(run, published):
    said = published(run.path, "ada/style", "--out", run.path / "card")
    assert said.returncode == 2
    assert not (run.path / "card").exists()


def test_what_inspect_writes_is_never_the_model(tmp_path):
    model = tmp_path / "m.safetensors"
    model.write_bytes(WEIGHTS)
    assert impasto("inspect", model, "--out", model).returncode == 2
    there = tmp_path / "notes.json"
    there.write_text("[]", encoding="utf-8")
    refused = impasto("inspect", model, "--out", there)
    assert refused.returncode == 5
    assert "already exists" in refused.stderr
    assert there.read_text(encoding="utf-8") == "[]"
    assert model.read_bytes() == WEIGHTS


def test_a_run_without_a_model_is_refused(tmp_path, published):
    run = made_run(tmp_path / "run", phase="stopped")
    said = published(run.path, "ada/style", "--license", "mit")
    assert said.returncode == 5
    assert "no trained model yet" in said.stderr


# downloads


def test_a_file_is_downloaded_once_and_replaces_nothing(hub, tmp_path, monkeypatch):
    hub.repos["ada/one"] = {None: False, "sub/a [1].safetensors": WEIGHTS, "README.md": b"hi"}
    take_for_the_hub(hub, tmp_path / "hf", monkeypatch)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(commands, ["download", "ada/one", "--out", "models"])
    assert done.exit_code == 0, done.exception
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["a [1].safetensors"]
    assert (tmp_path / "models" / "a [1].safetensors").read_bytes() == WEIGHTS
    assert "2 MiB" in done.stdout  # of 2.9: counted once
    again = CliRunner().invoke(commands, ["download", "ada/one", "--out", "models"])
    assert again.exception.exit_code == 5
    assert "already exists" in str(again.exception)


def test_what_cannot_be_downloaded_is_said_in_a_sentence(hub, tmp_path, monkeypatch):
    hub.repos["ada/two"] = {None: False, "a.ckpt": b"x", "b.ckpt": b"y"}
    take_for_the_hub(hub, tmp_path / "hf", monkeypatch)
    monkeypatch.chdir(tmp_path)
    for words, is_offline, code, sentence in (
        (["ada/none", "--out", "m"], False, 4, "could not be downloaded"),
        (["ada/two", "--out", "m"], False, 4, "Name one with --file; it has a.ckpt, b.ckpt"),
        (["ada/two"], False, 4, "Name one with --file; it has a.ckpt, b.ckpt"),
        (["ada/two", "--out", "m", "--file", "c"], False, 4, "has no file c"),
        (["ada/two", "--out", "m"], True, 4, "OfflineModeIsEnabled"),
        (["nonsense", "--out", "m"], False, 2, "owner/name"),
        (["ada/two", "--file", "a.ckpt"], False, 2, "--out"),
        (["ada/two", "--out", "m", "--file", "a.ckpt", "--variant", "fp16"], False, 2, "--variant"),
    ):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
        error = CliRunner().invoke(commands, ["download", *words]).exception
        assert isinstance(error, ImpastoError), words
        assert (error.exit_code, sentence in str(error)) == (code, True), error
    left = [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
    assert left == []


def test_downloads_of_different_models_do_not_meet(tmp_path, monkeypatch):
    """Leftovers of one model are not used for another, and equal downloads do not collide."""
    names = {
        _partial_name("sd", hub_id, wanted)
        for hub_id in ("a/sd", "b/sd", "a/sd@v2")
        for wanted in (["*.json"], ["*.json", "unet/*"])
    }
    assert len(names) == 6
    assert _partial_name("sd", "a/sd", ["x", "y"]) == _partial_name("sd", "a/sd", ["y", "x"])
    monkeypatch.setattr(fetching, "list_files", lambda *_: ["m.safetensors"])
    name = _partial_name("m.safetensors", "a/sd", ["m.safetensors"])
    with (
        locks.FolderLock(tmp_path, "downloading", lambda _: None, f"{name}.lock"),
        pytest.raises(RunError, match="being downloaded already"),
    ):
        fetching.fetch_copy("a/sd", tmp_path, (), SilentProgress())
