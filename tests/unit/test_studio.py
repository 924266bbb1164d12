"""The studio's server: access, served files, and failures."""

import asyncio
import contextlib
import errno
import html
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import httpx2
import psutil
import pytest
from conftest import impasto
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.routing import Mount
from studios import FROM_HERE, HOME, PORT
from test_run_status import GONE, make_run

from impasto.cli import ports
from impasto.cli.console import Console
from impasto.cli.ports import listen_at
from impasto.cli.studio import _begin_with_demo, _farewell, _is_no_cut_off_request, _opened
from impasto.demo.recipe import PICTURES
from impasto.errors import RunError
from impasto.invocation import command
from impasto.owners import ProcessIdentity, current_process, identity_of
from impasto.report.previews import newest_previews
from impasto.runs import RunDirectory, step_name
from impasto.runs import tasks as task_events
from impasto.runs.commands import waiting_commands
from impasto.runs.events import EventLog, read_events
from impasto.runs.tasks import TaskDirectory
from impasto.studio import curves
from impasto.studio import tasks as tasks_module
from impasto.studio.app import create_app
from impasto.studio.core import Studio
from impasto.studio.curves import read_curves
from impasto.studio.folders import HOME as HOME_FOLDER
from impasto.studio.folders import Folders, require_own
from impasto.studio.guard import HEADERS, Access, hosts_of
from impasto.studio.pages.runs import RunPages
from impasto.studio.watching import RunWatch


@pytest.fixture
def dog(folder):
    run = make_run(folder / "dog", phase="stopped", step=3, total_steps=9, process=GONE, loss=0.5)
    run.append_metrics({"step": 3, "loss": 0.5, "time": 1.0})
    (run.samples / step_name(3)).mkdir(parents=True)
    (run.samples / step_name(3) / "000.png").write_bytes(b"\x89PNG")
    return run


def address(studio, run):
    return f"/runs/{studio.folders.name_of(run)}"


# access


def test_the_printed_address_gives_the_cookie_and_takes_the_token_away(stranger, access):
    assert stranger.get("/").status_code == 403
    opened = stranger.get(access.address)
    assert opened.status_code == 200
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert access.token not in opened.text + cookie  # other ports get the cookie too
    assert access.cookie_value not in opened.text
    assert stranger.get("/").status_code == 200


@pytest.mark.parametrize("token", ["", "x", "é", "a" * 43, None])
def test_a_guessed_token_opens_nothing(stranger, access, token):
    """Neither a guessed token nor the printed one as a cookie gives access."""
    printed = {"cookie": f"{access.cookie}={access.token}"}
    assert stranger.get("/", headers=printed).status_code == 403
    params = {} if token is None else {"token": token}
    assert stranger.get("/", params=params).status_code == 403
    cookie = {"cookie": f"{access.cookie}={(token or '').encode('ascii', 'ignore').decode()}"}
    assert stranger.get("/", headers=cookie).status_code == 403


def test_no_route_answers_without_the_cookie(stranger, studio, access, dog):
    name = studio.folders.name_of(dog)
    paths = []
    for route in create_app(studio, access).routes:
        if isinstance(route, Mount):
            paths.append(("GET", f"{route.path}/studio.css"))
            continue
        path = route.path.replace("{run}", name)
        path = re.sub(r"\{.*?\}", "x", path)
        paths += [(method, path) for method in route.methods - {"HEAD"}]
    assert len(paths) >= 10
    for method, path in paths:
        answer = stranger.request(method, path, headers=FROM_HERE)
        assert answer.status_code == 403, path
        assert "dog" not in answer.text


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", f"127.0.0.1:{PORT}.evil.example", f"evil:{PORT}", ""]
)
def test_another_name_for_this_server_is_refused(client, host):
    assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", [f"localhost:{PORT}", f"[::1]:{PORT}", f"LOCALHOST:{PORT}"])
def test_the_names_of_the_loopback_are_known(client, access, host):
    cookie = {"cookie": f"{access.cookie}={access.cookie_value}"}
    assert client.get("/", headers={"host": host, **cookie}).status_code == 200


