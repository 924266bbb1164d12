"""Model uploads to the Hub: cards and file lists are made in a dry run, shown, then published."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from impasto import files
from impasto.parsing import read_object
from impasto.progress import size_text
from impasto.report.model_card import CARD
from impasto.studio.core import Studio
from impasto.studio.models import FoundModel
from impasto.studio.pages.model_forms import Arguments, sent_to_publish
from impasto.studio.pages.tasks import task_view

_CARD_BYTES = 1 << 20
_KEPT_UPLOADS = 20


@dataclass(frozen=True)
class ModelUploads:
    """Makes cards of models, stores the newest, and publishes those that the user confirms.

    Attributes:
        studio: The state of the studio, with the folder of the uploads and the tasks.
    """

    studio: Studio

    def prepare(self, model: FoundModel, arguments: Arguments) -> str:
        """Start the dry run of a command to publish a model, and return the name of the upload."""
        upload = secrets.token_hex(8)
        folder = self._folder(upload)
        _keep_newest(folder.parent)
        dry_run = [*arguments[:1], "--out", folder, *arguments[1:]]
        task = self.studio.tasks.start(
            dry_run, f"Card of {model.title}", f"{model.address}/publish/{upload}"
        )
        wanted = {"words": list(map(str, arguments)), "task": task, "model": model.key}
        files.write_json(folder / "request.json", wanted)
        return upload

    def send(self, model: FoundModel, upload: str) -> str:
        """Publish an upload that was shown, and return the name of the task.

        Raises:
            HTTPException: 404 if there is no such upload; 409 if the model has changed since.
        """
        wanted = self._request(upload)
        if wanted.get("model") != model.key:
            raise HTTPException(
                409, "The model has changed since this card was made. Make the card again."
            )
        verb, *arguments = map(str, wanted["words"])
        arguments = [verb, "--yes", f"--card={self._folder(upload) / CARD}", *arguments]
        return self.studio.tasks.start(arguments, f"Publish {model.title}", model.address)

    def last(self, model: FoundModel) -> dict[str, str]:
        """Return the form fields of the last upload of a model; empty if there is none."""
        with contextlib.suppress(OSError):
            folder = (self.studio.home / "publish").absolute()
            made = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            asked = (read_object(one / "request.json") or {} for one in made)
            last = next((found for found in asked if found.get("model") == model.key), {})
            return sent_to_publish([str(argument) for argument in last.get("words", [])])
        return {}

    def view(self, model: FoundModel, name: str) -> dict[str, Any]:
        """Return the content of the page of an upload: the card and the files that would be sent.

        Raises:
            HTTPException: 404 if there is no such upload.
        """
        wanted, folder = self._request(name), self._folder(name)
        task = self.studio.tasks.find(str(wanted.get("task")))
        view = None if task is None else task_view(self.studio.tasks, task)
        is_made = view is None or not view["is_alive"]
        upload = read_object(folder / "upload.json") if is_made else None
        try:
            with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
                card = file.read(_CARD_BYTES)
        except OSError:
            card = ""
        rows = upload.get("files", []) if upload else []
        return {
            "here": f"{model.address}/publish/{name}",
            "task": view,
            "upload": upload,
            "card": card,
            "files": [(str(row["name"]), size_text(int(row["bytes"]))) for row in rows],
            "total": size_text(sum(int(row["bytes"]) for row in rows)),
        }

    def _folder(self, upload: str) -> Path:
        return (self.studio.home / "publish" / upload).absolute()

    def _request(self, upload: str) -> dict[str, Any]:
        """Return the request that an upload was prepared for.

        Raises:
            HTTPException: 404 if there is no such upload.
        """
        is_name = len(upload) == 16 and upload.isascii() and upload.isalnum()
        found = read_object(self._folder(upload) / "request.json") if is_name else None
        if found is None or not isinstance(found.get("words"), list):
            raise HTTPException(404, "This card no longer exists. Make it again.")
        return found


def _keep_newest(folder: Path) -> None:
    """Remove the oldest prepared uploads."""
    with contextlib.suppress(OSError):
        uploads = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for upload in uploads[_KEPT_UPLOADS:]:
            files.remove_folder(upload)
