"""The trainer's work for the studio, as a fraction of the CPU time of its steps.

`python -m bench.studio_share FOLDER STEPS` trains the demo while timing the functions that poll for
commands and write status and events. It uses the CPU clock of the calling thread, so that other
load on the machine does not affect the result. The studio itself runs no code in the trainer; a
trainer does all of this whether or not a studio is open. The cost of waking two threads is not
included.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from impasto.allocation import tune_allocation

SETTINGS = (
    "logging.every_steps=10",
    "validation.every_steps=1000000",
    "previews.every_steps=1000000",
    "saving.state_every_steps=1000000",
)
_WARM_UP = 20


class Shares:
    """Adds up the CPU time of functions, and of the process from one step to another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps = 0
        self._began = self._ended = 0.0
        self._spent: defaultdict[str, float] = defaultdict(float)

    def time(self, place: Any, name: str, part: str) -> None:
        """Replace a function by a timed one."""
        setattr(place, name, self._timed(getattr(place, name), part))

    def count(self, place: Any, name: str) -> None:
        """Count a step at each call of a function."""
        function = getattr(place, name)

        @functools.wraps(function)
        def counted(*arguments: Any, **more: Any) -> Any:
            self._steps += 1
            self._ended = time.process_time()
            if self._steps == _WARM_UP:
                self._began = self._ended
                with self._lock:
                    self._spent.clear()
            return function(*arguments, **more)

        setattr(place, name, counted)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **more)
            finally:
                with self._lock:
                    self._spent[part] += time.thread_time() - began

        return timed

    def found(self) -> dict[str, float]:
        """Return the CPU seconds of a step, and the fraction of them that each part takes."""
        used = self._ended - self._began
        shares = {part: spent / used for part, spent in self._spent.items()}
        return {"step_s": used / (self._steps - _WARM_UP), **shares}


def main() -> None:
    """Train and print the results as JSON."""
    tune_allocation()
    from impasto import files
    from impasto.demo.recipe import demo_config
    from impasto.runs.events import EventLog
    from impasto.runs.status import StatusWriter
    from impasto.training.lifecycle.requests import Requests
    from impasto.training.monitoring import command_listener
    from impasto.training.trainer import train

    shares = Shares()
    shares.time(command_listener, "waiting_commands", "looking for commands")
    shares.time(files, "write_json", "status.json and other small files")
    shares.time(StatusWriter, "note", "noting the step")
    shares.time(EventLog, "add", "events.jsonl")
    for name in ("asked", "stop_signal", "answer"):
        shares.time(Requests, name, "what is asked for")
    shares.count(Requests, "asked")
    folder, steps = Path(sys.argv[1]), sys.argv[2]
    train(demo_config(folder, (*SETTINGS, f"training.max_steps={steps}")))
    print(json.dumps(shares.found()))


if __name__ == "__main__":
    main()
