"""Reads files of settings, TOML and JSON; errors have line and column, or name the broken path."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto.errors import ConfigError
from impasto.parsing import (
    is_deep,
    is_text,
    json_fault_in,
    parse_json,
    parse_toml,
    printable,
    read_text,
)
from impasto.publishing import is_path_key

SETTINGS_FILE, DATASET_FILE = "settings file", "dataset configuration"
"""What messages call a file of a run's settings, and one of sd-scripts' `--dataset_config`."""

_ESCAPED = {"\t": "\\t", "\n": "\\n", "\b": "\\b", "\f": "\\f", "\r": "\\r", "\x1b": "\\e"}
_ESCAPES = str.maketrans(_ESCAPED)
_DRIVE_OR_SHARE = re.compile(r"[A-Za-z]:[\\/\x08-\x0d\x1b]|\\")
_SCANNED = ("image_dir", "metadata_file", "mask_dir")


def read_toml(path: Path, what: str = SETTINGS_FILE) -> dict[str, Any]:
    """Parse a TOML file.

    Args:
        path: The file.
        what: What kind of file the message calls it.

    Raises:
        ConfigError: It is missing or malformed; the message has line and column.
    """
    try:
        content = parse_toml(_settings_text(path, what))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}. A path on Windows goes into single quotes, "
            f"as in 'C:\\images'."
        ) from error
    require_unescaped_paths(content, str(path))
    return content


def require_unescaped_paths(content: Mapping[str, Any], source: str, above: str = "") -> None:
    r"""Check for Windows paths that lost their backslashes: in double quotes, `\t` is a tab.

    `"D:\train\new"` is valid TOML, and means `D:`, a tab, `rain`, a line end, and `ew`.

    Raises:
        ConfigError: A value is such a path.
    """
    for key, value in content.items():
        path = f"{above}.{key}" if above else key
        values = value if isinstance(value, list) else [value]
        for item in values:
            if isinstance(item, Mapping):
                require_unescaped_paths(item, source, path)
            elif isinstance(item, str) and _is_broken_path(key, item):
                written = item.translate(_ESCAPES)
                raise ConfigError(
                    f"{source}: {path} contains a control character, probably from a Windows "
                    f"path: in double quotes \\t is a tab and \\n a line end. Put it into single "
                    f"quotes, as in {key} = '{written}', or write it with /.",
                    {path: "contains a control character, probably from a Windows path"},
                )


def require_text(content: Any, source: str, path: str = "") -> None:
    """Check for names and texts that are not UTF-8: a run stores its settings in a UTF-8 file.

    Folders of images are checked by the scan, which also names the files in them.

    Raises:
        ConfigError: A value is not UTF-8, such as a name from a zip file of another system.
    """
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key not in _SCANNED or not path.startswith("dataset"):
                require_text(value, source, f"{path}.{key}" if path else str(key))
    elif isinstance(content, (list, tuple)):
        for value in content:
            require_text(value, source, path)
    elif isinstance(content, (str, Path)) and not is_text(str(content)):
        raise ConfigError(
            f"{source}: {path} is {printable(str(content))}, which is not UTF-8; expected text "
            f"that can be written into the run's settings. Rename the file or folder.",
            {path: "the name is not UTF-8: rename the file or folder"},
        )


def _is_broken_path(key: str, value: str) -> bool:
    if not any(character in _ESCAPED for character in value):
        return False
    return is_path_key(key) or _DRIVE_OR_SHARE.match(value) is not None


def read_json_object(
    path: Path, what: str = SETTINGS_FILE, *, halves: bool = False
) -> dict[str, Any]:
    """Parse a JSON file that holds an object.

    Args:
        path: The file.
        what: What kind of file the message calls it.
        halves: Whether strings may contain lone surrogates, for a caller that handles them.

    Raises:
        ConfigError: It is missing or malformed; the message has line and column.
    """
    try:
        content = parse_json(_settings_text(path, what), halves=halves)
    except json.JSONDecodeError as error:
        raise ConfigError(json_fault_in(path, error)) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected an object.")
    if "datasets" in content:
        if is_deep(content):
            raise ConfigError(f"{path} is not a {what}: it is nested too deeply.")
        require_unescaped_paths(content, str(path))
    return content


def _settings_text(path: Path, what: str) -> str:
    """Return the text of a file of settings, which messages call `what`.

    Raises:
        ConfigError: It is missing, unreadable or not UTF-8.
    """
    try:
        return read_text(path)
    except FileNotFoundError as error:
        raise ConfigError(f"The {what} {path} does not exist. Check its path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"The {what} {path} cannot be read: {error.strerror}.") from error