def test_pages_of_other_sites_neither_read_nor_ask(client, studio, dog):
    page, asked = address(studio, dog), f"{address(studio, dog)}/resume"
    for site in ("cross-site", "same-site"):
        assert client.get(page, headers={"sec-fetch-site": site}).status_code == 403
        assert client.post(asked, headers={"sec-fetch-site": site}).status_code == 403
    for site in ("same-origin", "none"):
        assert client.get(page, headers={"sec-fetch-site": site}).status_code == 200
    assert client.post(asked, headers={"sec-fetch-site": "none"}).status_code == 403
    assert client.post(asked).status_code == 403
    assert client.post(asked, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post(asked, headers={"origin": "http://[::1"}).status_code == 403
    assert studio.run_processes.words == []
    answer = client.post(asked, headers={"origin": HOME}, follow_redirects=False)
    assert answer.status_code == 303
    assert studio.run_processes.words == [["resume", str(dog.path)]]


def test_every_answer_says_what_the_browser_may_do(client, stranger, studio, dog):
    answers = [
        client.get("/"),
        client.get(address(studio, dog)),
        client.get("/static/run.js"),
        client.get("/missing"),
        stranger.get("/"),
        client.get(f"{address(studio, dog)}/samples/3/000.png"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 403, 200]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    page = client.get(address(studio, dog)).text
    assert " style=" not in page
    assert "<style" not in page
    assert "<script>" not in page  # which the policy would block
    assert "onclick" not in page


def test_scripts_and_styles_are_kept_by_browsers_until_they_change(client):
    page = client.get("/").text
    addresses = re.findall(r'"(/static/[^"]+)"', page)
    assert len(addresses) > 5
    for file in addresses:
        answer = client.get(file)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert client.get(f"{file}0").headers["cache-control"] == "no-cache"
    assert client.get("/static/studio.js").headers["content-type"].startswith("text/javascript")
    for missing in ("studio.py", "../core.py", "%2e%2e%2fcore.py", "none.js"):
        assert client.get(f"/static/{missing}").status_code == 404


def test_no_style_that_is_meant_for_a_part_of_a_page_falls_on_the_lines_of_a_log(client):
    """Classes of log lines are kinds of events, with names such as begin and end."""
    kinds = "begin|stage|note|warning|training|step|command|end|error|ended"
    styles = client.get("/static/studio.css").text + client.get("/static/sheets.css").text
    selectors = re.findall(r"(?:^|[,}])\s*([^,{}@]+?)\s*(?=[,{])", styles)
    assert len(selectors) > 100
    assert [text for text in selectors if re.match(rf"(li)?\.({kinds})\b(?!-)", text)] == []


# served files


@given(st.binary(min_size=1, max_size=60).filter(lambda b: b"\0" not in b))
def test_every_path_has_a_name_of_letters_and_digits(text):
    root = Path("/data/runs")
    run = RunDirectory(root / os.fsdecode(text.replace(b"/", b"_")))
    name = Folders([root]).name_of(run)
    assert set(name) <= set("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.")


STRANGE = ["<script>alert(1)</script>", 'a"b', "%2e%2e", "two\nlines", "a&b;c", "\udcff\udcfe", "…"]


@pytest.mark.skipif(sys.platform != "linux", reason="Windows and macOS refuse such names")
@pytest.mark.parametrize("title", STRANGE)
def test_strange_names_are_shown_and_found(client, studio, folder, title):
    run = make_run(folder / title, phase="failed", message=f"No {title}.", process=GONE)
    log = EventLog()
    log.open(run.events_file)
    log.note(f"Reading {title}")
    assert client.get("/").status_code == 200
    page = client.get(address(studio, run))
    assert page.status_code == 200
    for text in (client.get("/").text, page.text):
        assert "<script>alert" not in text
    assert studio.folders.run_of(studio.folders.name_of(run)).path == run.path


def encoded(path):
    import base64

    return "0." + base64.urlsafe_b64encode(os.fsencode(path)).decode().rstrip("=")


def test_nothing_outside_of_the_folders_is_shown(client, studio, folder, tmp_path):
    outside = make_run(tmp_path / "outside", phase="finished", process=GONE)
    (folder / "link").symlink_to(outside.path)
    for name in (
        encoded("../outside"), encoded("link"), encoded(str(outside.path)), encoded("."),
        encoded("a\0b"), "0.%%%", "1.ZG9n", "-1.ZG9n", "x", "0.", "²." + encoded("dog")[2:],
        encoded("x" * 5000),
    ):  # fmt: skip
        assert client.get(f"/runs/{name}").status_code == 404, name
    assert "There are no runs" in client.get("/").text


def test_samples_are_pictures_of_the_run_alone(client, studio, dog, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    inside = dog.samples / step_name(3)
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "words.txt").write_text("words", encoding="utf-8")
    base = f"{address(studio, dog)}/samples/3"
    assert client.get(f"{base}/000.png").content == b"\x89PNG"
    assert client.get(f"{base}/000.png").headers["content-type"] == "image/png"
    for name in (
        "link.png", "words.txt", "missing.png", "..%2f..%2fconfig.toml", "%2e%2e%2f001.png",
        ".", "a%00b.png", "x" * 300 + ".png",
    ):  # fmt: skip
        assert client.get(f"{base}/{name}").status_code in (404, 400), name
    for step in ("4", "-3", "x", "3.0", "9" * 5000, "²", "%2e%2e"):
        assert client.get(f"{address(studio, dog)}/samples/{step}/000.png").status_code == 404
    assert client.get(f"{base}/000.png").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "events.jsonl", "samples"])
def test_a_run_with_links_out_of_it_is_not_shown(client, studio, dog, tmp_path, name):
    page, path, secret = address(studio, dog), dog.path / name, tmp_path / "secret"
    if name == "samples":
        path.rename(secret)
    else:
        secret.write_text('{"step": 1, "loss": 7}', encoding="utf-8")
        path.unlink(missing_ok=True)
    path.symlink_to(secret)
    for part in ("", "/curves", "/samples/3/000.png", "/report"):
        assert client.get(f"{page}{part}").status_code == 404, part
    if name == "samples":
        path.unlink()
        path.mkdir()
        (path / step_name(3)).symlink_to(secret / step_name(3))
        assert client.get(page).status_code == 200
        assert client.get(f"{page}/samples/3/000.png").status_code == 404


# failures


def test_a_run_that_is_removed_while_it_is_shown_is_named(client, studio, dog):
    import shutil

    page = address(studio, dog)
    watch = RunWatch(dog)
    watch.look()
    shutil.rmtree(dog.path)
    answer = client.get(page)
    assert answer.status_code == 404
    assert "removed, renamed or moved" in answer.text
    assert watch.look().state.state == "unknown"
    assert client.get("/").status_code == 200


def test_a_run_that_is_renamed_while_its_page_is_open_is_named(client, studio, folder, dog):
    """The open page and each of its buttons report it, and the list has the new name."""
    page, pages, watch = address(studio, dog), RunPages(studio), RunWatch(dog)
    pages._news(watch, dog)
    moved = dog.path.rename(folder / "renamed-dog")
    told = pages._news(watch, dog).decode()
    assert "no longer exists here: it was removed, renamed or moved" in told
    assert "button" not in told
    assert pages._news(watch, dog) == b": still here\n\n"  # reported once
    parts = ("", "/curves", "/learning", "/images", "/samples", "/stream", "/report")
    answers = [client.get(page + part) for part in parts]
    answers += [client.post(page + end, headers=FROM_HERE) for end in ("/ask/save", "/resume")]
    for answer in answers:
        assert answer.status_code == 404
        assert "removed, renamed or moved" in answer.text
    assert os.listdir(folder) == ["renamed-dog"]  # nothing was created in the old place
    assert "renamed-dog" in client.get("/parts/runs").text
    moved.rename(dog.path)
    assert "stopped" in pages._news(watch, dog).decode()
    dog.status_file.write_text("{", encoding="utf-8")  # which does not show its state
    assert "of unknown state" in pages._news(watch, dog).decode()
    dog.path.rename(moved)
    assert "no longer exists here" in pages._news(watch, dog).decode()


