"""Downloads from the Hugging Face Hub, shown as a stage of this program's own, in MiB."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from impasto.progress import Advance, Progress, in_mib


def download_snapshot(name: str, progress: Progress, **wanted: Any) -> Path:
    """The folder of a repository's files, with what is missing downloaded.

    Args:
        name: What is shown of it.
        progress: Who is told of the MiB that come.
        wanted: As `huggingface_hub.snapshot_download` takes it.

    Raises:
        OSError, ValueError: As `snapshot_download`.
    """
    from huggingface_hub import snapshot_download

    with progress.stage(f"Downloading {name}", None, "MiB") as advance:
        return Path(snapshot_download(**wanted, tqdm_class=_counter_of_bytes(advance)))


def _counter_of_bytes(advance: Advance) -> Any:
    """A class in the place of tqdm's bar: draws nothing, and hands on the bytes that come.

    huggingface_hub makes bars for bytes, unit B, and one for files, and moves them from threads.
    Two of them count the same bytes, as they arrive and as they are written: the one that is ahead
    is told.
    """
    from tqdm.auto import tqdm

    count, lock, told = in_mib(advance), threading.Lock(), 0

    class Counter(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._is_of_bytes, self._bytes = options.get("unit") == "B", 0
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal told
            if self._is_of_bytes and n:
                with lock:
                    self._bytes += int(n)
                    count(max(0, self._bytes - told))
                    told = max(told, self._bytes)
            return None

    return Counter
