"""The form of a new run in a real browser; skipped without Chromium."""

import shutil

import pytest
from browsing import check_all_looks, needs_browser, served, tab_to

from impasto.demo.recipe import BASE_MODEL, PICTURES

pytestmark = needs_browser
PATIENCE_MS = 180_000  # a plan imports PyTorch, and other tests run in parallel


@pytest.fixture
def folders(tmp_path):
    """Folders of runs, images and models, with the demo's images and model."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "data" / "icons").mkdir(parents=True)
    for file in sorted(PICTURES.iterdir())[:40]:
        shutil.copy(file, tmp_path / "data" / "icons")
    shutil.copytree(BASE_MODEL, tmp_path / "models" / "base")
    return tmp_path


def options(folders):
    return ("--data", folders / "data", "--models", folders / "models")


def test_the_form_says_what_is_wrong_and_what_it_would_do(folders, page, complaints):
    """Errors appear at the field while typing, a reload loses nothing, and the keyboard
    suffices."""
    page.set_default_timeout(PATIENCE_MS)
    with served(folders / "runs", *options(folders)) as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        page.click("nav >> text=New run")
        page.wait_for_selector("#goal-title")
        tab_to(page, "form[action='/new/blank'] button")
        page.keyboard.press("Enter")
        page.wait_for_selector("#faults")
        tab_to(page, "a[href='#f-model-path']", most=200)
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "f-model-path"
        for summary in page.locator("details.section > summary").all():
            summary.click()
        check_all_looks(page)
        page.reload()
        page.fill("#f-model-path", str(folders / "models" / "base"))
        page.fill("#f-dataset-image_dir", str(folders / "data" / "icons"))
        page.fill("#f-training-max_steps", "many")
        fault = "#f-training-max_steps-fault"
        page.wait_for_function(
            "s => document.querySelector(s).textContent.includes('many')", arg=fault
        )
        assert page.get_attribute("#f-training-max_steps", "aria-invalid") == "true"
        page.click("text=Start now")
        page.wait_for_selector("#answer :text('Not yet: training.max_steps')")
        page.fill("#find", "huber")
        assert page.is_hidden("#f-loss-huber_c")
        page.select_option("#f-loss-kind", "huber")
        assert page.is_visible("#f-loss-huber_c")
        page.fill("#f-loss-huber_c", "0.2")
        page.fill("#find", "resolution")
        assert page.is_hidden("#f-loss-huber_c")
        for known in ("training.max_steps", "--max_train_steps", "max train steps"):
            page.fill("#find", known)
            assert page.text_content("#found") == "Among the usual settings: Optimizer steps"
        page.click("#found a")
        assert page.evaluate("document.activeElement.id") == "f-training-max_steps"
        page.fill("#find", "Accumulation Steps")
        assert "Gradient accumulation" in page.text_content("#found")
        page.fill("#find", "no_half_vae")
        assert page.is_visible("#f-dataset-vae_precision")
        assert page.is_hidden("#f-dataset-vae_tiling")
        page.fill("#find", "zzz")
        assert "No setting has this text" in page.text_content("#found")
        page.fill("#find", "bucket")
        page.fill("#f-dataset-resolution", "136")
        page.fill("#f-dataset-min_bucket_reso", "64")
        page.fill("#find", "")
        page.fill("#f-training-max_steps", "7")
        page.wait_for_selector("#panel .plan dd:text-matches('^7; ')")
        assert page.text_content(fault) == ""
        page.reload()
        assert page.input_value("#f-loss-huber_c") == "0.2"
        page.click("text=Save the settings")
        page.wait_for_selector("#answer :text('Wrote')")
    assert "huber_c = 0.2" in (folders / "runs" / "my-run.toml").read_text(encoding="utf-8")
    assert complaints == []
