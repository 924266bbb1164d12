"""Every page of the studio in every state, checked by axe-core; skipped without Chromium."""

import json

import pytest
import tomli_w
from browsing import at, check_all_looks, needs_browser, opened_page, served
from runs_made import made_run
from studio_world import ROUTES, a_task, address, make_world

from impasto.locks import FolderLock
from impasto.owners import ProcessIdentity, current_process
from impasto.runs.queue import Queue
from impasto.studio.drafts import Drafts
from impasto.studio.folders import HOME, Folders, address_of
from impasto.studio.models import find_model

pytestmark = needs_browser

GONE = ProcessIdentity(2**30, 1, current_process().machine).token
"""A process that has ended."""

NO_PAGES = {
    "GET /new", "GET /parts/runs", "GET /parts/machine", "GET /parts/queue", "GET /compare/numbers",
    "GET /new/{draft}/waiting", "GET /new/{draft}/plan", "GET /new/{draft}/started/part",
    "GET /tasks/{task}/part", "GET /draw/{drawing}/part", "GET /draw/{drawing}/images/{file}",
    "GET /models/{root}/{name}/inspection", "GET /models/{root}/{name}/publish/{upload}/part",
    "GET /static/{asset}",
    *(f"GET /runs/{{run}}/{part}" for part in (
        "curves", "learning", "images", "stream", "report", "samples", "samples/{step}/{file}",
    )),
    *(f"GET /data/{{dataset}}/{part}" for part in (
        "thumbnails/{image}", "files/{image}", "report", "progress/{verb}", "captions/tags",
        "captions/edits", "captions/try/{tried}/part",
        *(f"images/{{image}}/{part}" for part in ("bucket", "mask", "showings")),
    )),
}  # fmt: skip
"""Parts of pages, files, streams and redirects: they are not pages."""

PAGES = [key for key in ROUTES if key.startswith("GET ") and key not in NO_PAGES]
WANTED = {
    "GET /runs/{run}": ".curve canvas",
    "GET /data/{dataset}/images/{image}": "main:has(#stage.loaded) #bucket:has-text('Bucket')",
    "GET /queue": "#job-3 .state.paused",
    "GET /models": "text=a_model_with_a_very_long_name",
}
"""Selectors to wait for on pages filled by scripts, and long content that tries their width."""

LONG_NAME = "a_model_with_a_very_long_name_that_has_no_place_to_break.safetensors"


@pytest.fixture
def place(tmp_path):
    for name in ("runs", "data", "models"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def world(place):
    """One item of each kind, and running work: this process stands for all of it."""
    folders = Folders([place / "runs"], [place / "data"], [place / "models"])
    home = place / "runs" / HOME
    names = make_world(folders, home, place / "queue")
    busy = at_work(home, "20260101-000000-00aaaa")
    drafts = Drafts(home / "drafts")
    waiting, starting = drafts.create(goal={}, task=busy), drafts.create({"x": "y"}, task=busy)
    starting.note(run=str(place / "runs" / "not-yet"))
    run = place / "runs" / "busy"
    run.mkdir()
    (run / "config.toml").write_text("", encoding="utf-8")
    alive = {"phase": "training", "step": 3, "total_steps": 9, "process": current_process().token}
    (run / "status.json").write_text(json.dumps(alive), encoding="utf-8")
    model = find_model(folders, "models", names["name"])
    (home / "models").mkdir()
    found = {"Model": {"what it is": "a Stable Diffusion checkpoint"}, "U-Net": {"values": "5 M"}}
    (home / "models" / f"{model.key}.json").write_text(json.dumps(found), encoding="utf-8")
    said = {"kind": "tagger", "model": "owner/name", "setting": "0.5", "words": {"a.png": "cat"}}
    failed = {"kind": "captioner", "model": "owner/other", "setting": "", "error": "is not there"}
    tried = {"images": ["a.png"], "models": [said, failed]}
    (home / "tried").mkdir()
    (home / "tried" / f"{names['tried']}.json").write_text(json.dumps(tried), encoding="utf-8")
    dead = made_run(
        place / "runs" / "killed", losses=[(1, 0.5)], phase="training", step=3, process=GONE
    )
    refused = failed_upload(home, model)
    (place / "models" / LONG_NAME).write_bytes(b"x")
    for title in ('it\'s "odd" ' + "long " * 30, "cow"):
        settings = tomli_w.dumps({"output_dir": str(place / "runs" / "x" / title)})
        Queue(place / "queue").add(settings, title, place, paused=title == "cow")
    with FolderLock(run, "training", lambda holder: None):
        yield {
            **names, "busy": busy, "waiting": waiting.name, "starting": starting.name,
            "running": address_of(folders.runs, run), "killed": address_of(folders.runs, dead.path),
            "model": model.address, "refused": refused,
            "long": find_model(
                folders, "models", address_of(folders.models, place / "models" / LONG_NAME)
            ).address,
        }  # fmt: skip


def failed_upload(home, model):
    """Create an upload whose card could not be written; return its name."""
    task = a_task(home)
    lines = [
        {"kind": "begin", "process": GONE},
        {"kind": "error", "text": "The token was refused by the Hub: " + "a" * 80},
        {"kind": "ended", "code": 5},
    ]
    text = "".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines)
    (home / "tasks" / task / "events.jsonl").write_text(text, encoding="utf-8")
    (home / "tasks" / task / "terminal.log").write_text("Error: " + "b" * 200, encoding="utf-8")
    upload = home / "publish" / ("1" * 16)
    upload.mkdir()
    asked = {"words": ["publish", str(model.path)], "task": task, "model": model.key}
    (upload / "request.json").write_text(json.dumps(asked), encoding="utf-8")
    return {"upload": upload.name, "task": task}


