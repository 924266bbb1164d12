"""`python -m bench [PART ...]`: measure on this machine.

The parts are data, pictures, convert, training, tagging, startup, full and memory. Without names,
all but the last two are measured: they take 20 GB of memory, 15 GB of disk and ten minutes each.

Results also go to `bench/results.json`, which git ignores; RESULTS.md holds tables worth keeping.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import convert, data, memory, pictures, startup, tagging, training
from impasto.training.environment import describe_environment

PARTS = {
    "data": data.measure,
    "pictures": pictures.measure,
    "convert": convert.measure,
    "training": training.measure,
    "tagging": tagging.measure,
    "startup": startup.measure,
    "full": training.measure_full,
    "memory": memory.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS))
    chosen = parser.parse_args().parts or list(PARTS)[:-2]
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    console = Console(soft_wrap=True)
    environment = describe_environment()
    results = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for part in chosen:
            console.print(f"Measuring {part} ...")
            results[part] = PARTS[part](Path(scratch) / part)
    table = Table("part", "what", "value", title=f"{environment['system']}, CPU")
    for part, rows in results.items():
        for name, value in rows.items():
            table.add_row(part, name, value)
    console.print(table)
    Path(__file__).with_name("results.json").write_text(
        json.dumps({"environment": environment, "results": results}, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