def test_a_run_that_lets_go_after_it_said_so_can_be_resumed_on_its_open_page(studio, dog):
    """A run reports an interrupt while it still holds its directory, and is gone later."""
    pages, watch = RunPages(studio), RunWatch(dog)
    with dog.held() as held:
        held.write_status("stopped", step=3, total_steps=9)
        assert "Resume" not in pages._news(watch, dog).decode()
    told = pages._news(watch, dog).decode()
    assert 'action="/runs/' in told
    assert "/resume" in told


def test_a_process_that_ends_is_not_said_to_be_started(studio, dog):
    """After a run has released its directory, its process takes a while to end."""
    pages, watch, processes = RunPages(studio), RunWatch(dog), studio.run_processes
    with dog.held() as held:
        held.write_status("stopped", step=3, total_steps=9)
    processes.working[dog.path] = 1  # not the process that wrote the status
    told = pages._news(watch, dog).decode()
    assert "is being started" in told
    assert "/resume" not in told
    processes.working[dog.path] = os.getpid()
    told = pages._news(watch, dog, is_free=True).decode()
    assert "is ending" in told
    assert "is being started" not in told
    processes.working.clear()
    assert pages._news(watch, dog).decode() == ": still here\n\n"
    assert "/resume" in pages._news(watch, dog, is_free=True).decode()


def test_an_open_page_hears_of_the_end_of_a_process(studio, dog):
    """The end of a process changes no file, yet a run can be resumed only after it."""
    studio.run_processes.working[dog.path] = 1

    class Request:
        headers, query_params, looks = {}, {}, 0

        async def is_disconnected(self):
            self.looks += 1
            if self.looks == 3:
                studio.run_processes.working.clear()
            return self.looks > 4

    async def told():
        return [part async for part in RunPages(studio)._told(dog, Request())]

    first, second, third, fourth = asyncio.run(told())
    assert b"is being started" in first
    assert b"still here" in second
    assert b"/resume" in third
    assert b"still here" in fourth


def test_the_page_of_a_run_says_how_many_images_were_skipped(client, studio, dog):
    skipped = [{"path": f"{n}.png", "reason": "it is cut short"} for n in range(1234)]
    content = {"pictures": 9, "held_out": 2, "set_aside": skipped}
    (dog.path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    page = client.get(address(studio, dog)).text
    assert re.search(r"Skipped</\w+>\s*<\w+>1,234<", page)
    assert re.search(r"Images</\w+>\s*<\w+>9<", page), "under its name of earlier versions"


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "events.jsonl", "dataset.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\0", b'{"step": 1e400}\n', b"[1]\n"])
def test_half_written_files_end_no_page(client, studio, dog, name, content):
    (dog.path / name).write_bytes(content)
    assert client.get(address(studio, dog)).status_code == 200
    assert client.get(f"{address(studio, dog)}/curves").status_code == 200
    assert client.get("/").status_code == 200


def test_a_folder_that_may_not_be_read_hides_no_other(client, folder, dog, monkeypatch):
    real = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(path)
        return real(path)

    (folder / "closed").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert "dog" in client.get("/").text


@pytest.mark.parametrize("name", ["states", "samples", "export"])
def test_a_part_that_may_not_be_read_hides_no_run(client, studio, dog, name, monkeypatch):
    real = os.listdir

    def refuse(path="."):
        if str(path).endswith(name):
            raise PermissionError(path)
        return real(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert "dog" in client.get("/").text
    assert client.get(address(studio, dog)).status_code == 200


def test_what_the_system_refuses_is_said_in_words(client, studio, dog, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("impasto.studio.pages.runs.run_page", refuse)
    answer = client.get(address(studio, dog))
    assert answer.status_code == 500
    assert "Permission denied" in answer.text
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]


def test_a_full_disk_is_said_in_words(client, studio, dog, monkeypatch):
    from impasto.errors import StorageError

    def full(*_, **__):
        raise StorageError("The disk is full: nothing was written.")

    monkeypatch.setattr("impasto.studio.pages.runs.send_command", full)
    with dog.held():
        answer = client.post(f"{address(studio, dog)}/ask/save", headers=FROM_HERE)
    assert answer.status_code == 500
    assert "The disk is full" in answer.text


def test_three_hundred_requests_at_once_are_all_answered(studio, access, dog):
    app, paths = create_app(studio, access), ["/", address(studio, dog), "/static/run.js"]

    async def ask_all():
        transport = httpx2.ASGITransport(app)
        cookies = {access.cookie: access.cookie_value}
        async with httpx2.AsyncClient(
            transport=transport, base_url=HOME, cookies=cookies
        ) as browser:
            wanted = (browser.get(paths[n % 3]) for n in range(300))
            return [answer.status_code for answer in await asyncio.gather(*wanted)]

    assert asyncio.run(ask_all()) == [200] * 300


def test_the_end_says_what_goes_on(studio, dog):
    assert _farewell(studio) == "The studio has ended."
    with dog.held() as held:
        held.write_status("training", step=1, total_steps=9)
        assert "dog is being trained, and this continues" in _farewell(studio)


def test_of_the_log_only_what_the_end_cuts_off_is_left_out():
    """Any message may be an error, or one whose arguments complete its meaning."""

    def is_kept(message, *arguments, error=None):
        cause = None if error is None else (type(error), error, None)
        place = ("uvicorn.error", logging.ERROR, "", 0)
        return _is_no_cut_off_request(logging.LogRecord(*place, message, arguments, cause))

    assert is_kept(ValueError("a disk failed"))
    assert is_kept("the request failed: %s", "no", error=ValueError("no"))
    assert not is_kept("Cancel %s task(s), timeout %s exceeded", 2, "graceful shutdown")
    assert not is_kept("Exception in ASGI application", error=asyncio.CancelledError())


@contextlib.contextmanager
def taken_ports(number):
    """Return consecutive ports that this process listens on, and the first free one after them."""
    for first in range(21_000, 60_000, 50):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + number):
                    stack.enter_context(listening_at(port))
                listening_at(first + number).close()
            except OSError:
                continue
            yield first, first + number
            return
    raise AssertionError("no ports are free")


