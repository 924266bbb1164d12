"""Downloads from the Hugging Face Hub, shown as a stage of this program's progress, in MiB."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from impasto.progress import Advance, Progress, in_mib


def download_snapshot(name: str, progress: Progress, **wanted: Any) -> Path:
    """Download the missing files of a repository, and return its local folder.

    Args:
        name: Name to show.
        progress: Shows the MiB received.
        wanted: Arguments of `huggingface_hub.snapshot_download`.

    Raises:
        OSError, ValueError: As for `snapshot_download`.
    """
    from huggingface_hub import snapshot_download

    with progress.stage(f"Downloading {name}", None, "MiB") as advance:
        return Path(snapshot_download(**wanted, tqdm_class=_counter_of_bytes(advance)))


def _counter_of_bytes(advance: Advance) -> Any:
    """Return a replacement for tqdm's bar that draws nothing, and passes on the bytes received.

    huggingface_hub makes bars for bytes, unit B, and one for files, and advances them from threads.
    Two of them count the same bytes, as they arrive and as they are written: the larger count is
    passed on.
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
