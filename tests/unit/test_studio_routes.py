"""Every route of the studio, by one table: what it answers to whom, and that none is forgotten.

If one failed, a page would answer somebody without the token, or a route would have come that
nobody has thought about.
"""

import io
import json
import re
from dataclasses import dataclass, field

import pytest
from PIL import Image
from runs_made import made_run
from starlette.routing import Mount
from studios import FROM_HERE

from impasto import files
from impasto.runs.draw_requests import DrawRequest, ImageSettings
from impasto.runs.drawings import DrawFolder
from impasto.runs.queue import Queue
from impasto.studio.app import create_app
from impasto.studio.drafts import Drafts
from impasto.studio.folders import address_of
from impasto.studio.models import find_model


@dataclass(frozen=True)
class Case:
    """What a route is asked, and what it has to answer.

    Attributes:
        status: Its status, where all that the address names is there.
        form: Fields that are sent; texts in braces are names of the world.
        query: What the address ends with.
        files: Files that are sent.
        missing: The status where nothing has the names in the address; None where it has none.
    """

    status: int = 200
    form: dict = field(default_factory=dict)
    query: str = ""
    files: dict = field(default_factory=dict)
    missing: int | None = 404


def png():
    out = io.BytesIO()
    Image.new("L", (300, 200), 255).save(out, "PNG")
    return out.getvalue()