def listening_at(port):
    found = socket.socket()
    try:
        found.bind(("127.0.0.1", port))
        found.listen()
    except OSError:
        found.close()
        raise
    return found


def test_a_taken_port_is_named_with_who_has_it_and_the_next_free_one(tmp_path):
    with taken_ports(3) as (port, free):
        refused = impasto("studio", "--runs", tmp_path, "--port", port)
        own = psutil.Process()
        assert refused.returncode == 5
        assert f"Port {port} is taken by {own.name()} (process {own.pid})." in refused.stderr
        assert f"{free} is free: --port {free}." in " ".join(refused.stderr.split())
        with listen_at("127.0.0.1", free, 1) as there:
            assert there.getsockname()[1] == free
    missing = impasto("studio", "--runs", tmp_path / "missing")
    assert missing.returncode == 5
    assert "is not a folder. Give folders with runs in them to --runs." in " ".join(
        missing.stderr.split()
    )


def test_without_a_port_the_first_free_one_is_taken(monkeypatch):
    with taken_ports(3) as (port, free):
        with listen_at("127.0.0.1", None, port) as there:
            assert there.getsockname()[1] == free
        monkeypatch.setattr(ports, "TRIED", 2)
        words = f"Ports {port} to {port + 1} are taken, the first by .* {free} is free: --port"
        with pytest.raises(RunError, match=words):
            listen_at("127.0.0.1", None, port)


