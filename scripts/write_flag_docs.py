"""Write docs/flags.md from the table of sd-scripts' flags; with --check, only compare.

python scripts/write_flag_docs.py [--check]
"""

import sys
from pathlib import Path

from impasto.sdscripts.flag import SCRIPTS, Flag
from impasto.sdscripts.flags import ROWS

TARGET = Path(__file__).parents[1] / "docs" / "flags.md"
HEAD = """# Flags of sd-scripts' fine_tune.py, train_db.py and sdxl_train.py

How Impasto treats each flag, from `src/impasto/sdscripts/flags.py`. Written by
`scripts/write_flag_docs.py`; do not edit by hand. Settings are described in [config.md](config.md),
and the differences in [Commands from sd-scripts](guide/sd-scripts.md).
"""
COLUMNS = "| flag | in Impasto |\n|---|---|\n"


def fate(flag: Flag) -> str:
    if flag.refusal:
        return f"rejected: {flag.refusal}"
    if flag.notice:
        return f"accepted without effect, with a notice: {flag.notice}"
    if flag.differs:
        place = f"`{flag.to}`, " if flag.to else ""
        return f"{place}with a difference: {flag.differs}"
    return f"`{flag.to}`" if flag.to else "same as in sd-scripts"


def table(scripts: tuple[str, ...]) -> str:
    rows = [f"| `--{flag.name}` | {fate(flag)} |" for flag in ROWS if flag.only == scripts]
    return COLUMNS + "\n".join(rows) + "\n"


def _heading(scripts: tuple[str, ...]) -> str:
    return " and ".join(scripts) if len(scripts) > 1 else f"{scripts[0]} only"


def page() -> str:
    parts = [f"## All commands\n\n{table(SCRIPTS)}"]
    shared = sorted(dict.fromkeys(flag.only for flag in ROWS), key=lambda scripts: -len(scripts))[
        1:
    ]
    parts += [f"## {_heading(scripts)}\n\n{table(scripts)}" for scripts in shared]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != page())
    TARGET.write_text(page(), encoding="utf-8", newline="\n")
