"""The studio's queue page: every button and field, with valid and invalid input."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
from starlette.testclient import TestClient
from studios import FROM_HERE, HOME, Started
from test_run_status import GONE, make_run

from impasto import locks
from impasto.owners import current_process
from impasto.runs.queue import Queue
from impasto.runs.queue_devices import is_asked_to_stop, lock_name
from impasto.runs.queue_jobs import write_job
from impasto.studio.app import create_app
from impasto.studio.core import Studio


@pytest.fixture
def queue(studio):
    return Queue(studio.queue)


@pytest.fixture
def _dogs(queue, folder):
    for name in ("dog", "cat", "cow"):
        queue.add(tomli_w.dumps({"output_dir": str(folder / name)}), name, folder)


def valid(output, **more):
    return tomli_w.dumps(
        {
            "output_dir": str(output),
            "model": {"path": "base"},
            "dataset": {"image_dir": "images"},
            "training": {"max_steps": 5},
            **more,
        }
    )


def post(client, path, **fields):
    return client.post(path, data=fields, headers=FROM_HERE, follow_redirects=False)


def order(client):
    return re.findall(r'id="job-(\d+)"', client.get("/parts/queue").text)


class Noted:
    """Tasks that are recorded but not started."""

    def __init__(self):
        self.words = []

    def start(self, words, title, back="/", folder=None):
        self.words.append(list(map(str, words)))

    def newest(self, *words):
        return iter(())


def test_an_empty_queue_says_how_to_begin(client):
    page = client.get("/queue")
    assert page.status_code == 200
    assert "queue add --queue " in page.text
    assert "training now, outside this queue" not in page.text
    assert 'href="/queue"' in client.get("/").text
    for policy in (" style=", "<style", "onclick"):
        assert policy not in page.text


@pytest.mark.usefixtures("_dogs")
def test_buttons_change_the_queue(client, queue):
    assert order(client) == ["1", "2", "3"]
    answer = post(client, "/queue/jobs/3/up")
    assert answer.status_code == 200
    assert answer.headers["hx-trigger"] == "queue-changed"
    assert order(client) == ["1", "3", "2"]
    post(client, "/queue/jobs/1/down")
    assert order(client) == ["3", "1", "2"]
    post(client, "/queue/jobs/2/first")
    assert order(client) == ["2", "3", "1"]
    post(client, "/queue/jobs/2/last")
    assert order(client) == ["3", "1", "2"]
    page = client.get("/queue").text
    shown = [f"/queue/jobs/{job}/{to}" in page for job in (3, 2) for to in ("first", "last")]
    assert shown == [False, True, True, False]
    post(client, "/queue/jobs/1/pause")
    assert queue.find(1).state == "paused"
    post(client, "/queue/jobs/1/continue")
    assert queue.find(1).state == "waiting"
    post(client, "/queue/jobs/1/repeat")
    assert order(client) == ["3", "1", "2", "4"]
    post(client, "/queue/jobs/1/remove")
    assert order(client) == ["3", "2", "4"]
    write_job(replace(queue.find(2), state="failed", message="No <b>images</b>."))
    assert "No &lt;b&gt;images&lt;/b&gt;." in client.get("/queue").text
    post(client, "/queue/jobs/2/retry")
    assert queue.find(2).state == "waiting"


@pytest.mark.usefixtures("_dogs")
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("9/up", 409), ("1/retry", 409), ("1/continue", 409), ("1/eat", 404), ("0/pause", 409),
        ("-1/up", 404), ("x/up", 404), ("²/up", 404), ("9" * 5000 + "/up", 404),
        ("..%2f..%2f0001/remove", 404), ("1/", 404), ("0001.1/remove", 404),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_is_refused(client, queue, path, status):
    before = [job.as_json() for job in queue.jobs()]
    answer = post(client, f"/queue/jobs/{path}")
    assert answer.status_code == status
    assert "hx-trigger" not in answer.headers
    assert [job.as_json() for job in queue.jobs()] == before


@pytest.mark.usefixtures("_dogs")
def test_runs_that_the_queue_does_not_know_of_are_named_before_it_starts(client, folder):
    with make_run(folder / "cat & mouse").held() as held:
        held.write_status("training", step=1, total_steps=9)
        page = client.get("/parts/queue").text
    assert "cat &amp; mouse: training now, outside this queue. The queue does not wait" in page
    assert 'hx-confirm="cat &amp; mouse is training now, outside this queue' in page
    assert "training now, outside this queue" not in client.get("/parts/queue").text


STRANGE = ["<script>alert(1)</script>", "a\"b'c", "two\nlines", "%2e%2e", "{{ 1 }}", "\udcff"]


@pytest.mark.parametrize("name", STRANGE)
def test_names_are_text_and_nothing_else(client, queue, folder, name):
    queue.add(tomli_w.dumps({"output_dir": f"{folder}/<i>dog"}), name, folder)
    page = client.get("/queue")
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert "<i>dog" not in page.text


def test_a_job_that_is_worked_on_leads_to_its_run(client, studio, queue, folder):
    job = queue.add(tomli_w.dumps({"output_dir": "dog"}), "dog", folder)
    run = make_run(folder / "dog", phase="training", step=4, total_steps=9, process=GONE)
    page = client.get("/queue").text
    assert f"/runs/{studio.folders.name_of(run)}" not in page  # not started yet
    token = current_process().token
    write_job(
        replace(job, state="working", device="0", runner=token, tries=1, owns_run=True)
    )  # fmt: skip
    with locks.FolderLock(queue.folder, "<test>", lambda _: None, lock_name("0")):
        page = client.get("/queue").text
    assert f'href="/runs/{studio.folders.name_of(run)}"' in page
    assert '<progress max="9" value="4"' in page
    assert "4 of 9 steps" in page
    assert "(&lt;test&gt;)" in page
    assert "/queue/jobs/1/remove" not in page
    assert "/queue/jobs/1/pause" in page


def test_a_run_outside_of_the_folders_is_not_led_to(client, queue, tmp_path):
    job = queue.add(tomli_w.dumps({"output_dir": "dog"}), "dog", tmp_path)
    make_run(tmp_path / "dog", phase="finished", process=GONE)
    write_job(replace(job, state="done", tries=1, owns_run=True))
    page = client.get("/queue")
    assert page.status_code == 200
    assert 'href="/runs/' not in page.text


@pytest.mark.usefixtures("_dogs")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}'])
def test_damaged_records_end_no_page(client, queue, content):
    (queue.folder / "0001" / "job.json").write_text(content, encoding="utf-8")
    (queue.folder / "0002" / "settings.toml").write_text("x =", encoding="utf-8")
    page = client.get("/queue")
    assert page.status_code == 200
    assert "job.json" in page.text
    assert "do not set output_dir" in page.text


# adding


def test_a_settings_file_is_added_by_path_and_by_text(client, queue, folder):
    (folder / "my-style.toml").write_text(valid(folder / "a"), encoding="utf-8")
    assert post(client, "/queue/add", file="my-style.toml").status_code == 303
    text = valid(folder / "b").replace("\n", "\r\n")  # as sent by browsers
    assert post(client, "/queue/add", text=text, paused="on").status_code == 303
    assert post(client, "/queue/add", text=valid(folder / "c"), name="Mine").status_code == 303
    assert [(job.name, job.state) for job in queue.jobs()] == [
        ("my-style", "waiting"), ("b", "paused"), ("Mine", "waiting"),
    ]  # fmt: skip
    assert queue.find(2).settings_file.read_bytes().decode() == valid(folder / "b")
    assert queue.find(1).folder == Path.cwd()


@pytest.mark.parametrize(
    "name",
    ["../secret.toml", "link.toml", "missing.toml", "words.txt", ".", "a\0b.toml", "x" * 5000],
)
def test_no_file_outside_of_the_folders_is_read(client, queue, folder, tmp_path, name):
    (tmp_path / "secret.toml").write_text(valid(folder / "a") + "# secret", encoding="utf-8")
    (folder / "link.toml").symlink_to(tmp_path / "secret.toml")
    (folder / "words.txt").write_text(valid(folder / "a"), encoding="utf-8")
    for path in (name, str(tmp_path / "secret.toml")):
        answer = post(client, "/queue/add", file=path)
        assert answer.status_code == 422
        assert "# secret" not in answer.text
    assert queue.jobs() == []


def test_what_is_wrong_stands_beside_its_field_and_nothing_typed_is_lost(client, queue, folder):
    taken = folder / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for text, words in (
        ("x =", "not valid TOML"),
        (valid(folder / "a", sed=3), "unknown key sed"),
        (valid(folder.parent / "outside"), "outside the folders of runs"),
        (valid(taken), "already exists and is not empty"),
        ("a" + ".a" * 5000 + " = 1", "not valid TOML"),
        ('output_dir = "<i>"', "model"),
    ):
        answer = post(client, "/queue/add", text=text, name='"<b>', paused="on")
        assert answer.status_code == 422, words
        fault = re.search(r'id="text-fault" class="fault">([^<]*)<', answer.text)
        assert words in fault[1]
        assert "&#34;&lt;b&gt;" in answer.text
        assert "<i>" not in answer.text
        assert " checked" in answer.text
    for fields in ({}, {"file": "a.toml", "text": "x = 1"}, {"text": " "}):
        answer = post(client, "/queue/add", **fields)
        assert answer.status_code == 422
        assert "but not both" in answer.text
    assert queue.jobs() == []
    assert post(client, "/queue/add", text="x" * (2 << 20)).status_code == 413


def test_a_full_disk_is_said_beside_the_field(client, queue, folder, monkeypatch):
    from impasto.errors import StorageError

    def full(*_, **__):
        raise StorageError("The disk is full: nothing was written.")

    monkeypatch.setattr("impasto.runs.queue.Queue.add", full)
    answer = post(client, "/queue/add", text=valid(folder / "a"))
    assert answer.status_code == 422
    assert "The disk is full" in answer.text


# devices


@pytest.mark.usefixtures("_dogs")
def test_two_studios_on_one_queue_see_the_same_and_start_one_runner(client, studio, queue, access):
    """A job moved in one studio is moved in the other one too."""
    other = Studio(studio.folders, studio.home.parent / ".other", studio.queue, Started())
    known = TestClient(create_app(other, access), base_url=HOME)
    known.cookies.set(access.cookie, access.cookie_value)
    assert order(client) == order(known) == ["1", "2", "3"]
    assert post(known, "/queue/jobs/3/up").status_code == 200
    assert order(client) == order(known) == ["1", "3", "2"]
    with locks.FolderLock(queue.folder, "test", lambda _: None, lock_name("0")):
        for each in (client, known):
            assert post(each, "/queue/start", device="0").status_code == 409
    assert [job.number for job in queue.jobs()] == [1, 3, 2]


def test_working_is_started_as_a_process_once(client, studio, queue, monkeypatch):
    tasks = Noted()
    object.__setattr__(studio, "tasks", tasks)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert post(client, "/queue/start", device="1").status_code == 303
    words = ["queue", "run", "--queue", str(queue.folder), "--device", "1", "--wait"]
    assert tasks.words == [words]
    for device in ("-1", "x", "", "²", "9" * 5000, "1024", "--help"):
        assert post(client, "/queue/start", device=device).status_code == 400
    queue.folder.mkdir()
    with locks.FolderLock(queue.folder, "test", lambda _: None, lock_name("1")):
        answer = post(client, "/queue/start", device="1")
        assert answer.status_code == 409
        assert "already in use" in answer.text
        assert post(client, "/queue/stop/1").status_code == 200
        assert is_asked_to_stop(queue.folder, "1", current_process().token)
        assert "/queue/stop/1" in client.get("/parts/queue").text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert post(client, "/queue/start", device="1").status_code == 409
    assert post(client, "/queue/start").status_code == 303
    assert len(tasks.words) == 2


def test_a_device_of_any_name_is_shown_once(client, queue, monkeypatch):
    device = "MIG-GPU-a/<b>/2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", device)
    assert client.get("/queue").text.count('class="queue-device"') == 1
    queue.folder.mkdir()
    with locks.FolderLock(queue.folder, "test", lambda _: None, lock_name(device)):
        page = client.get("/queue").text
        assert page.count('class="queue-device"') == 1
        (stop,) = re.findall(r'hx-post="(/queue/stop/[^"]+)"', page)
        assert post(client, stop).status_code == 200
    assert is_asked_to_stop(queue.folder, device, current_process().token)


@pytest.mark.parametrize("device", ["1", "x", "..%2f..", "a%00b", "x" * 4000])
def test_stopping_nobody_is_refused(client, queue, device):
    assert post(client, f"/queue/stop/{device}").status_code in (404, 409, 500)
    assert not queue.folder.exists()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ([], "being started"),
        ([{"kind": "ended", "code": 6}], "has failed"),
        ([{"kind": "ended", "code": 143}], "Start working"),
    ],
)
def test_a_process_that_was_started_is_shown_until_it_works(client, studio, queue, said, shown):
    task = studio.home / "tasks" / "20260101-000000-abcdef"
    task.mkdir(parents=True)
    words = ["queue", "run", "--queue", str(queue.folder), "--device", "0", "--wait"]
    about = {"words": words, "title": "x", "process": current_process().token}
    (task / "task.json").write_text(json.dumps(about), encoding="utf-8")
    lines = "".join(json.dumps(event) + "\n" for event in said)
    (task / "events.jsonl").write_text(lines, encoding="utf-8")
    assert shown in client.get("/parts/queue").text
    if not said:
        assert post(client, "/queue/start", device="0").status_code == 409  # once is enough
