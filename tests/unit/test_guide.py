"""The guide names settings, options and pages that exist, and its settings are accepted."""

import re
import shlex
import tomllib
import typing
from pathlib import Path

import click
import pytest

from impasto.cli.main import impasto
from impasto.config.load import build_dataset_config, build_run_config
from impasto.config.run import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
FILES = (".md", ".toml", ".txt", ".json", ".py", ".safetensors", ".csv", ".html", ".png", ".svg")


def keys_of(section, before=""):
    """Return all settings by their full paths."""
    found = set()
    for name, field in section.model_fields.items():
        found.add(before + name)
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and hasattr(part, "model_fields"):
                found |= keys_of(part, f"{before}{name}.")
    return found


def blocks():
    for page in PAGES:
        for number, text in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(), re.S)):
            yield pytest.param(text, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("text", [*blocks()])
def test_settings_of_the_guide_are_accepted(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = tomllib.loads(text)
    if "datasets" in values:
        assert build_dataset_config(values, source="the guide").entries
        return
    (tmp_path / "data.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir='p'\n")
    values.setdefault("output_dir", "run")
    values.setdefault("model", {}).setdefault("path", "base")
    values.setdefault("training", {}).setdefault("max_steps", 5)
    for folder in ("train/10_sks frog", "reg/1_animal"):
        (tmp_path / folder).mkdir(parents=True)
    if not {"config", "train_data_dir"} & values.setdefault("dataset", {}).keys():
        values["dataset"].setdefault("image_dir", "pictures")
    build_run_config(values, source="the guide")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_that_the_guide_names_are_there(page):
    known = keys_of(RunConfig)
    sections = {key.partition(".")[0] for key in known}
    text = re.sub(r"```python\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    named = set(re.findall(r"\b([a-z_]+(?:\.[a-z_0-9]+)+)\b", text))
    assert not {
        name
        for name in named - known
        if name.partition(".")[0] in sections and not name.endswith(FILES)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_and_pictures_that_the_guide_links_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_headings_that_the_guide_links_are_there(page):
    for target, heading in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text("utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        names = re.findall(r"^#+ (.+)$", text, re.M)
        assert heading in {re.sub(r"[^\w -]", "", n).lower().replace(" ", "-") for n in names}


def commands_in(page):
    """Return the commands on a page: the arguments after `impasto`, with continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^(?:\$ )?impasto ([a-z].*)$", text, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_guide_have_the_options_that_it_types(page):
    for line in commands_in(page):
        words, command = shlex.split(line, comments=True), impasto
        while isinstance(command, click.Group) and words:
            command = command.get_command(click.Context(command), words[0]) or command
            if command.name != words.pop(0):
                command = command.get_command(click.Context(command), "encode")  # `cache SOURCE`
        assert command is not None, line
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_guide_types_commands():
    assert sum(len(commands_in(page)) for page in PAGES) > 30, "the pattern above must find them"