DRAWN = {
    "prompt": "a red ball", "negative": "", "seed": "7", "width": "64", "height": "", "steps": "4",
    "guidance": "2.5", "sampler": "euler", "count": "1", "clip_skip": "", "model": "m{name}",
    "other_model": "", "x_kind": "", "x_values": "", "y_kind": "", "y_values": "",
}  # fmt: skip
MODEL, IMAGE, WORDS = "/models/{root}/{name}", "/data/{dataset}/images/{image}", "/data/{dataset}"
CAPTIONS = f"{WORDS}/captions"
ROUTES = {
    "GET /": Case(),
    "GET /parts/runs": Case(),
    "GET /parts/machine": Case(),
    "POST /demo": Case(303),
    "GET /runs/{run}": Case(),
    "GET /runs/{run}/curves": Case(),
    "GET /runs/{run}/learning": Case(),
    "GET /runs/{run}/images": Case(),
    "GET /runs/{run}/stream": Case(),
    "GET /runs/{run}/report": Case(),
    "GET /runs/{run}/samples": Case(),
    "GET /runs/{run}/samples/{step}/{file}": Case(),
    "POST /runs/{run}/ask/{command}": Case(409),  # nobody trains it
    "POST /runs/{run}/resume": Case(303),
    "GET /new": Case(query="?from={run}", status=303, missing=None),
    "POST /new/goal": Case(422, {"goal": "style"}),
    "POST /new/command": Case(303, {"command": "python fine_tune.py"}),
    "POST /new/blank": Case(303),
    "GET /new/{draft}": Case(),
    "GET /new/{draft}/waiting": Case(),
    "POST /new/{draft}/check": Case(200, {"training.max_steps": "many"}),
    "GET /new/{draft}/plan": Case(),
    "POST /new/{draft}/save": Case(200, {"training.max_steps": "many"}),
    "POST /new/{draft}/start": Case(200, {"training.max_steps": "many"}),
    "POST /new/{draft}/queue": Case(200, {"training.max_steps": "many"}),
    "GET /new/{draft}/started": Case(404),  # nothing was started from it
    "GET /new/{draft}/started/part": Case(404),
    "GET /data": Case(),
    "POST /data": Case(303, {"name": "dogs"}),
    f"GET {WORDS}": Case(),
    f"GET {WORDS}/thumbnails/{{image}}": Case(),
    f"POST {WORDS}/read": Case(303),
    f"GET {WORDS}/report": Case(),
    f"POST {WORDS}/report": Case(303),
    f"GET {WORDS}/progress/{{verb}}": Case(),
    f"POST {WORDS}/upload": Case(200, files={"files": ("new.png", png())}),
    f"GET {WORDS}/files/{{image}}": Case(),
    f"GET {IMAGE}": Case(),
    f"GET {IMAGE}/bucket": Case(query="?x=0&y=0&width=64&height=64&resolution=512"),
    f"POST {IMAGE}/crop": Case(303, {"x": "0", "y": "0", "width": "64", "height": "64"}),
    f"GET {IMAGE}/mask": Case(),
    f"POST {IMAGE}/mask": Case(200, files={"mask": ("mask.png", png())}),
    f"POST {IMAGE}/mask/model": Case(200, {"model": "owner/name"}),
    f"GET {IMAGE}/showings": Case(),
    f"GET {CAPTIONS}": Case(),
    f"GET {CAPTIONS}/tags": Case(),
    f"GET {CAPTIONS}/edits": Case(),
    f"POST {CAPTIONS}/preview": Case(
        200, {"which": "filter", "do": "add", "what": "x", "by": "", "at": "", "text": ""}
    ),
    f"POST {CAPTIONS}/apply": Case(410, {"token": "0" * 32}),  # no preview is kept
    f"POST {CAPTIONS}/set": Case(409, {"image": "{image}", "text": "a dog", "mark": "old"}),
    f"POST {CAPTIONS}/undo": Case(409, {"edit": "1", "at": "1"}),  # there is no edit
    f"GET {CAPTIONS}/try": Case(),
    f"POST {CAPTIONS}/try": Case(303, {"kind-1": "tagger", "model-1": "owner/name"}),
    f"GET {CAPTIONS}/try/{{tried}}/part": Case(),
    f"POST {CAPTIONS}/try/all": Case(
        303, {"kind-0": "tagger", "model-0": "owner/name", "existing": "missing"}
    ),
    "GET /queue": Case(),
    "POST /queue/add": Case(422, {"text": "x ="}),
    "POST /queue/start": Case(303, {"device": "0"}),
    "POST /queue/stop/{device}": Case(409, missing=409),  # nobody works on it
    "POST /queue/jobs/{job}/{change}": Case(),
    "GET /parts/queue": Case(),
    "GET /compare": Case(query="?runs={run}", missing=None),
    "GET /compare/numbers": Case(query="?runs={run}", missing=None),
    "GET /draw": Case(),
    "POST /draw": Case(303, DRAWN),
    "POST /draw/worker/start": Case(303),
    "POST /draw/worker/stop": Case(303),
    "GET /draw/{drawing}": Case(),
    "GET /draw/{drawing}/part": Case(),
    "GET /draw/{drawing}/images/{file}": Case(),
    "POST /draw/{drawing}/cancel": Case(),
    "POST /draw/{drawing}/delete": Case(303),
    "GET /models": Case(),
    "POST /models/download": Case(303, {"id": "owner/name", "folder": "0"}),
    "POST /models/empty-trash": Case(303, {"sure": "yes"}),
    f"GET {MODEL}": Case(),
    f"GET {MODEL}/inspection": Case(),
    f"POST {MODEL}/inspect": Case(303),
    f"POST {MODEL}/convert": Case(303, {"name": "half", "folder": "0", "to": "safetensors"}),
    f"POST {MODEL}/publish": Case(303, {"repo": "owner/name", "license": "mit"}),
    f"GET {MODEL}/publish/{{upload}}": Case(),
    f"GET {MODEL}/publish/{{upload}}/part": Case(),
    f"POST {MODEL}/publish/{{upload}}": Case(303),
    f"GET {MODEL}/delete": Case(),
    f"POST {MODEL}/delete": Case(303, {"sure": "yes"}),
    "GET /tasks": Case(),
    "GET /tasks/{task}": Case(),
    "GET /tasks/{task}/part": Case(),
    "POST /tasks/{task}/stop": Case(),
}
"""What each route is asked; a new one needs a row."""

NOWHERE = re.compile(r"\{.*?\}")


NAMING = [key for key, case in ROUTES.items() if "{" in key and case.missing]
GIVEN = frozenset({"device", "verb", "root", "step", "command", "change", "tried"})
"""What addresses have beside names of what is kept on the disk."""


