"""What every page of a studio says, held against what is true: for tests that kill things."""

import contextlib
import html
import re
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
from browsing import served
from studio_world import ROUTES, address, make_world
from studios import FROM_HERE

from impasto.runs import RunDirectory
from impasto.runs.listing import find_runs
from impasto.runs.queue import Queue
from impasto.studio.drafts import Drafts
from impasto.studio.folders import HOME, Folders, address_of
from impasto.studio.tasks import Tasks

LOOKS = 6
"""Looks at what goes on, which may change between what a page says and what is asked after it."""

UNOPENED = ("/stream", "/showings", "/edits", "/runs/{run}/report")
"""What never ends, and parts that wait for a command of their own, seconds each."""

ENDED = {"done", "failed", "killed", "stopped"}


@dataclass(frozen=True)
class Place:
    """The folders of a studio in a process of its own, with one of everything in them.

    Attributes:
        path: The folder of all of them.
        names: What addresses name there, as the table of routes calls it.
    """

    path: Path
    names: dict

    @classmethod
    def make(cls, path):
        for name in ("runs", "data", "models"):
            (path / name).mkdir()
        folders = Folders([path / "runs"], [path / "data"], [path / "models"])
        return cls(path, make_world(folders, path / "runs" / HOME, path / "queue"))

    @property
    def runs(self):
        return self.path / "runs"

    @property
    def data(self):
        return self.path / "data"

    @property
    def home(self):
        return self.runs / HOME

    @property
    def options(self):
        """What the studio is started with, beside the folder of runs."""
        models, queue = self.path / "models", self.path / "queue"
        return ("--data", self.data, "--models", models, "--queue", queue)

    @property
    def queue(self):
        return Queue(self.path / "queue")

    @property
    def tasks(self):
        """All tasks, the newest first."""
        return Tasks(self.home / "tasks").all()


@contextlib.contextmanager
def opened(place, **more):
    """A studio in a process of its own, and a client that has opened its address."""
    with served(place.runs, *place.options, **more) as (address, server):
        client = httpx2.Client(
            base_url=re.sub(r"/\?.*", "", address), headers=FROM_HERE, timeout=60
        )
        with client:
            until = time.monotonic() + 60
            while True:
                try:
                    client.get(address)
                    break
                except httpx2.TransportError:
                    assert time.monotonic() < until
                    time.sleep(0.05)
            yield client, server


def check_every_page(client, place):
    """Every page opens, and those that tell a state, a count or words tell the true ones."""
    for key, case in ROUTES.items():
        if key.startswith("GET ") and not key.endswith(UNOPENED):
            answer = client.get(address(key, place.names))
            assert answer.status_code == case.status, f"{key}: {answer.text[-500:]}"
    for check in (runs_are_true, tasks_are_true, jobs_are_true, captions_are_true):
        eventually_true(check, client, place)
    for check in (images_are_true, drafts_are_true):
        check(client, place)


def eventually_true(check, client, place):
    for look in range(LOOKS):
        try:
            return check(client, place)
        except AssertionError:
            if look == LOOKS - 1:
                raise
    return None


def states_in(text, address):
    """The states that a page shows beside the links that begin with an address."""
    found = re.findall(rf'href="{address}([\w.-]+)"(.*?)class="state ([\w-]+)"', text, re.S)
    return {name: state for name, _, state in found}


def runs_are_true(client, place):
    """The start page, its part, the page of each run, and "Compare"."""
    true = {address_of([place.runs], run.path): run for run in find_runs([place.runs])}
    for page in ("/", "/parts/runs"):
        shown = states_in(client.get(page).text, "/runs/")
        assert shown == {name: run.state().state for name, run in true.items()}, page
    compared = client.get("/compare").text
    for name, run in true.items():
        text = client.get(f"/runs/{name}").text
        state = run.state()
        assert re.search(r'class="state ([\w-]+)"', text)[1] == state.state, name
        assert ("Stop after this step" in text) == state.is_alive, name
        of_choice = rf'value="{re.escape(name)}"(?:(?!<li>).)*?class="state {state.state}"'
        assert re.search(of_choice, compared, re.S), f"compare: {name} is {state.state}"


def tasks_are_true(client, place):
    """The list of tasks, and the page of each."""
    true = {task.path.name: task.state().state for task in place.tasks}
    assert states_in(client.get("/tasks").text, "/tasks/") == true
    for name, state in true.items():
        text = client.get(f"/tasks/{name}").text
        assert re.search(r'class="state ([\w-]+)"', text)[1] == state, name
        assert ("Stop now" in text) == (state not in ENDED), name


def jobs_are_true(client, place):
    """The jobs of the queue, in their order."""
    jobs = place.queue.jobs()
    true = [(str(job.number), place.queue.find(job.number).state) for job in jobs]
    for page in ("/queue", "/parts/queue"):
        text = client.get(page).text
        shown = re.findall(r'id="job-(\d+)".*?class="state (\w+)"', text, re.S)
        assert shown == true, page


def captions_are_true(client, place):
    """The captions of each dataset are those on the disk."""
    for folder in datasets_of(place):
        text = html.unescape(client.get(f"{address_in(place, folder)}/captions").text)
        for file in folder.glob("*.txt"):
            words = file.read_text(encoding="utf-8").strip()
            assert f'<p class="words">{words}</p>' in text, file.name


def images_are_true(client, place):
    """The galleries have all images and nothing else; what a name stands for is whole."""
    from PIL import Image

    for folder in datasets_of(place):
        images = [path for path in folder.iterdir() if path.suffix in (".png", ".webp", ".jpg")]
        text = client.get(f"{address_in(place, folder)}?sort=name").text
        assert text.count('class="card"') == len(images), folder.name
        for image in images:
            with Image.open(image) as opened:
                opened.load()


def drafts_are_true(client, place):
    """A form has what was typed into it."""
    drafts = Drafts(place.home / "drafts")
    for path in drafts.folder.iterdir():
        typed = drafts.find(path.name).fields()
        page = html.unescape(client.get(f"/new/{path.name}").text)
        assert all(text in page for text in typed.values() if "\n" not in text), path.name


def datasets_of(place):
    return [path for path in sorted(place.data.iterdir()) if not path.name.endswith("-masks")]


def address_in(place, folder):
    return f"/data/{address_of([place.data], folder)}"


def run_in(place, name):
    return RunDirectory(place.runs / name)
