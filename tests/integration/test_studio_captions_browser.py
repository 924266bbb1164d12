"""Captions by clicks in a real browser, with the demo's own tagger and captioner."""

import shutil

import pytest
from browsing import at, check, check_all_looks, needs_browser, served

from impasto.demo.recipe import CAPTIONER, PICTURES, TAGGER
from impasto.studio.folders import address_of

pytestmark = needs_browser


@pytest.fixture
def shown(tmp_path):
    """A studio's folders with twelve captioned images; yields the addresses of their caption
    pages."""
    for name in ("runs", "data/demo"):
        (tmp_path / name).mkdir(parents=True)
    for image in sorted(PICTURES.glob("*.webp"))[:12]:
        shutil.copy(image, tmp_path / "data" / "demo")
        shutil.copy(image.with_suffix(".txt"), tmp_path / "data" / "demo")
    for model in (TAGGER, CAPTIONER):
        shutil.copytree(model, tmp_path / "models" / model.name)
    data = tmp_path / "data"
    options = ("--data", data, "--models", tmp_path / "models")
    return tmp_path, options, f"/data/{address_of([data], data / 'demo')}/captions"


def faults(complaints):
    """Return the page's errors, except those of thumbnails of another page."""
    return [text for text in complaints if "/thumbnails/" not in text]


def test_captions_are_selected_edited_previewed_and_undone(shown, page, complaints):
    folder, options, here = shown
    words = {file: file.read_bytes() for file in sorted((folder / "data/demo").glob("*.txt"))}
    with served(folder / "runs", *options) as (address, _):
        page.goto(address)
        page.wait_for_selector("main")
        page.goto(at(address, here))
        page.click("input[name=image] >> nth=1")
        page.click("input[name=image] >> nth=4", modifiers=["Shift"])
        assert page.inner_text("#selected") == "4"
        page.fill("input[name=what]", "my <style>")
        page.fill("input[name=at]", "first")
        page.click("#one-more")
        page.select_option("select[name=do] >> nth=1", "regex")
        page.fill("input[name=what] >> nth=1", r"\ba\b")
        page.fill("input[name=by] >> nth=1", "one")
        page.click("button:has-text('Preview')")
        page.wait_for_selector("#preview .changes li >> nth=3")
        assert {file: file.read_bytes() for file in words} == words
        check_all_looks(page)
        page.click("button:has-text('Apply to 4 captions')")
        page.wait_for_selector("#task-shown .state.done")
        changed = {file for file in words if file.read_bytes() != words[file]}
        assert changed == set(sorted(words)[1:5])
        assert all(file.read_text(encoding="utf-8").startswith("my <style>, ") for file in changed)
        page.click("summary:has-text('Undo an edit')")
        page.click(".edit-list button")
        page.wait_for_selector("h2:has-text('Undo edit 1')")
        page.wait_for_selector("#task-shown .state.done")
        assert {file: file.read_bytes() for file in words} == words
        page.click("a:has-text('Edit') >> nth=0")
        page.fill("#text", "a new\ncaption")
        check(page)
        page.click("button:has-text('Save')")
        page.wait_for_selector("#task-shown .state.done")
        assert min(words).read_text(encoding="utf-8") == "a new\ncaption\n"
        journals = next((folder / "data").rglob("edit-*.jsonl")).parent
        shutil.rmtree(journals)
        journals.write_text("no folder", encoding="utf-8")
        page.fill("#text", "typed with\nmuch thought")
        page.click("button:has-text('Save')")
        page.wait_for_selector("#task-shown .state.failed")
        page.wait_for_selector("#not-saved:visible")
        assert page.input_value("#text") == "typed with\nmuch thought"
        assert min(words).read_text(encoding="utf-8") == "a new\ncaption\n"
        journals.unlink()
        page.click("button:has-text('Save')")
        page.wait_for_selector("#task-shown .state.done")
        assert page.locator("#not-saved:visible").count() == 0
        assert min(words).read_text(encoding="utf-8") == "typed with\nmuch thought\n"
    assert faults(complaints) == []


def test_models_are_tried_side_by_side_and_one_runs_on_all(shown, page, complaints):
    folder, options, here = shown
    with served(folder / "runs", *options) as (address, _):
        page.goto(address)
        page.wait_for_selector("main")
        page.goto(at(address, f"{here}/try"))
        page.fill("[name=model-1]", str(folder / "models" / "tagger"))
        page.select_option("[name=kind-2]", "captioner")
        page.fill("[name=model-2]", str(folder / "models" / "captioner"))
        page.click("main form button:has-text('Try')")
        page.wait_for_selector("#task-shown .state.done")
        page.wait_for_selector(".tried tbody tr >> nth=11")
        assert "butterfly" in page.inner_text(".tried tbody tr >> nth=1")
        check(page)
        file = folder / "data" / "demo" / "0000-sun.txt"
        before = file.read_bytes()
        page.select_option(".tried tfoot select >> nth=0", "append")
        page.click("button:has-text('Run tagger on all')")
        page.wait_for_selector("#task-shown .state.done")
        assert file.read_bytes().startswith(before.strip())
        assert b"monochrome" in file.read_bytes()
    assert faults(complaints) == []
