"""Write docs/config.md from the settings tree; with --check, only compare.

python scripts/write_config_docs.py [--check]
"""

import sys
import typing
from pathlib import Path

from pydantic import BaseModel

from impasto.config.run import RunConfig

TARGET = Path(__file__).parents[1] / "docs" / "config.md"
HEAD = """# Settings

All settings of `impasto train`, from the docstrings in `src/impasto/config/`. Written by
`scripts/write_config_docs.py`; do not edit by hand. Any of them can be given on the command line:
`--set section.key=value`; `--set section.key=none` takes one out of the file.
"""


def section_rows(section: type[BaseModel]) -> list[str]:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in section.model_fields.items():
        if not is_section(field.annotation):
            default = "**required**" if field.is_required() else shown(field.default)
            rows.append(f"| `{name}` | {default} | {' '.join((field.description or '').split())} |")
    return rows


def is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def shown(value: object) -> str:
    if value is None:
        return "off"
    if isinstance(value, bool):
        return str(value).lower()
    if value in ("", ()):
        return "empty"
    return f"`{value}`"


def page() -> str:
    parts = [HEAD, "## (top level)", "", *section_rows(RunConfig)]
    for name, annotation in typing.get_type_hints(RunConfig, include_extras=False).items():
        if is_section(annotation):
            summary = (annotation.__doc__ or "").strip().splitlines()[0]
            parts += ["", f"## [{name}]", "", summary, "", *section_rows(annotation)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != page())
    TARGET.write_text(page(), encoding="utf-8", newline="\n")
