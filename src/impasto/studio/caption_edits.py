"""Edits of captions as pages ask for them: from a form to a command, kept until it is applied."""

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
"""Changes that a preview shows."""

_PREVIEWED, _APPLIED = "previewed.json", "applied.json"
_TOKEN = re.compile(r"[0-9a-f]{32}", re.ASCII)
_KEPT_S = 24 * 3600.0
_CONTEXT = 160  # characters of a caption around what changes in it
_LONGEST_SHOWN = 2000


@dataclass(frozen=True)
class PreparedEdit:
    """An edit that was asked for and not made yet.

    Attributes:
        token: What the page calls it.
        arguments: The command, without what makes it write.
        title: What it does.
        previewed: The file in which its preview notes the captions that it would change.
        task: The task that made it; empty as long as it was not made.
    """

    token: str
    arguments: list[str]
    title: str
    previewed: Path
    task: str = ""

    @property
    def bound_arguments(self) -> list[str]:
        """The command, which its preview binds to the captions that are shown."""
        return [*self.arguments, f"--previewed={self.previewed}"]


class EditStore:
    """Keeps edits between their preview and their being applied, for a day.

    Args:
        folder: Where; made when it is first needed.
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
        """Keep an edit under a token, so that exactly what was previewed can be applied.

        Args:
            dataset: The folder of images.
            operations: As `impasto dataset edit --operations` reads them.
            which: Options that say which captions.
            ending: Of the files.
            images: Names of the images; None leaves that to the options.

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
        """The edit of a token; None where there is none, or it is of another dataset."""
        if not _TOKEN.fullmatch(token):
            return None
        folder = (self._folder / token).absolute()
        kept = read_object(folder / "edit.json")
        if kept is None or kept["dataset"] != str(dataset):
            return None
        task = str((read_object(folder / _APPLIED) or {}).get("task", ""))
        return PreparedEdit(token, kept["words"], kept["title"], folder / _PREVIEWED, task)

    def note_applied(self, prepared: PreparedEdit, task: str) -> None:
        """Note which task makes an edit, which is made once.

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
    """The operations of a form, whose rows have `do`, `what`, `by`, `at` and `text` each.

    Raises:
        RunError: A row is not whole; with what is missing.
    """
    columns = ("do", "what", "by", "at", "text")
    rows = list(zip(*(form.get(name, ()) for name in columns), strict=False))
    found = [_operation(dict(zip(columns, row, strict=True))) for row in rows]
    if not found:
        raise RunError("Choose what is to be done.")
    return found


def _operation(row: Mapping[str, str]) -> dict[str, str]:
    kind, what = row["do"], row["what"].strip()
    if kind == "set":
        return {"do": kind, "text": row["text"].replace("\r\n", "\n")}
    if not what:
        raise RunError("Give a tag, or for a regular expression its pattern.")
    if kind == "regex":
        return {"do": kind, "pattern": row["what"], "by": row["by"]}
    if kind == "replace":
        if not row["by"].strip():
            raise RunError("Give the tag that is written instead; or choose Remove.")
        return {"do": kind, "tag": what, "by": row["by"].strip()}
    if kind == "remove":
        return {"do": kind, "tag": what}
    if kind in ("add", "move"):
        return {"do": kind, "tag": what, "at": row["at"].strip() or "last"}
    raise RunError(f"{kind!r:.40} is nothing that can be done to captions.")


def difference(before: str, after: str) -> dict[str, str]:
    """What two captions share at their ends, shortened, and what differs between."""
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
    """The beginning of a long text, which says how much there is."""
    if len(text) <= most:
        return text
    return f"{text[:most]} … ({len(text):,} characters)"


def preview_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of `impasto dataset edit --json` for a template."""
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
    """How many characters two texts have in common at their beginning."""
    most = min(len(one), len(other))
    low = 0
    while low < most and one[low] == other[low]:
        low += 1
    return low
