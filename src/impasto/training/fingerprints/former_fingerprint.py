"""Fingerprints in states of earlier versions, under the names of now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from impasto.config.renamed import present_path
from impasto.parsing import parse_json

SECTIONS = {
    "model", "dataset", "method", "optimizer", "schedule", "loss", "noise", "timesteps", "training",
}  # fmt: skip
"""Sections that the earliest states hold as JSON, whole."""

_RENAMED = {
    "forward passes per update": "forward passes per step",
    "updates in all (the learning rate follows them)": (
        "steps in all (the learning rate follows them)"
    ),
}
"""What states of earlier versions call it -> its name; settings are in `config/renamed.py`."""


def is_of_sections(saved: Mapping[str, str]) -> bool:
    """Whether a fingerprint has sections of settings as JSON, in place of one entry for each."""
    return any(saved.get(name, "").startswith("{") for name in SECTIONS)


def as_named_now(saved: Mapping[str, str]) -> dict[str, str]:
    """A fingerprint of any version: each setting by its path, and all names as they are now."""
    found = dict(_settings_of(saved)) if is_of_sections(saved) else saved
    return {_RENAMED.get(name, present_path(name)): value for name, value in found.items()}


def _settings_of(saved: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """A fingerprint of sections, by path."""
    for name, text in saved.items():
        if name not in SECTIONS:
            yield name, text
            continue
        section, _, length = text.rpartition(" over ") if " over " in text else (text, "", "")
        for path, value in _flat(name, parse_json(section)):
            yield path, json.dumps(value)
        if length:
            steps = length.removesuffix(" steps")
            yield "steps in all (the learning rate follows them)", steps


def _flat(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in _flat(f"{path}.{key}", inner)]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [pair for n, item in enumerate(value) for pair in _flat(f"{path}[{n}]", item)]
    return [(path, value)]
