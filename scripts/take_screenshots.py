"""Take the screenshots of docs/guide/studio.md with the demo's data, in a real browser.

python scripts/take_screenshots.py [--workplace DIR] [--out docs/images] [--only NAME]...
python scripts/take_screenshots.py [--workplace DIR] --all --out DIR

By default it takes the screenshots that the guide shows; with `--all` whole pages, in light, in
dark and 400 pixels wide, for review.

It opens the studio as `start.py studio` does, trains the demo there unless the workplace has it
from an earlier call, and visits all pages: about ten minutes on two CPU cores. It needs Chromium
and playwright.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import tomli_w
from playwright.sync_api import Browser, Page, sync_playwright
from studio_camera import SIZE, Camera

from impasto.demo.recipe import CAPTIONER, FOLDER, TAGGER
from impasto.runs.drawings import DrawFolder
from impasto.runs.queue import Queue
from impasto.studio.folders import HOME, address_of
from impasto.studio.tasks import Tasks

ROOT = Path(__file__).parents[1]
PATIENCE_MS = 900_000
DEMO, OWN = "impasto-demo", "my-style"
SETTINGS = {
    "training-max_steps": "150",
    "training-batch_size": "4",
    "optimizer-lr": "2e-4",
    "logging-every_steps": "5",
    "previews-prompts": "a sun\na cat face",
    "previews-every_steps": "50",
    "previews-at_first": "true",
    "previews-width": "128",
    "previews-height": "128",
    "previews-steps": "20",
    "previews-guidance_scale": "2",
}
"""The values typed into the form of the second run, by the ends of the fields' names."""


