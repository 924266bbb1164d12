"""Caption edits requested on a page: parsed from a form into a command, stored until applied."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import files
from impasto.errors import RunError
from impasto.parsing import read_object

SHOWN = 200
"""Maximum number of changes that a preview shows."""

_PREVIEWED, _APPLIED = "previewed.json", "applied.json"
_TOKEN = re.compile(r"[0-9a-f]{32}", re.ASCII)
_KEPT_S = 24 * 3600.0
_CONTEXT = 160  # characters of a caption around what changes in it
_LONGEST_SHOWN = 2000


@dataclass(frozen=True)
class PreparedEdit:
    """A caption edit that has been requested and previewed, and may have been applied.

    Attributes:
        token: The id of the edit on the page, 32 hexadecimal digits.
        arguments: The arguments of `impasto`, without the option that makes it write.
        title: A short description of the edit.
        previewed: The file in which its preview records the captions that it would change.
        task: The name of the task that applied it; empty if it has not been applied.
    """

    token: str
    arguments: list[str]
    title: str
    previewed: Path
    task: str = ""

    @property
    def bound_arguments(self) -> list[str]:
        """The arguments of `impasto`, bound to the captions that the preview has shown."""
        return [*self.arguments, f"--previewed={self.previewed}"]


class EditStore:
    """Stores edits for a day, between their preview and their application.

    Args:
        folder: The folder of the store; created when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(
        self,
        dataset: Path,
        operations: Sequence[Mapping[str, str]],
        which: Sequence[str],
        ending: str,
        images: Sequence[str] | None = None,
    ) -> PreparedEdit:
        """Store an edit under a new token, so that exactly the previewed edit can be applied.

        Args:
            dataset: The folder of images.
            operations: As `impasto dataset edit --operations` reads them.
            which: Options of the command that select captions.
            ending: Extension of the caption files, such as `.txt`.
            images: Names of the images to edit; None if the options select them.

        Raises:
            StorageError: It cannot be written.
        """
        self._tidy()
        token = secrets.token_hex(16)
        folder = (self._folder / token).absolute()
        files.write_json(folder / "operations.json", list(operations))
        arguments = [
            "dataset", "edit", str(dataset.absolute()), f"--ending={ending}",
            f"--operations={folder / 'operations.json'}", *which,
        ]  # fmt: skip
        if images is not None:
            with files.replace_file(folder / "images.txt") as partial:
                partial.write_bytes(b"\0".join(name.encode("utf-8") for name in images) + b"\0")
            arguments.append(f"--images={folder / 'images.txt'}")
        title = "Edit captions: " + ", ".join(o["do"] for o in operations)
        files.write_json(
            folder / "edit.json", {"dataset": str(dataset), "words": arguments, "title": title}
        )
        return PreparedEdit(token, arguments, title, folder / _PREVIEWED)

    def find(self, dataset: Path, token: str) -> PreparedEdit | None:
        """Return the edit of a token, or None if there is none or it belongs to another dataset."""
        if not _TOKEN.fullmatch(token):
            return None
        folder = (self._folder / token).absolute()
        kept = read_object(folder / "edit.json")
        if kept is None or kept["dataset"] != str(dataset):
            return None
        task = str((read_object(folder / _APPLIED) or {}).get("task", ""))
        return PreparedEdit(token, kept["words"], kept["title"], folder / _PREVIEWED, task)

    def note_applied(self, prepared: PreparedEdit, task: str) -> None:
        """Record the task that applies an edit, so that it is applied only once.

        Raises:
            StorageError: It cannot be written.
        """
        files.write_json(self._folder / prepared.token / _APPLIED, {"task": task})

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):
            for folder in self._folder.iterdir():
                if _TOKEN.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > _KEPT_S:
                    files.remove_folder(folder)


def operations_of(form: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Return the operations of a form, each row of which has `do`, `what`, `by`, `at` and `text`.

    Raises:
        RunError: The form has no row, or a row lacks a value; the message names it.
    """
    columns = ("do", "what", "by", "at", "text")
    rows = list(zip(*(form.get(name, ()) for name in columns), strict=False))
    found = [_operation(dict(zip(columns, row, strict=True))) for row in rows]
    if not found:
        raise RunError("Choose an action.")
    return found


def _operation(row: Mapping[str, str]) -> dict[str, str]:
    kind, what = row["do"], row["what"].strip()
    if kind == "set":
        return {"do": kind, "text": row["text"].replace("\r\n", "\n")}
    if not what:
        raise RunError("Enter a tag or, for a regular expression, its pattern.")
    if kind == "regex":
        return {"do": kind, "pattern": row["what"], "by": row["by"]}
    if kind == "replace":
        if not row["by"].strip():
            raise RunError("Enter the tag to write instead, or choose “remove a tag”.")
        return {"do": kind, "tag": what, "by": row["by"].strip()}
    if kind == "remove":
        return {"do": kind, "tag": what}
    if kind in ("add", "move"):
        return {"do": kind, "tag": what, "at": row["at"].strip() or "last"}
    raise RunError(f"{kind!r:.40} is not a known action on captions.")


def difference(before: str, after: str) -> dict[str, str]:
    """Return the common start and end of two captions, shortened, and the differing parts between.

    Returns:
        `lead` (common start), `old`, `new` (the parts that differ) and `trail` (common end).
    """
    head = _shared(before, after)
    tail = _shared(before[head:][::-1], after[head:][::-1])
    middle = slice(head, len(before) - tail), slice(head, len(after) - tail)
    lead, trail = before[:head], before[len(before) - tail :]
    return {
        "lead": lead if len(lead) <= _CONTEXT else f"… {lead[-_CONTEXT:]}",
        "old": shortened(before[middle[0]]),
        "new": shortened(after[middle[1]]),
        "trail": trail if len(trail) <= _CONTEXT else f"{trail[:_CONTEXT]} …",
    }


def shortened(text: str, most: int = _LONGEST_SHOWN) -> str:
    """Return the first `most` characters of a longer text, followed by its length."""
    if len(text) <= most:
        return text
    return f"{text[:most]} … ({len(text):,} characters)"


def preview_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the output of `impasto dataset edit --json` to variables of the preview template."""
    return {
        "changed": answer["changed"],
        "captions": answer["captions"],
        "changes": [
            {"image": change["image"], **difference(change["before"], change["after"])}
            for change in answer["changes"]
        ],
        "skipped": answer["skipped"][:SHOWN],
    }


def _shared(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    most = min(len(one), len(other))
    low = 0
    while low < most and one[low] == other[low]:
        low += 1
    return low
