"""Removes private settings of a run from exported models and report pages.

Exported models and reports are made to be shared. Absolute paths reveal a person's name and
folders, and prompts may be private; both are left out unless `saving.publish` lists them.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from impasto.remote_paths import SCHEMES

Publishable = Literal["paths", "prompts"]

PATH_KEYS = frozenset({
    "cache_dir", "config", "hypernetworks", "image_dir", "mask_dir", "metadata_file", "model_dir",
    "output_dir", "path", "prompt_file", "start_from", "template_file", "vae",
    "features", "reg_data_dir", "train_data_dir",
})  # fmt: skip
"""Settings that name a file or a folder; only the last part of their paths is kept."""

_PATH_ENDINGS = ("_dir", "_file", "_path", "_folder")

ADDRESS_KEYS = frozenset({"ray_address"})
"""Settings that name a machine of the user's network; removed unless paths are published."""

PROMPT_KEYS = frozenset({"prompts", "negative_prompt"})
_FREE_TEXTS = frozenset({"metadata"})  # texts that the user wrote for the file
_ABSOLUTE = re.compile(r"(?:(?:~[\w.-]*)?[/\\]|[A-Za-z]:[/\\])(?=.*[^/\\\s])", re.DOTALL)

_BEGIN = re.compile(
    r"(?<![\w/\\.~\0-])"
    rf"(?:(?:{'|'.join(SCHEMES)}):[/\\]+|file:/{{1,3}}|~[\w.-]*[/\\]+|[A-Za-z]:[/\\]+|(?:(?<!:)[/\\]{{1,2}}|[/\\])(?=[^\s/\\]))"
)
"""Matches the start of an absolute path in a sentence, or of the URL of an object store; the `://`
of other URLs does not match."""

_SEPARATORS = re.compile(r"[/\\]+")
_NO_NAME = re.compile(r"""[\n\r\t\0"<>|]|:\s|:$|\s$|'(?!\w)|\.\w{1,11}[,;)]\s""")
"""Matches if the text between two separators is more than the name of a folder."""

_SHELLS_APOSTROPHE = "'\"'\"'"  # how `shlex.quote` writes one
_HOMES = frozenset({"home", "Users"})  # folders that contain the home folders of users


def redact_settings(settings: Mapping[str, Any], publish: Collection[str]) -> dict[str, Any]:
    """Return the settings without private values.

    Args:
        settings: The resolved tree, as plain values.
        publish: The kinds of private values to keep: `paths`, `prompts`.
    """
    return {
        key: _redact(key, value, publish)
        for key, value in settings.items()
        if ("prompts" in publish or key not in PROMPT_KEYS)
        and ("paths" in publish or key not in ADDRESS_KEYS)
    }


def redact_text(text: str, publish: Collection[str], folders: Collection[str] = ()) -> str:
    """Return a sentence with absolute paths cut to their last part, unless `publish` has `paths`.

    Names of folders may contain spaces, so the end of a path in a sentence is uncertain. The text
    between two separators counts as a name unless it contains something that names hardly ever do:
    removing a word too many is better than leaving a part of a path.

    Args:
        text: The sentence.
        publish: The kinds of private values to keep: `paths`.
        folders: Folders that are shortened to their names; paths below them are kept from there on.
    """
    if "paths" in publish or not _SEPARATORS.search(text):
        return text
    marked = text.replace("\0", "\N{REPLACEMENT CHARACTER}").replace(_SHELLS_APOSTROPHE, "'")
    names = _known(tuple(folders), _home())
    for number, (pattern, name) in enumerate(names):
        marked = pattern.sub(name if name == "~" else f"\0{number}\0", marked)
    cut = _without_folders(marked)
    shown = re.sub(r"\0(\d+)\0", lambda mark: names[int(mark[1])][1], cut)
    return text if shown == text.replace(_SHELLS_APOSTROPHE, "'") else shown


def redact_unknown_paths(text: str, folders: Collection[str]) -> str:
    """Return a user's text in which the known folders are shortened to their names.

    Any other path in it is kept.
    """
    for pattern, name in _known(tuple(folders), _home()):
        text = pattern.sub(lambda _, name=name: name, text)  # type: ignore[misc]
    return text


def short_path(path: str) -> str:
    """Return a file's name after its folder's; without the folder if it is a user's home."""
    separator = r"[/\\]" if re.match(r"[A-Za-z]:[/\\]|\\\\", path) else "/"
    names = [name for name in re.split(separator, path) if name]
    is_home = len(names) > 2 and names[-3] in _HOMES
    return "/".join(names[-1:] if is_home or len(names) < 2 else names[-2:])


def _home() -> str:
    return os.path.expanduser("~")  # noqa: PTH111 - does not raise where there is none


@functools.lru_cache(maxsize=8)
def _known(folders: tuple[str, ...], home: str) -> list[tuple[re.Pattern[str], str]]:
    """Return (pattern that matches a folder in every spelling, its name) pairs, longest first."""
    names = {}
    for folder in folders:
        for written in (folder, os.path.abspath(folder), os.path.realpath(folder)):  # noqa: PTH100
            names[written] = path_basename(written)
    names |= dict.fromkeys({home, os.path.realpath(home)}, "~")
    found = []
    for written in sorted(names, key=len, reverse=True):
        names_in_path = [re.escape(name) for name in re.split(r"[/\\]+", written)]
        if (
            len([name for name in names_in_path if name])
            and len(names_in_path) > 1
            and names[written]
        ):
            text = r"[/\\]+".join(names_in_path).removesuffix(r"[/\\]+")
            whole = re.compile(rf"(?<![\w/\\.~-]){text}(?![\w-])")
            found.append((whole, names[written]))
    return found


def _without_folders(text: str) -> str:
    kept, position = "", 0
    while begin := _BEGIN.search(text, position):
        kept += text[position : begin.start()]
        position = begin.end()
        while separator := _SEPARATORS.search(text, position):
            name = text[position : separator.start()]
            is_last = not re.match(r"[\w.~@$%&+=#!(\[{^-]", text[separator.end() :][:1])
            if not name or is_last or _NO_NAME.search(name):
                break
            position = separator.end()
    return kept + text[position:]


def is_path_key(key: str) -> bool:
    """Return whether a setting is a path: by name, or by the end of its name if unknown."""
    return key in PATH_KEYS or key.endswith(_PATH_ENDINGS)


def path_basename(path: str) -> str:
    """Return the last part of a path of any operating system; an empty string for the root."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _redact(key: str, value: Any, publish: Collection[str]) -> Any:
    if key in _FREE_TEXTS:
        return value
    if isinstance(value, Mapping):
        return redact_settings(value, publish)
    if isinstance(value, (list, tuple)):
        return [_redact(key, item, publish) for item in value]
    if not isinstance(value, str) or "paths" in publish or key in PROMPT_KEYS:
        return value
    if is_path_key(key) or _ABSOLUTE.match(value):
        return path_basename(value)
    return redact_text(value, publish)