def test_answers_are_sent_at_once():
    """Nagle's algorithm would delay each body until the browser has confirmed the head."""

    async def delay_of_a_connection():
        taken = asyncio.get_running_loop().create_future()

        def connected(_reader, writer):
            connection = writer.get_extra_info("socket")
            taken.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen_at("127.0.0.1", None, 20_000) as listener:
            async with await asyncio.start_server(connected, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                writer.close()
                return await taken

    assert asyncio.run(delay_of_a_connection())


def test_a_port_of_another_studio_is_named_so(tmp_path):
    words = [sys.executable, "-m", "impasto", "studio", "--runs", tmp_path]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        address = next(line for line in process.stdout if line.startswith("http"))
        port = int(re.search(r":(\d+)/", address)[1])
        assert ports.holder_of(port) == f"by another Impasto studio (process {process.pid})"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_who_has_a_port_is_said_as_far_as_the_system_tells(monkeypatch):
    def told(connections):
        def ask(_kind):
            if isinstance(connections, Exception):
                raise connections
            return connections

        monkeypatch.setattr(psutil, "net_connections", ask)
        return ports.holder_of(80)

    def at(port, pid, status=psutil.CONN_LISTEN):
        return SimpleNamespace(laddr=SimpleNamespace(port=port), pid=pid, status=status)

    with monkeypatch.context() as hidden:
        hidden.setattr(psutil.Process, "net_connections", lambda *_: [])
        assert "only administrators" in told(psutil.AccessDenied())
    assert "of another user" in told([at(80, None)])
    assert "cannot be seen from here" in told([at(8080, 1), at(80, 1, psutil.CONN_ESTABLISHED)])
    gone = 2**22 + 1  # no process has such a number
    assert told([at(80, gone)]) == f"by process {gone}"


def test_ones_own_process_is_named_where_the_system_tells_no_more(monkeypatch):
    """macOS lists all connections for administrators only, and one's own processes' for others."""
    asked = []

    def refused(kind):
        asked.append(kind)
        raise psutil.AccessDenied

    own = psutil.Process()
    monkeypatch.setattr(psutil, "net_connections", refused)
    with taken_ports(1) as (port, _):
        assert ports.holder_of(port) == f"by {own.name()} (process {own.pid})"
    assert asked


def test_a_port_that_is_kept_for_others_is_named_so(monkeypatch):
    """Below 1024 most systems let only administrators listen; tests may run as one."""
    real = ports._bound
    kept = lambda address, port: errno.EACCES if port == 1 else real(address, port)  # noqa: E731
    monkeypatch.setattr(ports, "_bound", kept)
    monkeypatch.setattr(psutil, "net_connections", lambda _: [])
    with pytest.raises(RunError, match="may not open port 1"):
        listen_at("127.0.0.1", 1, 1)


# content and actions


def test_the_start_page_always_leads_to_a_run_a_dataset_and_the_demo(client, studio, folder):
    empty = client.get("/").text
    make_run(folder / "dog", phase="finished", process=GONE)
    for page in (empty, client.get("/").text):
        for address in ("/new", "/data#name", "#demo-title"):
            assert f'<a class="button" href="{address}">' in page
        assert 'action="/demo"' in page
        assert 'id="demo-title"' in page
    assert 'id="name"' in client.get("/data").text


def test_the_start_page_lists_runs_and_says_where_it_looked(client, studio, folder):
    assert f"There are no runs in {folder}" in client.get("/").text
    make_run(folder / "cat", phase="training", step=40, total_steps=90, process=GONE)
    text = client.get("/parts/runs").text
    assert "cat" in text
    assert "killed" in text
    assert "40 of 90 steps" in text


@pytest.mark.parametrize("days", [-400, -1, 1, 400])
def test_a_clock_that_is_set_changes_no_state(client, studio, dog, folder, monkeypatch, days):
    """Whether a run is alive is decided by processes and locks; times are only shown."""
    make_run(folder / "cat", phase="training", step=4, total_steps=9, process=GONE)
    before, now = client.get("/parts/runs").text, time.time
    with dog.held() as held:
        held.write_status("training", step=4, total_steps=9)
        monkeypatch.setattr(time, "time", lambda: now() + days * 86400)
        page = client.get(address(studio, dog))
        assert page.status_code == 200
        assert 'class="state training"' in page.text
        for other in ("/", "/tasks", "/queue", f"{address(studio, dog)}/learning"):
            assert client.get(other).status_code == 200
    for text in (before, client.get("/parts/runs").text):
        assert 'class="state killed"' in text


def test_what_can_be_asked_depends_on_whether_the_run_lives(client, studio, dog):
    page = address(studio, dog)
    assert "Start again</button>" in client.get(page).text
    with dog.held() as held:
        held.write_status("training", step=1, total_steps=9)
        assert "No state is saved yet: all steps will be lost. Stop now?" in client.get(page).text
        held.write_status("stopped", step=3, total_steps=9)
    (dog.states / step_name(2)).mkdir(parents=True)
    assert "Resume</button>" in client.get(page).text
    assert "From the state of step 2." in client.get(page).text
    refused = client.post(f"{page}/ask/save", headers=FROM_HERE)
    assert refused.status_code == 409
    assert "No process is training this run" in refused.text
    with dog.held() as held:
        held.write_status("training", step=4, total_steps=9)
        text = client.get(page).text
        assert "Save a state now" in text
        assert "All training after step 2 will be lost. Stop now?" in text
        assert "Resume</button>" not in text
        asked = client.post(f"{page}/ask/save", headers=FROM_HERE)
        assert asked.status_code == 200
        assert "Requested: Save a state now." in asked.text
        assert client.post(f"{page}/ask/format", headers=FROM_HERE).status_code == 404
        assert [command.kind for command in waiting_commands(dog.commands)] == ["save"]
        assert client.post(f"{page}/resume", headers=FROM_HERE).status_code == 409
    assert studio.run_processes.words == []


def test_a_refusal_fits_where_its_answer_would_have_gone(client, studio, dog):
    """htmx inserts responses of every status into the page: a whole page inside would be wrong."""
    asked = f"{address(studio, dog)}/ask/save"
    part = client.post(asked, headers={**FROM_HERE, "hx-request": "true"})
    assert part.status_code == 409
    assert "Not possible: No process is training this run" in part.text
    assert "<html" not in part.text
    assert "<html" in client.post(asked, headers=FROM_HERE).text


def sampled(run, steps, names=("000.png",)):
    for step in steps:
        (run.samples / step_name(step)).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", (4, 4)).save(run.samples / step_name(step) / name)


def test_the_slider_has_every_step_with_samples(client, studio, folder):
    """A long run's slider has every step too, though one step's images are loaded at a time."""
    run = make_run(folder / "long", phase="finished", process=GONE)
    sampled(run, range(0, 2000, 10))
    (run.samples / step_name(2000)).mkdir()  # whose images are being drawn
    page = client.get(f"{address(studio, run)}/samples").text
    steps = re.search('data-steps="([^"]*)"', page)[1].split(",")
    assert steps == [str(step) for step in range(0, 2000, 10)]
    assert page.count("<img") == 2
    assert "samples/0/000.png" in page
    assert "samples/1990/000.png" in page
    assert "as the base model draws it" in page
    for step in steps[::50]:
        answer = client.get(f"{address(studio, run)}/samples/{step}/000.png")
        assert answer.headers["content-type"] == "image/png"


def test_the_newest_previews_are_those_of_the_newest_step_that_has_some(folder):
    run = make_run(folder / "late", phase="finished", process=GONE)
    assert newest_previews(run) is None
    sampled(run, [0, 50, 100], ["000.png", "001.png"])
    (run.samples / step_name(150)).mkdir()  # whose images are being drawn
    assert newest_previews(run) == (100, ["000.png", "001.png"])
    assert newest_previews(run, [0, 50, 150]) == (50, ["000.png", "001.png"])
    assert newest_previews(run, [150]) is None


def test_a_run_without_samples_of_the_base_model_says_so(client, studio, folder):
    run = make_run(folder / "late", phase="finished", process=GONE)
    (run.samples / step_name(0)).mkdir(parents=True)  # where nothing was drawn
    assert "draws no previews" in client.get(f"{address(studio, run)}/samples").text
    asked = '[previews]\nprompts = ["a cat"]\nevery_steps = 50\n'
    run.config_file.write_text(asked, encoding="utf-8")
    page = client.get(f"{address(studio, run)}/samples").text
    assert "No previews yet. The run draws them every 50 steps" in page
    sampled(run, [50])
    sampled(run, [100], ["000.png", "001.png"])
    page = client.get(f"{address(studio, run)}/samples").text
    assert "at step 50, the first with samples" in page
    assert "previews.at_first = true" in page
    assert 'data-steps="50,100"' in page
    assert page.count('class="first"') == 1  # the second prompt was added later
    assert page.count('class="shown"') == 2


def test_the_report_is_a_file_to_keep(client, studio, dog):
    answer = client.get(f"{address(studio, dog)}/report")
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]


class Visitor:
    """A request of a browser that leaves after some polls."""

    def __init__(self, looks, **headers):
        self.looks, self.headers, self.query_params = looks, headers, {}

    async def is_disconnected(self):
        self.looks -= 1
        return self.looks < 0


def events_in(text):
    """Return name (empty if none) -> data, from a piece of an event stream."""
    found = {}
    for event in filter(None, text.decode().split("\n\n")):
        lines = [line.partition(": ") for line in event.split("\n")]
        name = next((value for field, _, value in lines if field == "event"), "")
        found[name] = "\n".join(value for field, _, value in lines if field == "data")
        for field, _, value in lines:
            if field == "id":
                found["id"] = value
    return found