@pytest.fixture
def world(studio, folder, monkeypatch):
    """One of everything that addresses name; returns the names by what stands in the routes."""
    place = folder.parent
    cats, masks = place / "data" / "cats", place / "data" / "cats-masks"
    for new in (cats, masks):
        new.mkdir()
    Image.new("RGB", (300, 200), (200, 90, 30)).save(cats / "a.png")
    (cats / "a.txt").write_text("a cat", encoding="utf-8")
    Image.new("L", (300, 200)).save(masks / "a.png")
    (cats / ".impasto" / "studio").mkdir(parents=True)
    (cats / ".impasto" / "studio" / "report.html").write_text("<html>", encoding="utf-8")
    base = place / "models" / "base.safetensors"
    base.write_bytes(b"12345")
    run = made_run(
        folder / "dog",
        losses=[(1, 0.5)],
        validation=[(1, 1.0)],
        samples={1: {"000.png": "a ball\nSeed: 1"}},
    )
    machine = {"facts": {"gpus": [], "memory_gib": 8}, "free_memory_gib": 4, "free_disk_gib": 9}
    studio.home.mkdir()
    (studio.home / "machine.json").write_text(json.dumps({**machine, "advice": []}), "utf-8")
    task = a_task(studio)
    monkeypatch.setattr(studio.tasks, "start", lambda *_, **__: task)
    drafts = Drafts(studio.home / "drafts")
    drawing = DrawFolder(studio.home / "drawings").ask(DrawRequest(ImageSettings(str(base), "a")))
    (drawing.path / "0000-7.png").write_bytes(png())
    image = {"file": "0000-7.png", "row": 0, "column": 0, "seed": 7}
    drawing.status_file.write_text(json.dumps({"phase": "done", "done": [image]}), encoding="utf-8")
    job = Queue(studio.queue).add('output_dir = "x"', "dog", place)
    models, root = studio.folders.models, "models"
    name = address_of(models, base)
    model = find_model(studio.folders, root, name)
    upload = studio.home / "publish" / ("0" * 16)
    upload.mkdir(parents=True)
    asked = {"words": ["publish", str(base)], "task": task, "model": model.key}
    (upload / "request.json").write_text(json.dumps(asked), encoding="utf-8")
    return {
        "run": studio.folders.name_of(run), "step": "1", "file": "000.png", "command": "preview",
        "draft": drafts.create(goal={}, task=task).name,
        "dataset": address_of(studio.folders.data, cats),
        "image": address_of([cats], cats / "a.png"), "verb": "list", "tried": "0" * 32,
        "device": "cpu", "job": str(job.number), "change": "pause", "drawing": drawing.path.name,
        "root": root, "name": name, "upload": upload.name, "task": task,
    }  # fmt: skip


def a_task(studio):
    """The name of a task that has failed: its process could not be begun."""
    name = files.dated_name()
    place = studio.home / "tasks" / name
    place.mkdir(parents=True)
    about = {"words": ["inspect", "x"], "title": "Inspect x", "back": "/", "started_at": 1.0}
    (place / "task.json").write_text(json.dumps(about), encoding="utf-8")
    return name


def routes_of(studio, access):
    return {
        f"{method} {route.path}"
        for route in create_app(studio, access).routes
        if not isinstance(route, Mount)
        for method in route.methods - {"HEAD"}
    }


def asked(client, key, names, **more):
    """Send what the table says of a route, with names in the place of braces."""
    method, path = key.split(" ")
    case = ROUTES[key]

    def named(text):
        return NOWHERE.sub(lambda found: names[found[0][1:-1]], text)

    if "/draw/" in path:
        names = {**names, "file": "0000-7.png"}
    content = {"data": {k: named(v) for k, v in case.form.items()}, "files": case.files or None}
    address = named(path) + named(case.query)
    given = content if method == "POST" else {}
    return client.request(
        method, address, headers=FROM_HERE, follow_redirects=False, **given, **more
    )


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_every_route_stands_in_the_table(studio, access):
    assert routes_of(studio, access) == set(ROUTES)


@pytest.mark.parametrize("key", ROUTES)
def test_a_route_answers_who_has_the_token(client, studio, world, key):
    studio.closing.set()  # a stream ends at once
    answer = asked(client, key, world)
    assert answer.status_code == ROUTES[key].status, answer.text[-600:]


@pytest.mark.parametrize("key", ROUTES)
def test_a_route_refuses_who_has_none_and_does_nothing(stranger, world, folder, key):
    before = files_of(folder.parent)
    answer = asked(stranger, key, world)
    assert answer.status_code == 403
    assert "dog" not in answer.text
    assert "cats" not in answer.text
    assert files_of(folder.parent) == before


@pytest.mark.parametrize("key", NAMING)
def test_a_route_says_that_what_its_address_names_is_not_there(client, studio, world, key):
    studio.closing.set()
    nowhere = {k: v if k in GIVEN else "0.bWlzc2luZw" for k, v in world.items()}
    answer = asked(client, key, nowhere)
    assert answer.status_code == ROUTES[key].missing
