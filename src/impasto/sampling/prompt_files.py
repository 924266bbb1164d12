"""Reads files of prompts in sd-scripts' formats: text with options, TOML, or JSON.

kohya-ss/sd-scripts, `library/train_util.py`, load_prompts: one prompt per line with options after `
--`; `[prompt]` with `[[prompt.subset]]`; or a list of texts or of objects.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from impasto.errors import ConfigError
from impasto.finite import finite
from impasto.parsing import json_fault_in, parse_json, parse_toml, read_text, split_lines
from impasto.sampler_table import OTHER_NAMES, RANGES, SAMPLERS
from impasto.sampling.prompts import Prompt
from impasto.storage_errors import cause_of

LEAST_SIDE = 64

_OPTIONS: dict[str, str] = {
    "n": "negative", "w": "width", "h": "height", "d": "seed", "s": "steps", "l": "guidance_scale",
    "ss": "sampler",
}  # fmt: skip
_KEYS: dict[str, str] = {
    "prompt": "text", "negative_prompt": "negative", "width": "width", "height": "height",
    "seed": "seed", "sample_steps": "steps", "scale": "guidance_scale", "sample_sampler": "sampler",
    "guidance_rescale": "guidance_rescale",
}  # fmt: skip
_FOREIGN = {
    "cn": "ControlNet images", "g": "guidance embeddings", "ctr": "ControlNet ratios",
    "rcfg": "renormalised guidance", "fs": "flow shift", "controlnet_image": "ControlNet images",
}  # fmt: skip


def read_prompt_file(file: Path, defaults: Prompt) -> list[Prompt]:
    """Read a file of prompts.

    Args:
        file: `.txt`, `.toml` or `.json`.
        defaults: Values of settings that the file does not state; the seed rises by one from prompt
            to prompt.

    Raises:
        ConfigError: It is missing or malformed, or an option is unknown or out of range; the
            message has the line or the number of the prompt.
    """
    try:
        text = read_text(file)
    except FileNotFoundError as error:
        raise ConfigError(f"The prompt file {file} does not exist. Check its path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The prompt file {file} cannot be read: {cause_of(error)}.") from error
    readers: dict[str, Callable[[Path, str], list[tuple[str, dict[str, Any]]]]] = {
        ".txt": _read_lines,
        ".toml": _read_toml,
        ".json": _read_json,
    }
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise ConfigError(f"The prompt file {file} does not end in .txt, .toml or .json.")
    entries = reader(file, text)
    if not entries:
        raise ConfigError(f"The prompt file {file} has no prompt in it.")
    return [
        _prompt(where, values, replace(defaults, seed=defaults.seed + number))
        for number, (where, values) in enumerate(entries)
    ]


def _read_lines(file: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    entries = []
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{file}, line {number}"
        prompt, *options = line.strip().split(" --")
        values: dict[str, Any] = {"text": prompt.strip()}
        for option in options:
            name, _, value = option.partition(" ")  # sd-scripts ignores case: --W is --w
            values[_known(where, name.strip().lower(), _OPTIONS, "--")] = value.strip()
        entries.append((where, values))
    return entries


def _read_toml(file: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        content = parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}.") from error
    shared = content.get("prompt")
    if not isinstance(shared, dict) or not isinstance(shared.get("subset", []), list):
        raise ConfigError(f"{file} has no [prompt] with [[prompt.subset]] in it.")
    if not all(isinstance(subset, dict) for subset in shared.get("subset", [])):
        raise ConfigError(f"{file}: prompt.subset holds an entry that is not a table.")
    common = {k: v for k, v in shared.items() if k != "subset"}
    return [
        _named(f"{file}, prompt {number}", {**common, **subset})
        for number, subset in enumerate(shared.get("subset", []), start=1)
    ]


def _read_json(file: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise ConfigError(json_fault_in(file, error)) from error
    if not isinstance(content, list):
        raise ConfigError(f"{file} holds a {type(content).__name__}; expected a list of prompts.")
    entries = []
    for number, item in enumerate(content, start=1):
        where = f"{file}, prompt {number}"
        if isinstance(item, str):
            entries += [(where, values) for _, values in _read_lines(file, item)]
        elif isinstance(item, dict):
            entries.append(_named(where, item))
        else:
            raise ConfigError(f"{where} is {item!r}; expected text or an object.")
    return entries


def _named(where: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return where, {_known(where, name, _KEYS, ""): value for name, value in values.items()}


def _known(where: str, name: str, names: Mapping[str, str], dashes: str) -> str:
    if name in names:
        return names[name]
    if name in _FOREIGN:
        raise ConfigError(f"{where}: {dashes}{name} is for {_FOREIGN[name]}, which models "
                          f"trained here do not have. Remove it.")  # fmt: skip
    listed = ", ".join(f"{dashes}{known}" for known in names)
    raise ConfigError(f"{where}: {dashes}{name} is unknown; expected {listed}.")


def _whole(value: Any) -> int:
    """Return a value as an integer."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise TypeError(f"{value} is not a whole number")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_KINDS: dict[str, type] = {
    "text": str, "negative": str, "sampler": str, "seed": int, "width": int, "height": int,
    "steps": int, "guidance_scale": float, "guidance_rescale": float,
}  # fmt: skip
_READERS: dict[type, Callable[[Any], Any]] = {str: _text, int: _whole, float: finite}
_EXPECTED = {str: "text", int: "a number without a fraction", float: "a number"}


def _prompt(where: str, values: dict[str, Any], defaults: Prompt) -> Prompt:
    """Return a prompt with its values as numbers and in their ranges."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        kind = _KINDS[name]
        try:
            found[name] = _READERS[kind](value)
        except (TypeError, ValueError, OverflowError) as error:
            expected = _EXPECTED[kind]
            raise ConfigError(f"{where}: {name} is {value!r}; expected {expected}.") from error
    prompt = replace(defaults, **found)
    sampler = OTHER_NAMES.get(prompt.sampler, prompt.sampler)
    if sampler not in SAMPLERS:
        known = ", ".join([*SAMPLERS, *OTHER_NAMES])
        raise ConfigError(f"{where}: there is no sampler {sampler!r}; choose one of {known}.")
    for name, (least, most) in RANGES.items():
        number = getattr(prompt, name)
        if number is not None and not least <= number <= most:
            raise ConfigError(f"{where}: {name} is {number}; expected {least} to {most}.")
    sides = [max(LEAST_SIDE, side // 8 * 8) for side in (prompt.width, prompt.height)]
    return replace(prompt, sampler=sampler, width=sides[0], height=sides[1])
