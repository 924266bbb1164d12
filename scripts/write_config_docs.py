"""Write docs/config.md from the settings tree; with --check, only compare.

python scripts/write_config_docs.py [--check]
"""

import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from impasto.config.dataset import DatasetConfig, SubsetConfig
from impasto.config.field_docs import docs_of
from impasto.config.kinds import sections_of
from impasto.config.run import RunConfig
from impasto.config.tree import (
    default_of,
    default_text,
    is_section,
    own_first,
    subset_settings,
)
from impasto.config.value_types import type_of

TARGET = Path(__file__).parents[1] / "docs" / "config.md"
HEAD = """# Settings

All settings of `impasto train`, from the docstrings in `src/impasto/config/`. Written by
`scripts/write_config_docs.py`; do not edit by hand. Any of them can be given on the command line:
`--set section.key=value`; `--set section.key=none` removes a setting of the file.
"""


LEVELS = """
Several datasets are given as in sd-scripts. `[[dataset.datasets]]` takes any of the keys above
from `batch_size` on, and `[[dataset.datasets.subsets]]` takes {subset_keys}.
What a level does not set is inherited from the level above. `config` names a file with `[general]`
and `[[datasets]]` instead. These keys belong to subsets only:

"""


def levels() -> str:
    """Return the section on dataset keys that can be set at several levels."""
    keys = ", ".join(f"`{name}`" for name in own_first(SubsetConfig))
    own = [setting.name for setting in subset_settings().values()]
    return LEVELS.format(subset_keys=keys) + "\n".join(section_rows(SubsetConfig, own))


def section_rows(section: type[BaseModel], names: Sequence[str] | None = None) -> list[str]:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name in own_first(section) if names is None else names:
        field = section.model_fields[name]
        if not is_section(field.annotation) and not sections_of(field):
            default = "**required**" if field.is_required() else shown(default_of(field))
            meaning = docs_of(section, name).replace("|", "\\|")
            value = type_of(field).text.replace("|", "\\|")
            rows.append(f"| `{name}` | {value} | {default} | {meaning} |")
    return rows


def section_page(section: type[BaseModel]) -> list[str]:
    return [(section.__doc__ or "").strip().splitlines()[0], "", *section_rows(section)]


def shown(value: object) -> str:
    words = default_text(value)
    is_word = value is None or isinstance(value, bool) or value in ("", (), {}, [])
    return words if is_word else f"`{words}`"


def page() -> str:
    parts = [HEAD, "## (top level)", "", *section_rows(RunConfig)]
    hints = typing.get_type_hints(RunConfig, include_extras=False)
    for name, field in RunConfig.model_fields.items():
        annotation, kinds = hints[name], sections_of(field)
        for section in dict.fromkeys(kinds.values()):
            words = " or ".join(f'"{kind}"' for kind, own in kinds.items() if own is section)
            parts += ["", f"## [{name}] of the kind {words}", "", *section_page(section)]
        if is_section(annotation):
            parts += ["", f"## [{name}]", "", *section_page(annotation)]
            parts += [levels().rstrip()] if annotation is DatasetConfig else []
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != page())
    TARGET.write_text(page(), encoding="utf-8", newline="\n")