def test_the_stream_tells_what_is_new_and_goes_on_after_a_break(studio, dog):
    async def listen(visitor, meanwhile):
        told = []
        async for text in RunPages(studio)._told(dog, visitor):
            told.append(text)
            if len(told) == 1:
                meanwhile()
        return told

    def more():
        dog.append_metrics({"step": 4, "loss": 0.25, "time": 2.0})
        log = EventLog()
        log.open(dog.events_file)
        log.note("<b>hello</b>")
        (dog.samples / step_name(4)).mkdir()

    first, second, third = asyncio.run(listen(Visitor(3), more))
    assert "stopped" in events_in(first)[""]
    named = events_in(second)
    assert json.loads(named["metrics"]) == [{"step": 4, "values": {"loss": 0.25}}]
    assert [line["text"] for line in json.loads(named["lines"])][-1] == "<b>hello</b>"
    assert json.loads(named["samples"]) == [4]
    assert third == b": still here\n\n"
    place = {"last-event-id": events_in(first)["id"]}
    (again,) = asyncio.run(listen(Visitor(1, **place), lambda: None))
    for name in ("metrics", "lines", "samples"):
        assert events_in(again)[name] == named[name]
    for nonsense in ("x", "1.2", "9" * 400 + ".1.1", "-1.2.3"):
        (text,) = asyncio.run(listen(Visitor(1, **{"last-event-id": nonsense}), lambda: None))
        assert "metrics" not in events_in(text)


def test_streams_end_with_the_server(studio, dog):
    async def listen():
        return [text async for text in RunPages(studio)._told(dog, Visitor(10**9))]

    studio.closing.set()
    assert asyncio.run(listen()) == []


def test_metrics_that_a_resume_cut_off_are_read_anew(dog):
    watch = RunWatch(dog)
    for step in (4, 5):
        dog.append_metrics({"step": step, "loss": 0.1})
    assert [record["step"] for record in watch.look().metrics] == [4, 5]
    dog.truncate_metrics(3)
    assert [record["step"] for record in watch.look().metrics] == [3]


def test_a_page_that_missed_more_than_it_is_told_reads_all_again(studio, dog):
    """A laptop that slept for an hour would draw a straight line over the gap."""
    pages, watch = RunPages(studio), RunWatch(dog)
    dog.append_metrics({"step": 1, "loss": 0.1})
    assert "event: gap" not in pages._news(watch, dog).decode()
    for step in range(2, 503):
        dog.append_metrics({"step": step, "loss": 0.1})
    told = pages._news(watch, dog).decode()
    assert "event: gap\ndata: 1\n" in told
    assert '"step": 502' in told
    assert '"step": 2,' not in told
    dog.append_metrics({"step": 503, "loss": 0.1})
    assert "event: gap" not in pages._news(watch, dog).decode()


# curves


def write_metrics(run, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    run.metrics_file.write_text(text, encoding="utf-8")


def test_curves_are_the_numbers_of_the_run(dog):
    write_metrics(
        dog,
        [
            {"step": 1, "loss": 0.5, "lr": 1e-4, "time": 5.0, "epoch": 0},
            {"step": 1, "validation_loss": 0.7},
            {"step": 2, "loss": math.nan, "lr": 1e-4},
            {"step": 3, "loss": 0.25, "note": "x", "flag": True},
        ],
    )
    with dog.metrics_file.open("ab") as file:
        file.write(b'{"step": 4, "loss": 0.1')  # being written
    assert read_curves(dog.metrics_file) == {
        "loss": ([1, 3], [0.5, 0.25]),
        "lr": ([1, 2], [1e-4, 1e-4]),
        "validation_loss": ([1], [0.7]),
    }
    assert read_curves(dog.path / "missing.jsonl") == {}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4000), st.integers(10, 200))
def test_thinning_keeps_order_ends_of_the_range_and_few_points(values, points):
    steps, kept = curves._thinned(list(range(len(values))), values, points)
    assert len(kept) <= max(points + 2, 2)
    assert steps == sorted(set(steps))
    assert (min(kept), max(kept)) == (min(values), max(values))
    assert all(values[step] == value for step, value in zip(steps, kept, strict=True))


def test_a_sketch_of_a_large_file_has_its_shape(dog, monkeypatch):
    monkeypatch.setattr(curves, "SKETCHED_FROM", 1000)
    monkeypatch.setattr(curves, "_SKETCHED_LINES", 200)
    write_metrics(dog, [{"step": n, "loss": float(n)} for n in range(1, 5001)])
    steps, values = read_curves(dog.metrics_file, exact=False)["loss"]
    assert (steps[0], steps[-1]) == (1, 5000)
    assert 150 < len(steps) < 250
    assert steps == sorted(set(steps))
    assert values == [float(step) for step in steps]
    exact, _ = read_curves(dog.metrics_file)["loss"]
    assert len(exact) > len(steps)


def test_the_server_imports_no_torch():
    from test_architecture import loaded_modules

    loaded = loaded_modules("import impasto.studio.app, impasto.cli.studio")
    assert not loaded & {"torch", "numpy", "transformers", "diffusers"}


# tasks


