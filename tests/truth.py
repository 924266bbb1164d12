"""Checks of every studio page against the true state, for tests that kill processes."""

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
"""Attempts at a check, since the state may change between loading a page and reading the truth."""

UNOPENED = ("/stream", "/showings", "/edits", "/runs/{run}/report")
"""Streams that never end, and parts that wait seconds for a separate command."""

ENDED = {"done", "failed", "killed", "stopped"}


@dataclass(frozen=True)
class Place:
    """The folders of a studio in a separate process, with one item of each kind in them.

    Attributes:
        path: The folder that contains them.
        names: The names used in addresses, by placeholder of the table of routes.
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
        """The studio's command-line options beside the folder of runs."""
        models, queue = self.path / "models", self.path / "queue"
        return ("--data", self.data, "--models", models, "--queue", queue)

    @property
    def queue(self):
        return Queue(self.path / "queue")

    @property
    def tasks(self):
        """All tasks, newest first."""
        return Tasks(self.home / "tasks").all()


@contextlib.contextmanager
def opened(place, **more):
    """Run a studio in a separate process; yield a client that has opened it, and the process."""
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
    """Require that every page opens, and that shown states, counts and captions are true."""
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
    """Return the states shown beside the links that start with an address."""
    found = re.findall(rf'href="{address}([\w.-]+)"(.*?)class="state ([\w-]+)"', text, re.S)
    return {name: state for name, _, state in found}


def runs_are_true(client, place):
    """Check the start page, its part, the page of each run, and the page Compare."""
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
    """Check the list of tasks, and the page of each."""
    true = {task.path.name: task.state().state for task in place.tasks}
    assert states_in(client.get("/tasks").text, "/tasks/") == true
    for name, state in true.items():
        text = client.get(f"/tasks/{name}").text
        assert re.search(r'class="state ([\w-]+)"', text)[1] == state, name
        assert ("Stop now" in text) == (state not in ENDED), name


def jobs_are_true(client, place):
    """Check the jobs of the queue and their order."""
    jobs = place.queue.jobs()
    true = [(str(job.number), place.queue.find(job.number).state) for job in jobs]
    for page in ("/queue", "/parts/queue"):
        text = client.get(page).text
        shown = re.findall(r'id="job-(\d+)".*?class="state (\w+)"', text, re.S)
        assert shown == true, page


def captions_are_true(client, place):
    """Check that the shown captions of each dataset are those on the disk."""
    for folder in datasets_of(place):
        text = html.unescape(client.get(f"{address_in(place, folder)}/captions").text)
        for file in folder.glob("*.txt"):
            words = file.read_text(encoding="utf-8").strip()
            assert f'<p class="words">{words}</p>' in text, file.name


def images_are_true(client, place):
    """Check that the galleries show exactly the images on the disk, each of them complete."""
    from PIL import Image

    for folder in datasets_of(place):
        images = [path for path in folder.iterdir() if path.suffix in (".png", ".webp", ".jpg")]
        text = client.get(f"{address_in(place, folder)}?sort=name").text
        assert text.count('class="card"') == len(images), folder.name
        for image in images:
            with Image.open(image) as opened:
                opened.load()


def drafts_are_true(client, place):
    """Check that a form still contains the values typed into it."""
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
