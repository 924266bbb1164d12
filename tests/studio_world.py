"""A studio with one item of each kind, and the table of its routes, for tests of all pages."""

import io
import json
import re
from dataclasses import dataclass, field

from PIL import Image
from runs_made import made_run

from impasto import temporary_names
from impasto.runs.draw_requests import DrawRequest, ImageSettings
from impasto.runs.drawings import DrawFolder
from impasto.runs.queue import Queue
from impasto.studio.drafts import Drafts
from impasto.studio.folders import address_of
from impasto.studio.image_trash import put_away
from impasto.studio.models import find_model
from impasto.studio.trash import delete, given_folders


@dataclass(frozen=True)
class Case:
    """The request to a route, and the expected response.

    Attributes:
        status: The status when everything that the address names exists.
        form: The form fields to send; texts in braces are names in the world.
        query: The query string of the address.
        files: The files to send.
        missing: The status when the names in the address do not exist; None if it contains no
            names.
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
    "POST /runs/{run}/ask/{command}": Case(409),  # no process trains it
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
    "GET /new/{draft}/started": Case(404),  # no run was started from it
    "GET /new/{draft}/started/part": Case(404),
    "GET /data": Case(),
    "POST /data": Case(303, {"name": "dogs"}),
    f"GET {WORDS}": Case(),
    f"GET {WORDS}/thumbnails/{{image}}": Case(),
    f"POST {WORDS}/read": Case(303),
    f"GET {WORDS}/health": Case(404),  # no report has been written
    f"GET {WORDS}/report": Case(),
    f"POST {WORDS}/report": Case(303),
    f"GET {WORDS}/progress/{{verb}}": Case(),
    f"POST {WORDS}/upload": Case(200, files={"files": ("new.png", png())}),
    f"POST {WORDS}/trash": Case(303, {"image": "{image}"}),
    f"POST {WORDS}/trash/{{entry}}/restore": Case(303),
    f"POST {WORDS}/trash/{{entry}}/remove": Case(303),
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
    f"POST {CAPTIONS}/apply": Case(410, {"token": "0" * 32}),  # no stored preview
    f"POST {CAPTIONS}/set": Case(409, {"image": "{image}", "text": "a dog", "mark": "old"}),
    f"POST {CAPTIONS}/undo": Case(409, {"edit": "1", "at": "1"}),  # no such edit
    f"GET {CAPTIONS}/try": Case(),
    f"POST {CAPTIONS}/try": Case(303, {"kind-1": "tagger", "model-1": "owner/name"}),
    f"GET {CAPTIONS}/try/{{tried}}/part": Case(),
    f"POST {CAPTIONS}/try/all": Case(
        303, {"kind-0": "tagger", "model-0": "owner/name", "existing": "missing"}
    ),
    "GET /queue": Case(),
    "POST /queue/add": Case(422, {"text": "x ="}),
    "POST /queue/start": Case(303, {"device": "0"}),
    "POST /queue/stop/{device}": Case(409, missing=409),  # no worker is running
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
    "GET /models/deleted/{deleted}": Case(),
    "POST /models/deleted/{deleted}/restore": Case(303),
    "POST /models/deleted/{deleted}/purge": Case(303, {"sure": "yes"}),
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
    "GET /static/{asset}": Case(),
}
"""The request to each route; a new route needs a row."""

_NAME = re.compile(r"\{(.*?)\}")


def address(key, names):
    """Return the address of a route of the table, with names filled in for braces."""
    _, path = key.split(" ")
    if "/draw/" in path:
        names = {**names, "file": "0000-7.png"}
    return named(path + ROUTES[key].query, names)


def named(text, names):
    """Return a text with names filled in for braces."""
    return _NAME.sub(lambda found: names[found[1]], text)


def make_world(folders, home, queue):
    """Create one item of each kind that addresses name; return their names by placeholder."""
    runs, data, models = folders.runs[0], folders.data[0], folders.models[0]
    cats, masks = data / "cats", data / "cats-masks"
    for new in (cats, masks):
        new.mkdir(parents=True)
    Image.new("RGB", (300, 200), (200, 90, 30)).save(cats / "a.png")
    (cats / "a.txt").write_text("a cat", encoding="utf-8")
    Image.new("L", (300, 200)).save(masks / "a.png")
    Image.new("RGB", (300, 200)).save(cats / "gone.png")
    entry = put_away(cats, [cats / "gone.png"], folders.data)
    (cats / ".impasto" / "studio").mkdir(parents=True)
    (cats / ".impasto" / "studio" / "report.html").write_text("<html>", encoding="utf-8")
    gone = models / "gone.safetensors"
    gone.write_bytes(b"123")
    gone = delete(find_model(folders, "models", address_of(folders.models, gone)))
    base = models / "base.safetensors"
    base.write_bytes(b"12345")
    run = made_run(
        runs / "dog",
        losses=[(1, 0.5)],
        validation=[(1, 1.0)],
        samples={1: {"000.png": "a ball\nSeed: 1"}},
    )
    machine = {"facts": {"gpus": [], "memory_gib": 8}, "free_memory_gib": 4, "free_disk_gib": 9}
    home.mkdir(parents=True)
    (home / "machine.json").write_text(json.dumps({**machine, "advice": []}), encoding="utf-8")
    task = a_task(home)
    drawing = DrawFolder(home / "drawings").ask(DrawRequest(ImageSettings(str(base), "a")))
    (drawing.path / "0000-7.png").write_bytes(png())
    image = {"file": "0000-7.png", "row": 0, "column": 0, "seed": 7}
    drawing.status_file.write_text(json.dumps({"phase": "done", "done": [image]}), encoding="utf-8")
    job = Queue(queue).add('output_dir = "x"', "dog", runs.parent)
    name = address_of(folders.models, base)
    return {
        "run": address_of(folders.runs, run.path), "step": "1", "file": "000.png",
        "command": "preview", "draft": Drafts(home / "drafts").create(goal={}, task=task).name,
        "dataset": address_of(folders.data, cats), "image": address_of([cats], cats / "a.png"),
        "verb": "list", "tried": "0" * 32, "device": "cpu", "job": str(job.number),
        "change": "pause", "drawing": drawing.path.name, "root": "models", "name": name,
        "upload": an_upload(folders, home, name, task), "task": task, "asset": "run.js",
        "deleted": address_of(given_folders(folders), gone), "entry": entry.name,
    }  # fmt: skip


def a_task(home):
    """Create a failed task, whose process could not be started; return its name."""
    name = temporary_names.dated_name()
    place = home / "tasks" / name
    place.mkdir(parents=True)
    about = {"words": ["inspect", "x"], "title": "Inspect x", "back": "/", "started_at": 1.0}
    (place / "task.json").write_text(json.dumps(about), encoding="utf-8")
    return name


def an_upload(folders, home, name, task):
    """Create a prepared upload of a model with its card; return its name."""
    model = find_model(folders, "models", name)
    upload = home / "publish" / ("0" * 16)
    upload.mkdir(parents=True)
    asked = {"words": ["publish", str(model.path)], "task": task, "model": model.key}
    (upload / "request.json").write_text(json.dumps(asked), encoding="utf-8")
    (upload / "README.md").write_text("# The card", encoding="utf-8")
    sent = {
        "repo_id": "owner/name", "private": False, "license": "mit", "has_token": False,
        "files": [{"name": "README.md", "bytes": 9}], "left_out": [],
    }  # fmt: skip
    (upload / "upload.json").write_text(json.dumps(sent), encoding="utf-8")
    return upload.name
