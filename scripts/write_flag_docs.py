"""Write docs/flags.md from the table of sd-scripts' flags; with --check, only compare.

python scripts/write_flag_docs.py [--check]
"""

import sys
from pathlib import Path

from impasto.sdscripts.flags import ROWS, SCRIPTS, Flag

TARGET = Path(__file__).parents[1] / "docs" / "flags.md"
HEAD = """# Flags of sd-scripts' fine_tune.py and sdxl_train.py

What becomes of each, from `src/impasto/sdscripts/flags.py`. Written by
`scripts/write_flag_docs.py`; do not edit by hand. Settings are described in [config.md](config.md),
and the differences in [The old command](guide/sd-scripts.md).
"""
COLUMNS = "| flag | here |\n|---|---|\n"


def fate(flag: Flag) -> str:
    if flag.refusal:
        return f"refused: {flag.refusal}"
    if flag.notice:
        return f"changes nothing, and says so: {flag.notice}"
    if flag.differs:
        return f"not quite as there: {flag.differs}"
    return f"`{flag.to}`" if flag.to else "as there"


def table(script: str | None) -> str:
    rows = [f"| `--{flag.name}` | {fate(flag)} |" for flag in ROWS if flag.only == script]
    return COLUMNS + "\n".join(rows) + "\n"


def page() -> str:
    parts = [f"## Both commands\n\n{table(None)}"]
    parts += [f"## {script} alone\n\n{table(script)}" for script in SCRIPTS]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != page())
    TARGET.write_text(page(), encoding="utf-8", newline="\n")