def test_a_task_tells_what_it_does_and_how_it_ended(studio, client, tmp_path):
    """A real command is run, and the studio may be restarted meanwhile."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / "a.png")
    images = images.rename(tmp_path / "my images")
    good = studio.tasks.start(["dataset", "scan", images], "Look <at> images", "/data")
    bad = studio.tasks.start(["dataset", "scan", tmp_path / "missing"], "Fails")
    for name in (good, bad):
        studio.tasks._started[name].wait()
    again = Studio(studio.folders, studio.home, studio.queue)  # knows no process
    done, failed = again.tasks.find(good), again.tasks.find(bad)
    assert again.tasks.state_of(done).state == "done"
    state = again.tasks.state_of(failed)
    assert (state.state, state.code) == ("failed", 3)
    assert "missing" in state.error
    page = client.get(f"/tasks/{good}")
    assert page.status_code == 200
    assert "Look &lt;at&gt; images" in page.text
    assert f">{command('dataset', 'scan', images)}<" in html.unescape(page.text)
    assert "hx-trigger" not in page.text  # it is over: no more polling
    assert "missing" in client.get(f"/tasks/{bad}/part").text
    assert [t.path.name for t in again.tasks.all()] == sorted([good, bad], reverse=True)
    assert client.get("/tasks").text.count('class="row"') == 2
    assert client.get("/tasks/20260101-000000-abcdef").status_code == 404
    assert client.get("/tasks/..%2f..").status_code == 404


@pytest.mark.parametrize(
    ("events", "alive", "state"),
    [
        ([], True, "starting"),
        ([], False, "killed"),
        ([{"kind": "begin"}], True, "working"),
        ([{"kind": "begin"}], False, "killed"),
        ([{"kind": "begin"}, {"kind": "ended", "code": 0}], False, "done"),
        ([{"kind": "begin"}, {"kind": "ended", "code": 143}], False, "stopped"),
        ([{"kind": "begin"}, {"kind": "ended", "code": 3}], True, "failed"),
        ([{"kind": "begin"}, {"kind": "ended", "code": "x"}], False, "killed"),
    ],
)
def test_a_task_stands_as_its_events_and_its_process_say(tmp_path, events, alive, state):
    task = TaskDirectory(tmp_path)
    token = current_process().token if alive else GONE
    task.description_file.write_text(json.dumps({"process": token}), encoding="utf-8")
    lines = "".join(json.dumps(event) + "\n" for event in events)
    task.events_file.write_text(lines, encoding="utf-8")
    assert task.state().state == state


def test_the_events_of_a_task_are_read_on_from_the_last_look(studio, client, monkeypatch):
    name = "20260101-000000-abcdef"
    file = studio.home / "tasks" / name / "events.jsonl"
    file.parent.mkdir(parents=True)
    (file.parent / "task.json").write_text(json.dumps({"process": GONE}), encoding="utf-8")
    lines = [{"kind": "begin"}, *({"kind": "note", "text": f"note {n}"} for n in range(50))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    looked = []

    def reading(file, offset=0):
        looked.append(offset)
        return read_events(file, offset)

    monkeypatch.setattr(task_events, "read_events", reading)
    assert "note 49" in client.get(f"/tasks/{name}/part").text
    size = file.stat().st_size
    looked.clear()
    with file.open("a", encoding="utf-8") as events:
        events.write('{"kind": "note", "text": "the last"}\n{"kind": "ended", "code": 0}\n')
    page = client.get(f"/tasks/{name}/part").text
    assert "the last" in page
    assert "note 49" in page
    assert set(looked) == {size}
    assert studio.tasks.state_of(studio.tasks.find(name)).state == "done"


def test_a_task_of_before_a_restart_of_the_machine_is_over(tmp_path):
    """The process cannot be checked: its identity belongs to an earlier boot."""
    task = TaskDirectory(tmp_path)
    elsewhere = ProcessIdentity(os.getpid(), current_process().start, "000000").token
    task.description_file.write_text(json.dumps({"process": elsewhere}), encoding="utf-8")
    task.events_file.write_text('{"kind": "begin"}\n', encoding="utf-8")
    assert task.state().state == "working"  # it may be another container
    os.utime(task.events_file, (1e9, 1e9))
    assert task.state().state == "killed"


def test_a_task_is_stopped_by_its_page(studio, client, tmp_path):
    """The studio may not have started it itself, for example after a restart."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    task = TaskDirectory(studio.home / "tasks" / "20260101-000000-abcdef")
    task.path.mkdir(parents=True)
    about = {"words": ["x"], "process": identity_of(process.pid).token}
    task.description_file.write_text(json.dumps(about), encoding="utf-8")
    assert task.state().is_alive
    answer = client.post(f"/tasks/{task.path.name}/stop", headers=FROM_HERE)
    assert answer.status_code == 200
    assert process.wait(timeout=60) != 0
    assert task.state().state == "killed"  # it recorded no end
    client.post(f"/tasks/{task.path.name}/stop", headers=FROM_HERE)  # nothing to stop: no error


# listening


@pytest.mark.parametrize(
    ("address", "first", "known", "unknown"),
    [
        ("127.0.0.1", "127.0.0.1", "localhost", "10.0.0.5"),
        ("::1", "[::1]", "localhost", "10.0.0.5"),
        ("10.0.0.5", "10.0.0.5", "10.0.0.5", "localhost"),
        ("fd00::5", "[fd00::5]", "[fd00::5]", "127.0.0.1"),
        ("0.0.0.0", None, "localhost", "evil.example"),
        ("::", None, "127.0.0.1", "evil.example"),
    ],
)
def test_a_server_goes_by_the_names_of_where_it_listens(address, first, known, unknown):
    access = Access(PORT, hosts_of(address))
    assert first is None or access.address.startswith(f"http://{first}:{PORT}/?token=")
    assert access.knows_host(f"{known}:{PORT}")
    assert not access.knows_host(f"{unknown}:{PORT}")


def test_a_studio_for_the_network_needs_the_token_and_says_what_it_means(tmp_path):
    words = [sys.executable, "-m", "impasto", "studio", "--runs", tmp_path, "--listen", "0.0.0.0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        address = lines[1].strip()
        assert lines[3].startswith("Warning: other machines can reach the studio.")
        assert "the connection is not encrypted" in lines[3]
        port = int(re.search(r":(\d+)/", address)[1])
        local = address.replace(re.search(r"//([^:]+):", address)[1], "127.0.0.1")
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx2.ConnectError):
                assert httpx2.get(f"http://127.0.0.1:{port}/").status_code == 403
                break
            assert time.monotonic() < until
            time.sleep(0.05)
        assert httpx2.get(local).status_code == 200
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("address", ["256.1.1.1", "evil.example", "203.0.113.7"])
def test_an_address_of_another_machine_is_refused(tmp_path, address):
    refused = impasto("studio", "--runs", tmp_path, "--listen", address)
    assert refused.returncode == 5
    assert f"--listen {address} is not an address" in refused.stderr


# the start page


