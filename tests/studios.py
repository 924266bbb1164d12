"""Studios without a port, for tests: called through Starlette's client."""

import re
import sys

import pytest
from starlette.testclient import TestClient
from support.warm import running

from impasto.studio.app import create_app
from impasto.studio.core import Studio
from impasto.studio.folders import Folders
from impasto.studio.guard import Access

PORT = 7870
HOME = f"http://127.0.0.1:{PORT}"
FROM_HERE = {"sec-fetch-site": "same-origin"}
"""The header of requests from a page of the studio, which POST requires."""


class Started:
    """A replacement for run processes that records them and starts none."""

    def __init__(self):
        self.words, self.working = [], {}

    def start(self, words, run, folder=""):
        self.words.append([str(word) for word in words])

    def is_starting(self, run):
        return run in self.working

    def pid_of(self, run):
        return self.working.get(run)

    def failure_of(self, run):
        return ""


def listed_in_trash(client):
    """Return the form fields that empty the trash: the names listed on its page."""
    return re.search(r'name="deleted" value="(.*?)"', client.get("/models").text)[1]


@pytest.fixture
def folder(tmp_path):
    """The studio's folder of runs; its folders of images and models are beside it."""
    for name in ("runs", "data", "models"):
        (tmp_path / name).mkdir()
    return tmp_path / "runs"


@pytest.fixture
def studio(folder, monkeypatch):
    """A studio in this process; the commands that it starts are forked where possible."""
    monkeypatch.setattr(sys, "executable", running.stand_in() or sys.executable)
    return Studio(
        Folders([folder], [folder.parent / "data"], [folder.parent / "models"]),
        folder / ".home",
        folder / "queue",
        Started(),
        look_every_s=0,
        plans_ahead=False,
    )


@pytest.fixture
def access():
    return Access(PORT)


@pytest.fixture
def stranger(studio, access):
    return TestClient(create_app(studio, access), base_url=HOME)


@pytest.fixture
def client(studio, access):
    known = TestClient(create_app(studio, access), base_url=HOME)
    known.cookies.set(access.cookie, access.cookie_value)
    return known