@contextmanager
def served(workplace: Path) -> Iterator[str]:
    """Run the studio with the demo in a folder; yield the address that it prints."""
    words = [sys.executable, "-m", "impasto", "studio", "--demo"]
    called_as = {"IMPASTO_PROGRAM": "impasto"}  # the program's name in commands on pages
    process = subprocess.Popen(
        words,
        cwd=workplace,
        env={**os.environ, **called_as},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        yield next(line.strip() for line in process.stdout or () if line.startswith("http"))
    finally:
        process.terminate()
        process.wait()


def prepare(workplace: Path) -> Path:
    """Create the data that is not made by clicks; return the studio's folder."""
    place = workplace / "impasto-studio"
    heldout, models = place / "data" / "held-out", place / "models"
    for source, target in (
        (FOLDER / "heldout", heldout),
        (TAGGER, models / "tagger"),
        (CAPTIONER, models / "captioner"),
    ):
        if not target.exists():
            shutil.copytree(source, target)
    if not (place / "runs" / DEMO / "export").is_dir():
        shutil.rmtree(place / "runs" / DEMO, ignore_errors=True)
        words = ["demo", "--out", place / "runs" / DEMO, "--set", "logging.image_losses=true"]
        subprocess.run([sys.executable, "-m", "impasto", *words], check=True)
    for left in (place / "runs" / OWN, place / "queue", place / "runs" / HOME):
        shutil.rmtree(left, ignore_errors=True)
    (place / "runs" / f"{OWN}.toml").unlink(missing_ok=True)
    queue = Queue(place / "queue")
    for name, paused in (("ink-512", False), ("ink-768", False), ("watercolour", True)):
        settings = {"output_dir": str(place / "runs" / name)}
        queue.add(tomli_w.dumps(settings), name, place, paused=paused)
    return place


def first_start(camera: Camera, workplace: Path) -> None:
    """Photograph the first visit: no run yet, and the demo offered."""
    with tempfile.TemporaryDirectory(dir=workplace) as fresh, served(Path(fresh)) as address:
        camera.page.goto(address)
        camera.page.wait_for_selector("#machine :text('This machine:')")
        replace(camera, workplace=Path(fresh)).take("studio-first")


def data_pages(camera: Camera, place: Path, address: str) -> None:
    """Photograph the datasets, a gallery, one image, its captions, and models tried on them."""
    page, data = camera.page, place / "data"
    page.click("nav >> text=Data")
    page.wait_for_selector(".dataset")
    camera.take("studio-data")
    page.click(".dataset:has-text('demo')")
    page.wait_for_selector(".chips")
    for name, value in (("resolution", "136"), ("min_side", "64"), ("step", "32")):
        page.fill(f".read [name={name}]", value)  # the demo's training size
    page.check(".read [name=copies]")
    page.click("button:has-text('Read the folder')")
    page.wait_for_selector("#reading .state")
    page.wait_for_selector("#reading .state", state="detached")
    camera.take("studio-gallery")
    gallery = page.url
    page.click("text=Write the health report")
    page.click("a:has-text('Health report of')")
    page.wait_for_selector("h1:has-text('Health of')")
    page.wait_for_function("() => document.querySelector('.thumbs img')?.naturalWidth > 0")
    camera.take("studio-health")
    page.goto(gallery)
    page.click("a:has-text('Captions')")
    page.wait_for_selector("input[name=image]")
    page.click("input[name=image] >> nth=0")
    page.click("input[name=image] >> nth=3", modifiers=["Shift"])
    page.fill("input[name=what]", "in ink")
    page.click("button:has-text('Preview')")
    page.wait_for_selector("#preview .changes li >> nth=3")
    camera.take("studio-captions")
    here = f"data/{address_of([data], data / 'demo')}"
    page.goto(at(address, f"{here}/captions/try"))
    page.fill("[name=model-1]", str(place / "models" / "tagger"))
    page.select_option("[name=kind-2]", "captioner")
    page.fill("[name=model-2]", str(place / "models" / "captioner"))
    page.click("main form button:has-text('Try')")
    page.wait_for_selector("#task-shown .state.done")
    page.wait_for_selector(".tried tbody tr >> nth=11")
    camera.take("studio-try", at="#task-shown")
    image = sorted((data / "demo").glob("*.webp"))[3]
    page.goto(at(address, f"{here}/images/{address_of([data / 'demo'], image)}"))
    page.wait_for_selector("#bucket:has-text('Bucket')")
    page.select_option("#shape", "1")
    page.click("button:has-text('Show as in training')")
    page.wait_for_selector("#showings li")
    camera.take("studio-image")


def new_run(camera: Camera, place: Path) -> None:
    """Photograph the steps from a goal to a run that trains."""
    page = camera.page
    page.click("nav >> text=New run")
    page.check("input[value=style]")
    page.fill("#data", str(place / "data" / "demo"))
    page.fill("#model", str(place / "models" / "demo-base"))
    camera.take("studio-new")
    page.click("text=Make settings >> nth=0")
    page.fill("#f-output_dir", str(place / "runs" / OWN))
    for key, value in SETTINGS.items():
        fill_setting(page, key, value)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(2000)  # fields are sent with a short delay after typing
    page.wait_for_selector("#panel :text('Planning')", state="detached")
    page.wait_for_selector("#panel .plan dd:text-matches('^150; ')")
    camera.take("studio-new-form")
    page.click("text=Start now")
    page.wait_for_url("**/runs/**")
    page.wait_for_selector("#state .state.training")
    page.wait_for_function("() => document.querySelector('#state progress')?.value >= 40")
    page.wait_for_selector(".curve canvas")
    camera.take("studio-training")
    page.click("nav >> text=Tasks")
    page.wait_for_selector(".row")
    camera.take("studio-tasks")
    page.go_back()
    page.wait_for_selector("#state .state.finished")


def fill_setting(page: Page, key: str, value: str) -> None:
    """Fill in or choose the value of a setting in the form, after opening its section."""
    field = page.locator(f"#f-{key}")
    for details in page.locator(f"details:not([open]):has(#f-{key}) > summary").all():
        details.click()
    if field.evaluate("node => node.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)


def finished_runs(camera: Camera) -> None:
    """Photograph the list of runs, one run, and two compared."""
    page = camera.page
    page.click("nav >> text=Runs")
    page.wait_for_selector(f".run:has-text('{OWN}')")
    page.wait_for_selector("#machine :text('This machine:')")
    camera.take("studio-start")
    page.click(f".run:has-text('{DEMO}')")
    page.wait_for_selector(".curve canvas")
    page.wait_for_selector("#learning p")
    camera.take("studio-run")
    camera.take("studio-run-samples", at="[aria-labelledby=learning-title]")
    page.click("nav >> text=Compare")
    for box in page.query_selector_all(".choices input"):
        box.check()
    page.click("button:has-text('Compare')")
    page.wait_for_selector("#curves canvas")
    page.wait_for_selector("#numbers table")
    camera.take("studio-compare")


def queue_draw_and_models(camera: Camera) -> None:
    """Photograph waiting jobs, a grid of samples, and the details of a model."""
    page = camera.page
    page.click("nav >> text=Queue")
    page.wait_for_selector("#job-3")
    camera.take("studio-queue")
    page.click("nav >> text=Draw")
    page.fill("#prompt", "a cat face")
    for name, value in (
        ("width", "128"),
        ("height", "128"),
        ("steps", "20"),
        ("guidance", "2"),
        ("seed", "7"),
    ):
        page.fill(f"#{name}", value)
    page.uncheck("#random_seed")
    options = page.locator("#model option")
    labels = {
        words: options.nth(n).get_attribute("value")
        for n, words in enumerate(options.all_inner_texts())
    }
    page.select_option("#model", next(v for words, v in labels.items() if DEMO in words))
    page.select_option(
        "#other_model", next(v for words, v in labels.items() if "demo-base" in words)
    )
    page.click("summary:has-text('Grid')")
    page.select_option("#y_kind", "words")
    page.fill("#y_values", "cat face, owl, mountain")
    page.click("button.main")
    page.wait_for_selector(".drawing-card .state.done")
    camera.take("studio-draw")
    camera.take("studio-drawing", at="#drawings")
    page.click("nav >> text=Models")
    page.wait_for_selector(".model")
    camera.take("studio-models")
    throw_away(camera)
    page.click(f".model:has-text('{DEMO}')")
    page.click("button:has-text('Inspect')")
    page.wait_for_selector("#inspection td")
    camera.take("studio-model")
    page.goto(page.url.partition("?")[0] + "/delete")
    page.wait_for_selector("h1:has-text('Delete')")
    camera.take("studio-delete")


def throw_away(camera: Camera) -> None:
    """Photograph a deleted model, and how it is restored."""
    page = camera.page
    page.click(f".model:has-text('{OWN}')")
    page.click("a:has-text('Delete')")
    page.check("input[name=sure]")
    page.click("button:has-text('Delete')")
    page.wait_for_selector(".deleted")
    camera.take("studio-deleted", at="#trash-title")
    page.click(".deleted a")
    page.wait_for_selector("#purge-title")
    camera.take("studio-purge")
    page.click("button:has-text('Restore')")
    page.wait_for_url("**/models/runs/**")
    page.click("nav >> text=Models")
    page.wait_for_selector(".model")


def in_guide() -> frozenset[str]:
    """Return the names of the screenshots that the guide shows."""
    guide = (ROOT / "docs" / "guide" / "studio.md").read_text(encoding="utf-8")
    return frozenset(re.findall(r"\(\.\./images/(studio-[\w-]+)\.png\)", guide))


def at(address: str, path: str) -> str:
    """Return the address of a page of the studio."""
    return re.sub(r"\?.*", path, address)


def photograph(browser: Browser, workplace: Path, out: Path, only: frozenset[str] | None) -> None:
    """Visit all pages and photograph them."""
    page = browser.new_context(viewport=SIZE).new_page()
    page.set_default_timeout(PATIENCE_MS)
    camera = Camera(page, out, workplace, only)
    first_start(camera, workplace)
    place = prepare(workplace)
    try:
        with served(workplace) as address:
            page.goto(address)
            page.wait_for_selector("nav")
            data_pages(camera, place, address)
            new_run(camera, place)
            finished_runs(camera)
            queue_draw_and_models(camera)
    finally:
        DrawFolder(place / "runs" / HOME / "drawings").stop_worker()
        tasks = Tasks(place / "runs" / HOME / "tasks")
        for task in tasks.all():
            tasks.stop(task)  # after a failure, some still run


def main() -> None:
    """Parse the arguments and take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workplace", type=Path, help="the studio's folder; kept for later calls")
    parser.add_argument("--out", type=Path, help="default: docs/images")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", action="append", metavar="NAME")
    which.add_argument("--all", action="store_true", help="whole pages, in all looks")
    given = parser.parse_args()
    if given.all and given.out is None:
        parser.error("--all needs --out: docs/images holds only the guide's screenshots")
    out = given.out or ROOT / "docs" / "images"
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        parser.exit(1, "Chromium was not found on the PATH.\n")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as passing, sync_playwright() as programs:
        workplace = (given.workplace or Path(passing)).absolute()
        workplace.mkdir(parents=True, exist_ok=True)
        browser = programs.chromium.launch(executable_path=program, args=["--no-sandbox"])
        only = None if given.all else frozenset(given.only or in_guide())
        photograph(browser, workplace, out, only)
        browser.close()


if __name__ == "__main__":
    main()
