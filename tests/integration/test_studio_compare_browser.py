"""The pages "Compare" and "Models" by clicks, in a real browser; skipped without Chromium."""

import base64

import pytest
from browsing import at, needs_browser, served, wait_for_lines
from runs_made import made_run

pytestmark = needs_browser


def name_of(path):
    return "0." + base64.urlsafe_b64encode(str(path).encode()).decode().rstrip("=")


@pytest.fixture
def runs(tmp_path):
    for number, name in enumerate(("one", "two")):
        run = made_run(
            tmp_path / "runs" / name,
            settings={"seed": number},
            losses=[(step, 1 / step + number) for step in range(1, 40)],
            validation=[(step, 1.0) for step in (10, 20, 30)],
            samples={step: {"000.png": "a ball\nSeed: 1"} for step in (0, 20 + number * 9)},
        )
    lines = run.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
    run.metrics_file.write_text(
        "".join(lines[0].replace('"step": 1', f'"step": {step}') for step in range(1, 100_001)),
        encoding="utf-8",
    )
    return tmp_path / "runs"


def test_runs_are_compared_by_clicks_and_keys(runs, page, complaints):
    with served(runs) as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        page.click("nav a:has-text('Compare')")
        page.wait_for_selector(".choices input")  # a click does not wait for navigation
        for box in page.query_selector_all(".choices input"):
            box.focus()
            page.keyboard.press("Space")
        page.click("button:has-text('Compare')")
        page.wait_for_selector("#curves canvas")
        wait_for_lines(page, "#curves canvas")
        page.wait_for_selector("#numbers td:has-text('100,000')")
        page.wait_for_function("() => document.getElementById('curves-note').hidden")
        label = "[...document.querySelectorAll('.curve')][0].getAttribute('aria-label')"
        assert "one ends at" in page.evaluate(label)
        assert page.is_visible("figure:has-text('one')")
        page.focus("#legend input[data-title=one]")
        page.keyboard.press("Space")
        assert "one ends at" not in page.evaluate(label)
        assert "two ends at" in page.evaluate(label)
        assert not page.is_visible("figure:has-text('one')")
        page.keyboard.press("Space")
        page.focus("#step")
        page.keyboard.press("Home")
        assert {image.get_attribute("src").split("/")[-2] for image in images(page)} == {"0"}
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#step-shown") == "20"
        assert [image.get_attribute("src").split("/")[-2] for image in images(page)] in (
            ["20", "29"], ["29", "20"],
        )  # fmt: skip
        page.select_option("#smooth", "0")
        page.click("tr:has-text('seed') >> th")
    assert complaints == []


def images(page):
    return page.query_selector_all(".compared-sample")


def test_a_model_is_inspected_converted_and_deleted_by_clicks(
    tmp_path, ldm_file, nano_model, page, complaints
):
    runs, models = tmp_path / "runs", tmp_path / "shelf"
    runs.mkdir()
    models.mkdir()
    ldm_file(nano_model).rename(models / "nano.safetensors")
    (models / "evil.ckpt").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with served(runs, "--models", models) as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        page.goto(at(address, "models"))
        page.click(".model:has-text('evil.ckpt')")
        page.click("button:has-text('Inspect')")
        page.wait_for_selector("#inspection .message.error")
        assert not (models / "hacked").exists()
        page.goto(at(address, "models"))
        page.click(".model:has-text('nano')")
        page.click("button:has-text('Inspect')")
        page.wait_for_selector("td:has-text('a Stable Diffusion checkpoint')")
        page.fill("#name", "half")
        page.select_option("#to", "diffusers")
        page.select_option("#dtype", "fp16")
        page.click("button:has-text('Convert')")
        page.wait_for_selector(".state.done")
        assert (models / "half" / "model_index.json").is_file()
        page.goto(at(address, f"models/models/{name_of('nano.safetensors')}"))
        page.click("text=Delete this model")
        page.check("input[name=sure]")
        page.click("button:has-text('Delete')")
        page.wait_for_selector("text=Empty the trash")
        assert not (models / "nano.safetensors").exists()
        assert page.is_visible(".model:has-text('half')")
    assert complaints == []
