"""`start.py studio` for a newcomer: no path is typed."""

import importlib.util
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsing import ask_for_a_drawing, compare_all, draw, end_queue, needs_browser
from support.warm import running

from impasto.runs import RunDirectory
from impasto.runs.drawings import DrawFolder
from impasto.studio.folders import HOME
from impasto.studio.tasks import Tasks

pytestmark = needs_browser
ROOT = Path(__file__).parents[2]
FORKED = ("doctor", "plan-worker")
"""Commands that are forked with PyTorch imported; the others are fresh interpreters, as a
user's."""

PATIENCE_MS = 600_000  # the demo is trained on a busy machine


def words_of_start(*given):
    """Return the arguments that `start.py` passes to the program."""
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    return start.completed([*given])


@contextmanager
def started(folder):
    """Run the studio as `start.py studio` does; yield the address that it opened."""
    noted = folder / "opened.txt"
    note = folder / "note.py"
    note.write_text(
        "import pathlib, sys\n"
        f"pathlib.Path({str(noted)!r}).write_text(sys.argv[1], encoding='utf-8')\n",
        encoding="utf-8",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "impasto", *words_of_start("studio")],
        cwd=folder,
        env={**running.with_forks(only=FORKED), "BROWSER": f"{sys.executable} {note} %s"},
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while not (noted.exists() and noted.read_text(encoding="utf-8")):
            assert process.poll() is None, "the studio has ended"
            assert time.monotonic() < until
            time.sleep(0.05)
        yield noted.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def place(tmp_path):
    """The folder to start in; all processes started there are ended with the test."""
    yield tmp_path / "impasto-studio"
    runs = tmp_path / "impasto-studio" / "runs"
    tasks = Tasks(runs / HOME / "tasks")
    for task in tasks.all():
        tasks.stop(task)
    end_queue(tmp_path / "impasto-studio" / "queue")
    drawings = DrawFolder(runs / HOME / "drawings")
    drawings.path.mkdir(parents=True, exist_ok=True)
    drawings.stop_worker()


def choose(page, field, ending):
    """Choose an item of a list, as a user does who opens it."""
    values = page.locator(f"{field} option").evaluate_all("all => all.map(one => one.value)")
    (value,) = (value for value in values if value.endswith(ending))
    page.select_option(field, value)


def settings_for_a_style(page):
    """Fill in settings for a style, with the offered images and model of the demo."""
    page.click("nav >> text=New run")
    page.check("input[value=style]")
    choose(page, "#data-of", str(Path("data") / "demo"))
    choose(page, "#model-of", "demo-base")
    page.click("text=Make settings >> nth=0")


def test_a_newcomer_is_offered_the_demo_its_images_and_its_model(tmp_path, place, page, complaints):
    with started(tmp_path) as address:
        page.goto(address)
        page.wait_for_selector("button:has-text('Train the demo')")
        page.click("nav >> text=Data")
        page.wait_for_selector(".dataset:has-text('demo'):has-text('100 images')")
        page.click("nav >> text=Models")
        page.wait_for_selector(".model:has-text('demo-base')")
        settings_for_a_style(page)
        page.wait_for_selector("#f-output_dir")
        assert page.input_value("#f-dataset-image_dir").endswith("demo")
    assert complaints == []
    assert (place / "data" / "demo" / "0000-sun.webp").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_newcomer_trains_compares_draws_and_keeps_by_clicks(tmp_path, place, page, complaints):
    """The demo is trained, then a new run on its images; both are compared and drawn with."""
    page.set_default_timeout(PATIENCE_MS)
    with started(tmp_path) as address:
        page.goto(address)
        page.click("button:has-text('Train the demo')")
        page.click("a:has-text('Show the run impasto-demo')")
        page.wait_for_selector(".curve canvas")

        settings_for_a_style(page)
        page.fill("#f-training-max_steps", "3")
        page.fill("#f-output_dir", "my-style")
        page.wait_for_selector("#panel .plan dd:text-matches('^3; ')")
        page.click("text=Add to the queue")
        page.wait_for_selector("#answer :text('Added to the queue as job 1')")
        page.click("nav >> text=Runs")
        page.click(".run:has-text('impasto-demo')")
        page.wait_for_selector("#state .state.finished")
        page.click("nav >> text=Queue")
        page.click("button:has-text('Start working')")
        page.wait_for_selector(".queue-job .state.done")
        own = RunDirectory(place / "runs" / "my-style")
        assert own.state().step == 3

        compare_all(page)

        page.click("nav >> text=Runs")
        page.click(".run:has-text('impasto-demo')")
        page.click("text=Draw with it")
        ask_for_a_drawing(page, "a sun")
        draw(page)

        page.click("nav >> text=Models")
        page.click(".model:has-text('my-style') >> nth=0")
        page.click("button:has-text('Inspect')")
        page.wait_for_selector("td:has-text('a Stable Diffusion checkpoint')")
    assert [text for text in complaints if "/thumbnails/" not in text] == []
