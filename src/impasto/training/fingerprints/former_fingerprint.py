"""Converts fingerprints in states of earlier versions to the current names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from impasto.config.renamed import present_path
from impasto.parsing import parse_json

SECTIONS = {
    "model", "dataset", "method", "optimizer", "schedule", "loss", "noise", "timesteps", "training",
}  # fmt: skip
"""Sections that the earliest states store whole, as JSON."""

_RENAMED = {
    "forward passes per update": "forward passes per step",
    "updates in all (the learning rate follows them)": (
        "steps in all (the learning rate follows them)"
    ),
}
"""Entry name in states of earlier versions -> current name; settings are in `config/renamed.py`."""


def is_of_sections(saved: Mapping[str, str]) -> bool:
    """Return whether a fingerprint has sections of settings as JSON instead of one entry each."""
    return any(saved.get(name, "").startswith("{") for name in SECTIONS)


def as_named_now(saved: Mapping[str, str]) -> dict[str, str]:
    """Return a fingerprint of any version with one entry per setting, under the current names."""
    found = dict(_settings_of(saved)) if is_of_sections(saved) else saved
    return {_RENAMED.get(name, present_path(name)): value for name, value in found.items()}


def _settings_of(saved: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the entries of a fingerprint of sections, with one entry per setting."""
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
