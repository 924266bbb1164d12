"""The studio's response times, memory and CPU use."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from PIL import Image

from bench.studio_drawn import EMPTY, first_drawn
from impasto.data.inspecting.image_list import (
    ImageList,
    ListedImage,
    folders_below,
    write_image_list,
)
from impasto.runs import RunDirectory

LINES = 100_000
IMAGES = 50_000
FIRST_IMAGES = 24
RUNS = 10
WATCHED_S = 60.0


def measure(folder: Path, minutes: float = WATCHED_S / 60) -> dict[str, str]:
    """Measure the pages of ten runs, the curves of one with 100,000 lines, and the server's memory.

    Args:
        folder: Where the runs are made.
        minutes: How long the server is monitored with three open pages.
    """
    runs = [make_run(folder / "runs" / f"run-{number}", LINES) for number in range(RUNS)]
    found: dict[str, str] = {}
    bare = seconds_of(lambda: subprocess.run([sys.executable, "-c", "import starlette"]))
    began = time.perf_counter()
    with served(folder / "runs") as (server, address):
        started = time.perf_counter() - began
        found["start to its address"] = (
            f"{started:.2f} s ({started / bare:.1f}x Python and starlette)"
        )
        visitor = Visitor(address)
        empty = least(visitor, EMPTY)
        found["an empty page"] = f"{1000 * empty:.1f} ms"
        pages = visitor.pages()
        run = pages[0]
        for name, path in {
            "start page, 10 runs": "/",
            "page of a run": run,
            f"first curves of {LINES:,} lines": f"{run}/curves",
        }.items():
            found[name] = against_empty(least(visitor, path), empty)
        bare = seconds_of(lambda: [*map(json.loads, runs[0].metrics_file.open("rb"))])
        exact = seconds_of(lambda: visitor.get(f"{run}/curves?exact=1"))
        found[f"exact curves of {LINES:,} lines"] = (
            f"{exact:.1f} s ({exact / bare:.1f}x json.loads of each line)"
        )
        found["the same again"] = against_empty(least(visitor, f"{run}/curves?exact=1"), empty)
        found |= first_drawn(address, pages[1:], LINES)
        found |= monitored(server.pid, visitor, pages[:3], runs[0], minutes)
    return found


def monitored(
    server: int, visitor: Visitor, pages: list[str], run: RunDirectory, minutes: float
) -> dict[str, str]:
    """Return the server's memory and CPU while three pages are open and a run continues."""
    visitor.get(f"{pages[0]}/curves?exact=1")  # waits for curves requested earlier
    streams = [visitor.open(f"{page}/stream") for page in pages]
    process = psutil.Process(server)
    cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
    sizes: list[int] = []
    while time.monotonic() < began + 60 * minutes:
        sizes.append(process.memory_info().rss)
        run.append_metrics({"step": LINES + 1, "loss": 0.5})
        time.sleep(1)
    used, seconds = sum(process.cpu_times()[:2]) - cpu, time.monotonic() - began
    for stream in streams:
        stream.close()
    course = ", ".join(f"{size / 1e6:.0f}" for size in sizes[:: max(1, len(sizes) // 6)])
    return {
        "memory with 10 runs and 3 open pages": f"{max(sizes) / 1e6:.0f} MB at most",
        f"memory in the course of {seconds / 60:.0f} minutes": f"{course} MB",
        "share of one core, with 3 open pages": f"{100 * used / seconds:.1f} %",
    }


def measure_data(folder: Path) -> dict[str, str]:
    """Measure a gallery of 50,000 images from a warm cache, and a new folder's first thumbnails."""
    found: dict[str, str] = {}
    many, few = folder / "data" / "many", folder / "data" / "new"
    make_images(many, 1)
    listed = [
        ListedImage(
            f"{n:05}.jpg", 120_000, n, 1024, 768, "576x448", (598, 448), (11, 0, 587, 448), 0.037,
            0.0, ", ".join(f"tag {n * k % 300}" for k in range(20)), 20, captioned=n % 9 > 0,
        )
        for n in range(IMAGES)
    ]  # fmt: skip
    out = many / ".impasto" / "studio" / "images.jsonl"
    out.parent.mkdir(parents=True)
    write_image_list(out, ImageList(listed, folders=folders_below(many)))
    make_images(few, FIRST_IMAGES)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    with served(folder / "runs", "--data", str(folder / "data")) as (_, address):
        visitor = Visitor(address)
        pages = dict(
            re.findall(r'href="(/data/[\w.-]+)".*?<b>(\w+)</b>', visitor.get("/data"), re.S)
        )
        gallery, new = (next(a for a, name in pages.items() if name == n) for n in ("many", "new"))
        bare = seconds_of(lambda: [*map(json.loads, out.open("rb"))])
        first = seconds_of(lambda: visitor.get(gallery))
        found[f"gallery of {IMAGES:,} images, the list read first"] = (
            f"{first:.2f} s ({first / bare:.1f}x json.loads of each line)"
        )
        empty = least(visitor, EMPTY)
        for name, path in {
            "a page": f"{gallery}?page=250",
            "images without a caption": f"{gallery}?caption=none",
            "images with a tag": f"{gallery}?tag=tag+7",
        }.items():
            found[f"gallery of {IMAGES:,} images, {name}"] = against_empty(
                least(visitor, path), empty
            )
        bare = seconds_of(lambda: [small(few / f"{n:05}.jpg") for n in range(FIRST_IMAGES)])
        began = time.perf_counter()
        thumbnails = re.findall(r'src="(/data/[^"]+)"', visitor.get(new))
        with ThreadPoolExecutor(6) as browser:  # browsers open six connections
            list(browser.map(visitor.read, thumbnails[:FIRST_IMAGES]))
        shown = time.perf_counter() - began
        found[f"new folder and its first {FIRST_IMAGES} thumbnails"] = (
            f"{shown:.2f} s ({shown / bare:.1f}x Pillow in one process)"
        )
    return found


def make_images(folder: Path, count: int) -> None:
    """Write a folder of JPEGs of noise, half the width and height of a camera phone's."""
    folder.mkdir(parents=True)
    noise = Image.effect_noise((1500, 1125), 80).convert("RGB")
    for number in range(count):
        noise.save(folder / f"{number:05}.jpg", quality=85)


def make_run(path: Path, lines: int) -> RunDirectory:
    """Write a finished run with `lines` lines of metrics like a real run's."""
    path.mkdir(parents=True)
    run = RunDirectory(path)
    run.config_file.write_text("", encoding="utf-8")
    status = {"phase": "finished", "step": lines, "total_steps": lines, "updated_at": time.time()}
    run.status_file.write_text(json.dumps(status), encoding="utf-8")
    with run.metrics_file.open("w", encoding="utf-8") as file:
        for step in range(1, lines + 1):
            record = {
                "step": step, "epoch": step // 100, "samples_seen": 4 * step,
                "loss": 0.5 + 1 / step, "loss_t0_249": 0.1, "loss_t250_499": 0.2,
                "loss_t500_749": 0.3, "loss_t750_999": 0.4,
                "lr": 5e-6, "images_per_s": 3.5, "data_wait": 0.01, "memory_mib": 9000,
                "grad_norm": 0.7, "time": 1.7e9 + step,
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
    return run


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the studio in a separate process; yield it with the address that it prints."""
    words = [sys.executable, "-m", "impasto", "studio", "--runs", str(folder), *options]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        lines = server.stdout or ()
        yield server, next(line.strip() for line in lines if line.startswith("http"))
    finally:
        server.terminate()
        server.wait()


class Visitor:
    """A client that sends the studio's cookie, as a browser does.

    Args:
        address: The address that the studio prints.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._host = parts.netloc
        answer = self._answer(f"/?{parts.query}", {})
        self._cookie = {"cookie": (answer.headers["set-cookie"] or "").partition(";")[0]}

    def pages(self) -> list[str]:
        """Return the paths of the pages of all runs, from the links on the start page."""
        return list(dict.fromkeys(re.findall(r"/runs/[\w.-]+", self.get("/"))))

    def get(self, path: str) -> str:
        """Return the text of a page."""
        return self.read(path).decode("utf-8")

    def read(self, path: str) -> bytes:
        """Return the bytes of a response."""
        return self._answer(path, self._cookie).read()

    def open(self, path: str) -> http.client.HTTPResponse:
        """Return a response that has not been read yet."""
        return self._answer(path, self._cookie)

    def _answer(self, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        connection.request("GET", path, headers=headers)
        return connection.getresponse()


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def against_empty(seconds: float, empty: float) -> str:
    """Format a duration, with its ratio to that of an empty page."""
    return f"{1000 * seconds:.0f} ms ({seconds / empty:.1f}x an empty page)"


def small(file: Path) -> Image.Image:
    """Return a thumbnail by Pillow alone, decoded at 1/8 scale if that is large enough."""
    with Image.open(file) as image:
        image.draft("RGB", (256, 256))
        image.thumbnail((256, 256))
        return image.copy()


def least(visitor: Visitor, path: str, times: int = 5) -> float:
    """Return the shortest time in seconds of a page over several requests, without the first."""
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        visitor.get(path)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
