"""`kill -9` while the studio starts a run, tags, edits, receives a file, changes the queue.

After each kill a new studio opens every page, which must show the true state. Each process is
killed at one moment by default; with `-m slow` also at ten, where commands are fresh interpreters
instead of forks.
"""

import contextlib
import http.client
import io
import re
import shutil
import signal
import sys
import threading
import time
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest
from PIL import Image
from studios import FROM_HERE
from truth import ENDED, Place, address_in, check_every_page, opened, run_in

from impasto.config.fields import fields_of
from impasto.config.setting_files import read_toml
from impasto.demo.recipe import PICTURES, TAGGER
from impasto.temporary_names import partial_files_in

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows"),
]


MOMENTS = [0.2 + 0.7 * number for number in range(10)]
"""Seconds from the start of a command to its kill, with `-m slow`."""


def slowly(moments):
    return [pytest.param(moment, marks=pytest.mark.slow) for moment in moments]


@pytest.fixture
def place(tmp_path):
    """A studio's folders; processes still running in them are ended with the test."""
    made = Place.make(tmp_path)
    yield made
    kill_tasks(made)


def kill_tasks(place):
    """Kill every process that the studio has started, and their children; return how many."""
    killed = 0
    for task in place.tasks:
        process = task.process()
        if task.state().state in ENDED or process is None:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(process.pid)
            for victim in (*found.children(recursive=True), found):
                victim.kill()
                killed += 1
        until = time.monotonic() + 30
        while process.is_running() and time.monotonic() < until:
            time.sleep(0.02)
    return killed


def kill(place, server, victims):
    if victims != "command":
        server.kill()
        server.wait()
    if victims != "server":
        kill_tasks(place)


def copies(place, name, number):
    """Copy the demo's images; return the dataset's folder and its captions."""
    folder = place.data / name
    folder.mkdir()
    for image in sorted(PICTURES.glob("*.webp"))[:number]:
        shutil.copy(image, folder)
        shutil.copy(image.with_suffix(".txt"), folder)
    return folder, captions_in(folder)


def captions_in(folder):
    return {file: file.read_text("utf-8") for file in folder.glob("*.txt")}


@pytest.mark.parametrize("victims", ["server", "command", "both"])
@pytest.mark.parametrize("moment", [None, *slowly(MOMENTS)])
def test_a_start_a_tagging_task_and_an_edit_are_killed(place, run_file, victims, moment):
    """Each caption is the old or the complete new one, and edits can be undone.

    Without a moment, they are killed in the middle of the edit.
    """
    tagged, edited = copies(place, "tagged", 12), copies(place, "edited", 100)
    with opened(place, forked=() if moment is None else ("plan-worker",)) as (client, server):
        start_run(client, place, run_file)
        tag(client, place, tagged[0])
        edit(client, place, edited[0])
        if moment is None:
            eventually(lambda: captions_in(edited[0]) != edited[1])
        else:
            time.sleep(moment)
        kill(place, server, victims)
    with opened(place) as (client, _):
        check_every_page(client, place)
        if victims == "server":
            eventually(lambda: words_of_alive(place) == ["train"], 240)
        assert_whole(*tagged, lambda old, new: new.startswith(f"{old.strip()}, "))
        assert_whole(*edited, lambda old, new: new.strip() == f"{old.strip()}, in ink")
        if victims == "server":
            assert captions_in(edited[0]).items().isdisjoint(edited[1].items()), "it continued"
            return
        assert words_of_alive(place) == [], "a killed task is not shown as running"
        run = run_in(place, "new")
        assert not run.is_there() or run.state().state in ("killed", "failed")
        undo_all(client, place, *edited)


def words_of_alive(place):
    """Return the first argument of each running command."""
    return [task.description()["words"][0] for task in place.tasks if task.state().is_alive]


def start_run(client, place, run_file):
    """Start a run through the form."""
    fields = fields_of(read_toml(run_file(training={"max_steps": 100_000})))
    fields["output_dir"] = str(place.runs / "new")
    draft = client.post("/new/blank").headers["location"]
    answer = client.post(f"{draft}/start", data=fields)
    assert answer.headers.get("hx-redirect") == f"{draft}/started", answer.text


def tag(client, place, folder):
    shutil.copytree(TAGGER, place.path / "models" / "tagger")
    form = {"kind-0": "tagger", "model-0": str(place.path / "models" / "tagger")}
    here = address_in(place, folder)
    answer = client.post(f"{here}/captions/try/all", data={**form, "existing": "append"})
    assert answer.status_code == 303, answer.text


def edit(client, place, folder):
    here = f"{address_in(place, folder)}/captions"
    form = {"which": "filter", "do": "add", "what": "in ink", "by": "", "at": "", "text": ""}
    preview = client.post(f"{here}/preview", data=form).text
    token = re.search(r'name="token" value="(\w+)"', preview)[1]
    assert client.post(f"{here}/apply", data={"token": token}).status_code == 303


