"""The dataset at scale: decoding against Pillow and OpenCV, large metadata, a million records."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from impasto.data.engines.stages import LocalExecutor, chunks
from impasto.data.pixels.rendering import Render
from impasto.data.planning.plan import plan_images
from impasto.data.records import PlannedImage, Size
from impasto.data.scanning.scan import scan_folder

PICTURES = 120
PHOTO = (2400, 1600)
SMALL = (900, 700)
WORKERS = 2
ENTRIES = 100_000
RECORDS = 1_000_000


def measure(scratch: Path) -> dict[str, str]:
    rows: dict[str, str] = {}
    for name, size in (("photographs of 2400x1600", PHOTO), ("images of 900x700", SMALL)):
        rows |= decoding(scratch / name.replace(" ", "-"), name, size)
    write_metadata_and_files(scratch)
    rows |= in_a_process_of_its_own("metadata", scratch)
    rows |= in_a_process_of_its_own("records", scratch)
    return rows


def decoding(folder: Path, name: str, size: tuple[int, int]) -> dict[str, str]:
    """Time decoding, resizing and cropping to 512 px buckets, two workers each; median of 3."""
    draw_photographs(folder, size)
    plan = plan_images(scan_folder(folder).records, Size(512, 512)).images
    executor = LocalExecutor(Render(), WORKERS, processes=True)

    def ours() -> None:
        for _ in executor.run(chunks(plan, 4)):
            pass

    ways: dict[str, Callable[[], None]] = {
        "Impasto": ours,
        "Pillow": lambda: on_threads(with_pillow, plan),
        "OpenCV": lambda: on_threads(with_opencv, plan),
    }
    ours()  # warms the file cache
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(3):
        for way, work in ways.items():
            began = time.perf_counter()
            work()
            seconds[way].append(time.perf_counter() - began)
    median = {way: sorted(times)[1] for way, times in seconds.items()}
    own = median["Impasto"]
    return {
        f"{name}: decode to 512 px, two processes, files/s": f"{PICTURES / own:.0f}",
        **{
            f"{name}: speed against {way} alone, two threads": f"{median[way] / own:.2f}x"
            for way in ("Pillow", "OpenCV")
        },
    }


def on_threads(work: Callable[[PlannedImage], object], plan: tuple[PlannedImage, ...]) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(work, plan):
            pass


def with_pillow(planned: PlannedImage) -> np.ndarray:
    with Image.open(planned.record.path) as image:
        resized = image.convert("RGB").resize(planned.resized.wh, Image.Resampling.LANCZOS)
    return np.asarray(resized.crop(planned.crop.ltrb))


def with_opencv(planned: PlannedImage) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    pixels = cv2.imread(str(planned.record.path), cv2.IMREAD_COLOR)
    resized = cv2.resize(pixels, planned.resized.wh, interpolation=cv2.INTER_AREA)
    left, top, right, bottom = planned.crop.ltrb
    return np.ascontiguousarray(resized[top:bottom, left:right, ::-1])


def draw_photographs(folder: Path, size: tuple[int, int], count: int = PICTURES) -> None:
    """Write JPEGs as smooth as photographs: a little noise, enlarged, with fine grain."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 255, (24, 36, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        grain = rng.integers(0, 12, (size[1], size[0], 1), dtype=np.uint8)
        pixels = np.minimum(np.asarray(smooth), 243) + grain
        Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=92)


def in_a_process_of_its_own(part: str, scratch: Path) -> dict[str, str]:
    program = [sys.executable, "-m", "bench.pictures", part, str(scratch)]
    done = subprocess.run(program, check=True, capture_output=True, text=True, encoding="utf-8")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def write_metadata_and_files(scratch: Path) -> None:
    folder = scratch / "many"
    entries = {}
    for number in range(ENTRIES):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        words = {"caption": f"an image with the number {number}", "tags": "one, two, three, four"}
        entries[path.relative_to(folder).as_posix()] = words
    (scratch / "meta.json").write_text(json.dumps(entries), encoding="utf-8")


def metadata(scratch: Path) -> dict[str, str]:
    """Time reading 100,000 metadata entries, and then finding their files, which are empty."""
    from impasto.data.folders.metadata import ImageFinder, read_metadata

    before, began = peak_mib(), time.perf_counter()
    found = read_metadata(scratch / "meta.json")
    read = time.perf_counter()
    finder = ImageFinder(scratch / "many")
    missing = sum(not isinstance(finder.find(entry.key), str) for entry in found.entries)
    seconds = time.perf_counter() - read
    return {
        "metadata of 100,000 entries, read, s": f"{read - began:.2f}",
        "the same, files found, s": f"{seconds:.2f} ({missing} missing)",
        "the same, memory at most, MiB": f"{peak_mib() - before:.0f}",
    }


def records(scratch: Path) -> dict[str, str]:  # noqa: ARG001
    """Time planning a million records of different sizes."""
    import random

    from impasto.data.records import FileStamp, ImageRecord

    rng, stamp, path = random.Random(0), FileStamp(1, 1), Path("x.png")
    sizes = (Size(rng.randrange(200, 5000), rng.randrange(200, 5000)) for _ in range(RECORDS))
    made = [ImageRecord(path, size, stamp) for size in sizes]
    began = time.perf_counter()
    plan = plan_images(made, Size(512, 512))
    seconds = time.perf_counter() - began
    return {
        f"plan of {len(plan.images):,} records of different sizes, s": f"{seconds:.1f}",
        "the same, memory of the process, records included, MiB": f"{peak_mib():.0f}",
    }


def peak_mib() -> float:
    """Return this process's peak memory in MiB, or its current memory if no peak is known."""
    status = Path("/proc/self/status")
    if not status.is_file():
        import psutil

        return psutil.Process().memory_info().rss / 2**20  # type: ignore[no-any-return]
    lines = status.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    part, place = sys.argv[1], Path(sys.argv[2])
    print(json.dumps({"metadata": metadata, "records": records}[part](place)))
