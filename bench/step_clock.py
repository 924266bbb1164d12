"""Run another program's script and record when each of its optimizer steps ends.

    python step_clock.py TIMES SCRIPT [ARGUMENTS ...]

Run by the Python interpreter of the other program's environment: needs PyTorch and nothing of
Impasto. The script is unchanged; a PyTorch hook is called after every step of every optimizer, so
no progress bar is parsed. TIMES gets one line per step: seconds of a clock.
"""

import runpy
import sys
import time
from pathlib import Path


def main() -> None:
    times, script, *words = sys.argv[1:]
    from torch.optim.optimizer import register_optimizer_step_post_hook

    with Path(times).open("w", buffering=1, encoding="utf-8") as file:

        def note(*_: object) -> None:
            print(time.perf_counter(), file=file)

        register_optimizer_step_post_hook(note)
        sys.argv = [script, *words]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