def undo_all(client, place, folder, before):
    """Undo all edits of a dataset; afterwards its captions must be the original ones."""
    here = f"{address_in(place, folder)}/captions"
    edits = re.findall(r'name="edit" value="(\d+)".*?name="at" value="([\d.]+)"',
                       client.get(f"{here}/edits").text, re.S)  # fmt: skip
    for number, at in edits:
        assert client.post(f"{here}/undo", data={"edit": number, "at": at}).status_code == 303
        eventually(lambda: not words_of_alive(place), 120)
    assert captions_in(folder) == before
    assert not edits or not partial_files_in(folder)


def assert_whole(folder, before, is_new):
    """Require that no caption is lost, half-written, or left under another name.

    A caption being written has a hidden temporary name, which the next command removes.
    """
    after = captions_in(folder)
    assert after.keys() == before.keys()
    for file, text in after.items():
        assert text == before[file] or is_new(before[file], text), file.name
    hidden = {".impasto", *(path.name for path in partial_files_in(folder))}
    names = {path.name for path in folder.iterdir()} - hidden
    assert names == {n for f in before for n in (f.name, f.with_suffix(".webp").name)}


def a_large_png():
    out = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("ninths", [6, *slowly(n for n in range(10) if n != 6)])
def test_a_server_is_killed_while_the_queue_changes_in_the_middle_of_an_upload(place, ninths):
    """The server is killed after a part of the file, and some time later.

    No partial file is visible, and the next upload removes leftovers. Every job exists once, in a
    valid order, and can be changed again.
    """
    folder = place.data / "cats"
    content = a_large_png()
    before = seen(folder)
    for number in range(8):
        place.queue.add(f'output_dir = "{number}"', f"job {number}", place.path)
    numbers = [job.number for job in place.queue.jobs()]
    with opened(place) as (client, server):
        here = address_in(place, folder)
        connection = half_an_upload(client, here, content, ninths / 9)
        with contextlib.suppress(AssertionError):  # a small part may not be on the disk yet
            eventually(lambda: left_of(folder), 3)
        with changing(client, numbers):
            time.sleep(0.05 * ninths)
            server.kill()
            server.wait()
        connection.close()
    named = seen(folder) - before
    assert named in (set(), {"new.png"})
    if named:  # the whole file had arrived
        assert (folder / "new.png").read_bytes() == content
    assert sorted(job.number for job in place.queue.jobs()) == sorted(numbers)
    assert {job.state for job in place.queue.jobs()} <= {"waiting", "paused"}
    last = place.queue.jobs()[-1].number
    with opened(place) as (client, _):
        check_every_page(client, place)
        answer = client.post(f"{here}/upload", files={"files": ("other.png", content)})
        assert 'class="taken"' in answer.text
        assert left_of(folder) == []
        assert client.post(f"/queue/jobs/{last}/up").status_code == 200
        assert place.queue.jobs()[-2].number == last
        check_every_page(client, place)
    assert (folder / "other.png").read_bytes() == content


@contextlib.contextmanager
def changing(client, numbers):
    """Move, pause and continue jobs in three threads, as long as the studio responds."""
    changes = ("down", "pause", "up", "continue")

    def change(first):
        with contextlib.suppress(httpx2.TransportError):
            for turn in range(10_000):
                number = numbers[(first + turn) % len(numbers)]
                client.post(f"/queue/jobs/{number}/{changes[turn % len(changes)]}")

    threads = [threading.Thread(target=change, args=(first,)) for first in (0, 3, 6)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def test_ending_the_server_in_the_middle_of_an_upload_shows_no_traceback(place):
    """Ctrl-C during an upload removes the received part at once and prints no traceback."""
    folder = place.data / "cats"
    before = seen(folder)
    with open(place.path / "said.txt", "w+b") as said:  # noqa: PTH123
        with opened(place, errors=said.fileno()) as (client, server):
            connection = half_an_upload(client, address_in(place, folder), a_large_png(), 0.5)
            eventually(lambda: left_of(folder))
            server.send_signal(signal.SIGINT)
            server.wait(30)
            connection.close()
        said.seek(0)
        assert b"Traceback" not in said.read()
    assert seen(folder) == before
    assert left_of(folder) == []


def eventually(holds, seconds=30.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def half_an_upload(client, here, content, share):
    """Send a part of a file called `new.png`; return the connection, which is still open."""
    head = '--edge\r\nContent-Disposition: form-data; name="files"; filename="new.png"\r\n\r\n'
    body = head.encode() + content + b"\r\n--edge--\r\n"
    connection = http.client.HTTPConnection(urlsplit(str(client.base_url)).netloc)
    connection.putrequest("POST", f"{here}/upload")
    for name, value in {
        **FROM_HERE, "Content-Length": str(len(body)),
        "Content-Type": "multipart/form-data; boundary=edge",
        "Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items()),
    }.items():  # fmt: skip
        connection.putheader(name, value)
    connection.endheaders(body[: int(share * len(body))])
    return connection


def seen(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def left_of(folder):
    """Return the leftovers of uploads that did not finish."""
    return [path for path in (folder / ".impasto").rglob("*") if "new.png" in path.name]
