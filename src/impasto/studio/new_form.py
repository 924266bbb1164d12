"""The form of a new run: its fields, and the faults in the typed values.

The form is generated from the settings tree; only the usual settings are listed here by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from impasto.config.fields import faults_by_field, tree_of
from impasto.config.labels import label_of
from impasto.config.load import build_run_config
from impasto.config.run import RunConfig
from impasto.config.tree import Setting, all_sections, all_settings
from impasto.config.validation import REQUIRED
from impasto.errors import ConfigError, RunError
from impasto.files import is_inside
from impasto.remote_paths import is_remote
from impasto.runs import RunDirectory

USUAL = (
    "output_dir",
    "model.path",
    "dataset.image_dir",
    "dataset.resolution",
    "dataset.shuffle_caption",
    "dataset.caption_dropout_rate",
    "method.kind",
    "optimizer.kind",
    "optimizer.lr",
    "schedule.kind",
    "schedule.warmup_steps",
    "training.max_steps",
    "training.max_epochs",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.mixed_precision",
    "training.memory",
    "training.ema_decay",
    "validation.split",
    "previews.prompts",
    "previews.every_steps",
    "saving.model_every_steps",
)
"""The settings that are shown at the top of the form."""


@dataclass(frozen=True)
class Examined:
    """The settings parsed from the form, with their faults.

    Attributes:
        faults: Faults by field; those of no single field are under "".
        text: The text of the settings file; empty if fields cannot be parsed.
        config: The settings; None if they have faults.
        folder_fault: The reason why the studio cannot use the run directory, though other commands
            could; empty if it can.
    """

    faults: Mapping[str, str]
    text: str
    config: RunConfig | None
    folder_fault: str = ""

    @property
    def all_faults(self) -> dict[str, str]:
        """All faults by field, including that of the run directory."""
        return {**self.faults, **({"output_dir": self.folder_fault} if self.folder_fault else {})}


def examine(fields: Mapping[str, str], run_folders: list[Path]) -> Examined:
    """Parse the fields of the form into settings, and find their faults.

    A relative run directory is resolved below the first folder of runs. Settings that the chosen
    kind of their section does not have are skipped, since their fields are hidden.
    """
    tree, faults = tree_of(of_chosen_kinds(fields))
    output_dir = tree.get("output_dir")
    if isinstance(output_dir, str) and output_dir.strip() and not is_remote(output_dir):
        tree["output_dir"] = str(run_folders[0] / output_dir)  # an absolute path is unchanged
    config = None
    try:
        config = build_run_config(tree, source="These settings")
    except ConfigError as error:
        found = faults_by_field(error.faults or {"": str(error)})
        faults = {**{path: _without_path(path, text) for path, text in found.items()}, **faults}
    if faults or config is None:
        return Examined(faults, "" if _is_unreadable(tree) else tomli_w.dumps(tree), None)
    return Examined({}, tomli_w.dumps(tree), config, _fault_of_folder(config, run_folders))


def of_chosen_kinds(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields without the settings that the chosen kinds do not have."""
    known = all_settings()
    found = {}
    for path, text in fields.items():
        setting = known.get(path)
        if setting is None or (setting.kinds and _kind_of(setting, fields) not in setting.kinds):
            continue
        found[path] = text
    return found


def form_sections(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of the form for its template: the usual ones, and those of each section."""
    known = all_settings()
    usual = [_field(known[path], fields) for path in USUAL]
    sections = []
    for section in all_sections():
        own = [_field(s, fields) for s in section.settings if s.path not in USUAL]
        given = sum(1 for one in own if one["text"].strip())
        sections.append(
            {"name": section.name or "run", "docs": section.docs, "fields": own, "given": given}
        )
    return {"usual": usual, "sections": sections}


def _kind_of(setting: Setting, fields: Mapping[str, str]) -> str:
    kind = all_settings()[f"{setting.section}.kind"]
    chosen = fields.get(kind.path, "").strip()
    return chosen if chosen in kind.kinds else str(kind.default)


def _field(setting: Setting, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a field that the template needs."""
    value, bounds, label = setting.type, setting.type.bounds, label_of(setting.path)
    return {
        "path": setting.path,
        "title": label.title,
        "elsewhere": label.elsewhere(setting.name),
        "docs": setting.docs,
        "type": _type_text(setting),
        "control": _control(setting),
        "is_number": bool(bounds),
        "bounds": bounds,
        "choices": [str(choice) for choice in value.choices],
        "text": fields.get(setting.path, ""),
        "is_required": setting.is_required,
        "default": setting.default_text,
        "section": setting.section,
        "kinds": " ".join(setting.kinds) if setting.name != "kind" else "",
        "kind": _kind_of(setting, fields) if setting.kinds else "",
    }


def _type_text(setting: Setting) -> str:
    """Return a sentence on valid values, or an empty text if the field itself shows them."""
    value = setting.type
    if value.form in ("flag", "choice") or value.text == "text":
        return ""
    if value.form == "lines":
        return "One per line."
    return f"{value.text[:1].upper()}{value.text[1:]}."


def _control(setting: Setting) -> str:
    form = setting.type.form
    if form in ("flag", "choice"):
        return "select"
    return "lines" if form in ("lines", "table", "sections") else "line"


def _fault_of_folder(config: RunConfig, run_folders: list[Path]) -> str:
    """Return the reason why the studio cannot use the run directory, or an empty text if it can."""
    if is_remote(config.output_dir):
        return "It is in an object store; the studio only shows runs in folders on this machine"
    run = config.output_dir.absolute()
    if not any(is_inside(run, folder) and run != folder for folder in run_folders):
        names = ", ".join(map(str, run_folders))
        return f"It is outside the folders whose runs the studio shows: {names}"
    try:
        RunDirectory.require_free(run)
    except (RunError, OSError) as error:
        is_run = RunDirectory(run).is_there()
        return "A run with this name exists; choose another name" if is_run else str(error)
    return ""


def _is_unreadable(tree: Mapping[str, Any]) -> bool:
    try:
        tomli_w.dumps(tree).encode("utf-8")
    except (UnicodeEncodeError, TypeError, ValueError):
        return True
    return False


def _without_path(path: str, text: str) -> str:
    if text.endswith(f" {REQUIRED}"):
        return "A value is required"
    rest = text.removeprefix(f"{path}: ").removeprefix(f"{path.partition('.')[0]}: ")
    first = rest.partition(" ")[0]
    is_name = "_" in first or "." in first or first == path.rpartition(".")[2]
    return rest if is_name else f"{rest[:1].upper()}{rest[1:]}"
