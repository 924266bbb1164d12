"""A full disk: any request to the studio gives one clear error, and nothing is lost.

A limit on file sizes makes the system refuse every byte that this process and its children write to
a file; the error is of the same kind as a full disk's.
"""

import contextlib
import errno
import html
import io
import re
import signal
import sys

import pytest
from PIL import Image
from studios import FROM_HERE
from test_run_status import GONE, make_run

from impasto.errors import StorageError
from impasto.studio import tasks as tasks_module
from impasto.studio.folders import address_of

if sys.platform == "win32":
    pytest.skip("Windows has no limit on file sizes", allow_module_level=True)

import resource

FULL = "The disk is full"
JOB = """
[model]
path = "owner/name"
[dataset]
image_dir = "cats"
[training]
max_steps = 5
"""


@contextlib.contextmanager
def full_disk(at_most=0):
    """Let no file grow beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def cats(folder):
    cats = folder.parent / "data" / "cats"
    cats.mkdir()
    Image.new("RGB", (300, 200), (200, 90, 30)).save(cats / "a.png")
    (cats / "a.txt").write_text("a cat", encoding="utf-8")
    return cats


@pytest.fixture
def place(studio, cats):
    return f"/data/{address_of(studio.folders.data, cats)}"


@pytest.fixture
def image(place, cats):
    return f"{place}/images/{address_of([cats], cats / 'a.png')}"


def contents(folder):
    """Return every file with its bytes."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def post(client, address, **what):
    return client.post(address, headers=FROM_HERE, follow_redirects=False, **what)


def encoded():
    content = io.BytesIO()
    Image.effect_noise((300, 200), 90).save(content, "PNG")
    return content.getvalue()


def text_of(answer):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def asked(client, studio, what, place, image):
    """Send a request that writes a file."""
    mask = {"files": {"mask": ("m.png", encoded())}, "data": {"masks": "masks"}}
    box = {"x": "10", "y": "10", "width": "96", "height": "96"}
    out = (studio.folders.runs[0] / "it").as_posix()
    job = {"text": f"output_dir = '{out}'\n{JOB}", "name": "a job"}
    model = {"masks": "masks", "model": "owner/name"}
    return {
        "upload": lambda: post(client, f"{place}/upload", files={"files": ("b.png", encoded())}),
        "caption": lambda: post(client, f"{place}/upload", files={"files": ("b.txt", b"x")}),
        "draft": lambda: post(client, "/new/blank"),
        "list": lambda: post(client, f"{place}/read", data={}),
        "report": lambda: post(client, f"{place}/report"),
        "demo": lambda: post(client, "/demo"),
        "crop": lambda: post(client, f"{image}/crop", data=box),
        "mask": lambda: post(client, f"{image}/mask", **mask),
        "mask by a model": lambda: post(client, f"{image}/mask/model", data=model),
        "thumbnail": lambda: client.get(image.replace("/images/", "/thumbnails/")),
        "job": lambda: post(client, "/queue/add", data=job),
    }[what]()


WRITTEN = (
    "upload", "caption", "draft", "list", "report", "demo", "crop", "mask", "mask by a model",
    "thumbnail", "job",
)  # fmt: skip


@pytest.mark.parametrize("what", WRITTEN)
def test_a_full_disk_is_said_once_and_loses_nothing(client, studio, folder, place, image, what):
    before = contents(folder.parent)
    with full_disk():
        answer = asked(client, studio, what, place, image)
    assert answer.status_code >= 400
    assert text_of(answer).count(FULL) == 1, text_of(answer)
    assert "Existing files are unchanged" in text_of(answer)
    assert contents(folder.parent) == before
    assert studio.tasks.all() == []
    for place_of_its_own in ("tasks", "drafts"):  # not even an empty folder is left
        assert list((studio.home / place_of_its_own).glob("*")) == []
    for page in ("/", "/tasks", "/queue", "/new", place):
        assert client.get(page).status_code == 200


def test_what_was_typed_before_the_disk_was_full_is_kept(client, folder, studio):
    draft = post(client, "/new/blank").headers["location"]
    typed = {"output_dir": str(folder / "it"), "training.max_steps": "5"}
    assert post(client, f"{draft}/check", data=typed).status_code == 200
    before = contents(studio.home / "drafts")
    with full_disk():
        answer = post(client, f"{draft}/check", data={**typed, "training.max_steps": "6"})
    assert FULL in text_of(answer)
    assert contents(studio.home / "drafts") == before
    assert 'name="training.max_steps" value="5"' in client.get(draft).text


def test_files_that_came_before_the_disk_was_full_are_named(client, cats, place):
    """A page without scripts sends all files at once: the first ones are saved."""
    large = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(large, "PNG")
    sent = [("files", ("b.txt", b"words")), ("files", ("c.png", large.getvalue()))]
    with full_disk(1000):
        answer = post(client, f"{place}/upload", files=[*sent, ("files", ("d.txt", b"d"))])
    assert answer.status_code == 500
    assert "b.txt : added c.png : The disk is full" in text_of(answer)
    assert sorted(path.name for path in cats.iterdir() if path.is_file()) == [
        "a.png", "a.txt", "b.txt",
    ]  # fmt: skip
    assert list((cats / ".impasto" / "uploads").iterdir()) == []


def test_a_command_to_a_run_is_not_half_given(client, studio, folder):
    run = make_run(folder / "dog", phase="training", process=GONE)
    with run.held() as held:
        held.write_status("training", step=1, total_steps=9)
        with full_disk():
            answer = post(client, f"/runs/{studio.folders.name_of(run)}/ask/save")
    assert FULL in text_of(answer)
    assert not run.commands.is_dir() or list(run.commands.iterdir()) == []


def test_a_task_that_cannot_be_written_down_is_ended(studio, monkeypatch):
    """The disk may fill between two files: no process may run that no page shows."""
    begun, write = [], tasks_module.files.write_json

    def start_apart(*words):
        begun.append(real(*words))
        return begun[0]

    def write_json(path, content):
        if begun:
            raise StorageError("The disk is full.") from OSError(errno.ENOSPC, "full")
        write(path, content)

    real = tasks_module.start_apart
    monkeypatch.setattr(tasks_module, "start_apart", start_apart)
    monkeypatch.setattr(tasks_module.files, "write_json", write_json)
    with pytest.raises(StorageError, match=FULL):
        studio.tasks.start(["draw-worker", studio.home / "drawings"], "Draw")
    assert begun[0].poll() == -signal.SIGKILL
    assert studio.tasks.all() == []
    assert list((studio.home / "tasks").iterdir()) == []
