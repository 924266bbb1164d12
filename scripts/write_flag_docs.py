"""Write docs/flags.md from the table of sd-scripts' flags; with --check, only compare.

python scripts/write_flag_docs.py [--check]
"""

import sys
from pathlib import Path

from impasto.sdscripts.flags import FLAGS, Flag

TARGET = Path(__file__).parents[1] / "docs" / "flags.md"
HEAD = """# Flags of sd-scripts' fine_tune.py

What becomes of each, from `src/impasto/sdscripts/flags.py`. Written by
`scripts/write_flag_docs.py`; do not edit by hand. Settings are described in [config.md](config.md).

| flag | here |
|---|---|
"""


def fate(flag: Flag) -> str:
    if flag.refusal:
        return f"refused: {flag.refusal}"
    if flag.notice:
        return f"changes nothing, and says so: {flag.notice}"
    return f"`{flag.to}`" if flag.to else "as there"


def page() -> str:
    rows = [f"| `--{flag.name}` | {fate(flag)} |" for flag in FLAGS.values()]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != page())
    TARGET.write_text(page(), encoding="utf-8", newline="\n")