def at_work(home, name):
    """Create a task that is running; return its name."""
    path = home / "tasks" / name
    (home / "tasks" / a_task(home)).rename(path)
    about = json.loads((path / "task.json").read_text(encoding="utf-8"))
    about["process"] = current_process().token
    (path / "task.json").write_text(json.dumps(about), encoding="utf-8")
    lines = [
        {"kind": "begin", "process": current_process().token},
        {"kind": "warning", "text": "the image is small"},
        {"kind": "stage", "text": "Tagging", "done": 3, "total": 9, "unit": "images"},
    ]
    text = "".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines)
    (path / "events.jsonl").write_text(text, encoding="utf-8")
    return name


def states(world):
    """Return the addresses of pages in states that their plain addresses do not show."""
    data = f"/data/{world['dataset']}"
    return {
        "a new run": ("/new", "#goal-title"),
        "a run at work": (f"/runs/{world['running']}", "button:has-text('Stop now')"),
        "a task at work": (f"/tasks/{world['busy']}", "progress"),
        "settings that are being made": (f"/new/{world['waiting']}", ".state.working"),
        "a run that was killed": (f"/runs/{world['killed']}", "button:has-text('Resume'), .killed"),
        "a card that was not made": (
            f"{world['model']}/publish/{world['refused']['upload']}",
            "text=The token was refused",
        ),
        "a publishing that failed": (f"/tasks/{world['refused']['task']}", ".state.failed"),
        "a run that begins": (f"/new/{world['starting']}/started", ".state.working"),
        "one caption": (f"{data}/captions?image={world['image']}", "#text"),
        "captions that an edit waits for": (f"{data}/captions?task={world['busy']}", ".working"),
        "what models said": (f"{data}/captions/try?tried={world['tried']}", ".tried tbody tr"),
        "runs that are compared": (
            f"/compare?runs={world['run']}&runs={world['killed']}",
            "#numbers table",
        ),
        "a model of a long name": (world["long"], "h1"),
        "deleting it": (f"{world['long']}/delete", "input[name=sure]"),
        "a filter without images": (f"{data}?words=zebra", "text=No image matches these filters"),
        "what an address names is gone": ("/tasks/x", "text=Not possible"),
    }


def look(page, address, path, wanted="h1"):
    page.goto(at(address, path))
    page.wait_for_selector(wanted)
    for details in page.query_selector_all("details:not([open]) > summary"):
        details.click()
    try:
        check_all_looks(page)
    except AssertionError as error:
        raise AssertionError(f"{path}: {error}") from error


def test_no_page_has_a_serious_fault_for_anybody(place, world, browser):
    """In light, in dark and at 400 pixels, with all collapsible parts open."""
    options = ("--data", place / "data", "--models", place / "models", "--queue", place / "queue")
    with served(place / "runs", *options) as (printed, _), opened_page(browser) as page:
        page.goto(printed)
        page.wait_for_selector("nav")
        for key in PAGES:
            look(page, printed, address(key, world), WANTED.get(key, "h1"))
        for path, wanted in states(world).values():
            look(page, printed, path, wanted)
        refuse_a_job(page, printed)
        refuse_uploads(page, printed, world, place)


def refuse_a_job(page, printed):
    page.goto(at(printed, "queue"))
    page.fill("#text", "x =")
    page.click("button:has-text('Add to the queue')")
    page.wait_for_selector(".fault")
    check_all_looks(page)


def refuse_uploads(page, printed, world, place):
    """Upload a file that is not an image, through the page's script and through a plain form."""
    bad = place / "no image.png"
    bad.write_text("<html>", encoding="utf-8")
    page.goto(at(printed, f"/data/{world['dataset']}"))
    page.set_input_files("#files", bad)
    page.click("text=Add them")
    page.wait_for_selector("#uploaded .refused")
    check_all_looks(page)
    page.evaluate(
        """() => {
            const form = document.getElementById("upload"), data = new DataTransfer();
            data.items.add(new File(["<html>"], "no image.png"));
            form.files.files = data.files;
            form.submit(); // which tells no script
        }"""
    )
    page.wait_for_selector("h1 ~ .outcomes .refused")
    check_all_looks(page)