def test_the_start_page_says_what_the_machine_has(client, studio):
    assert "of RAM free" in client.get("/parts/machine").text
    remembered = studio.home / "machine.json"
    found = json.loads(remembered.read_text(encoding="utf-8"))
    remembered.write_text(json.dumps({**found, "advice": ["<b>"]}), encoding="utf-8")
    text = client.get("/parts/machine").text  # not examined again within minutes
    assert "Advice about this machine" in text
    assert "<li>&lt;b&gt;</li>" in text


def test_a_machine_that_cannot_be_examined_leaves_the_page(client, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    answer = client.get("/parts/machine")
    assert answer.status_code == 200
    assert "/nowhere/python" in answer.text


def test_the_demo_is_started_in_the_folder_of_runs_and_finds_its_place(
    client, studio, folder, monkeypatch
):
    started = []

    def start_apart(words, log, where, environment):
        started.append(([str(word) for word in words], where))
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    monkeypatch.setattr(tasks_module, "start_apart", start_apart)
    first, second = (
        client.post("/demo", headers=FROM_HERE, follow_redirects=False) for _ in range(2)
    )
    assert first.status_code == 303
    assert started == [(["demo", "--out", str(folder / "impasto-demo")], folder)]
    page = first.headers["location"]
    assert second.headers["location"] == page  # the running one
    run = make_run(folder / "impasto-demo", phase="training")
    assert f'href="/runs/{studio.folders.name_of(run)}"' in client.get(page).text
    client.post(f"{page}/stop", headers=FROM_HERE)
    studio.tasks._started[page.rpartition("/")[2]].wait(timeout=60)
    client.post("/demo", headers=FROM_HERE, follow_redirects=False)
    assert started[1][0][-1] == str(folder / "impasto-demo-2")
    for process in studio.tasks._started.values():
        process.kill()
        process.wait()


def test_a_place_to_begin_in_is_made_once_and_keeps_what_is_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console = Console()
    folders = _begin_with_demo(Path("here"), console)
    assert folders == {n: (Path("here") / n,) for n in ("runs", "data", "models")}
    images = tmp_path / "here" / "data" / "demo"
    assert len(list(images.glob("*.webp"))) == len(list(PICTURES.glob("*.webp"))) == 100
    assert (tmp_path / "here" / "models" / "demo-base" / "model_index.json").is_file()
    assert "MIT License" in (tmp_path / "here" / "NOTICE.txt").read_text(encoding="utf-8")
    changed = next(images.glob("*.txt"))
    changed.write_text("my words", encoding="utf-8")
    _begin_with_demo(Path("here"), console)
    assert changed.read_text(encoding="utf-8") == "my words"


# strangers' folders


def test_no_code_of_a_folder_is_run_that_a_command_is_started_in(studio, tmp_path):
    folder = tmp_path / "evil"
    (folder / "impasto").mkdir(parents=True)
    for name in ("click.py", "random.py", "impasto/__init__.py"):
        (folder / name).write_text(
            f"open({str(tmp_path / 'was-run')!r}, 'w').close()\n", encoding="utf-8"
        )
    name = studio.tasks.start(["--version"], "Say the version", folder=folder)
    assert studio.tasks._started[name].wait() == 0
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("place", [".impasto", ".impasto/studio", ".impasto/studio/edits"])
def test_a_studio_whose_own_folder_leads_elsewhere_does_not_start(tmp_path, place):
    runs, elsewhere = tmp_path / "runs", tmp_path / "documents"
    (runs / place).parent.mkdir(parents=True)
    elsewhere.mkdir()
    (runs / place).symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(RunError, match="a link that leads out"):
        require_own(runs / HOME_FOLDER, runs)
    (runs / place).unlink()
    (runs / place).mkdir(exist_ok=True)
    require_own(runs / HOME_FOLDER, runs)


def test_a_task_of_before_a_restart_is_over_at_once(tmp_path):
    """On the same machine another boot id means that no process from then is running."""
    task = TaskDirectory(tmp_path)
    elsewhere = ProcessIdentity(os.getpid(), current_process().start, "000000").token
    said = {"kind": "begin", "process": elsewhere, "host": socket.gethostname(), "boot": "before"}
    task.events_file.write_text(json.dumps(said) + "\n", encoding="utf-8")
    assert task.state().state == ("killed" if sys.platform == "linux" else "working")


def test_a_task_can_be_asked_to_stop_by_a_file(tmp_path):
    """On Windows no signal reaches a process without a console."""
    task = TaskDirectory(tmp_path)
    program = (
        "import signal, sys, threading, time; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored beneath some shells\n"
        "from impasto.cli.recorded import stop_when_asked\n"
        "from impasto.runs.tasks import TaskDirectory\n"
        "task = TaskDirectory(Path(sys.argv[1]))\n"
        "threading.Thread(target=stop_when_asked, args=(task,), daemon=True).start()\n"
        "try:\n    print('begun', flush=True)\n    while True:\n        time.sleep(0.05)\n"
        "except KeyboardInterrupt:\n    print('stopped')\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            task.stop_file.write_text("", encoding="utf-8")
            assert process.communicate(timeout=120)[0] == "stopped\n"
        finally:
            process.kill()


@pytest.mark.skipif(os.name == "nt", reason="the system's folder is this user's own on Windows")
def test_the_page_that_opens_itself_is_read_by_this_user_and_a_browser_alone(tmp_path, monkeypatch):
    """A browser installed as a snap reads neither /tmp nor hidden folders of the home folder."""
    pages = []
    monkeypatch.setattr(webbrowser, "open", lambda url: pages.append(Path(unquote(url[7:]))))
    runs, home = tmp_path / "runs", tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    home.mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / ".impasto").write_text("")
    for folder, inside in (
        (runs, runs / ".impasto" / "studio"),
        (home, home),
        (tmp_path / "taken", Path(tempfile.gettempdir())),
    ):
        with _opened("http://127.0.0.1:7870/?key=abc", folder):
            page = pages[-1]
            assert page.parent.parent == inside
            assert page.parent.stat().st_mode & 0o077 == 0
            assert "http://127.0.0.1:7870/?key=abc" in page.read_text(encoding="utf-8")
        assert not page.parent.exists()
