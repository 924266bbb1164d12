"""Checks the forms of the page "Models", and converts them to commands.

Typed names follow `--`, or are joined to their option by `=`, so that none is parsed as an option.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from impasto.config.names import file_name_problem
from impasto.errors import ConfigError
from impasto.family_keys import FAMILY_KEYS
from impasto.report.hub_licenses import require_license
from impasto.studio.models import FoundModel

_DTYPES = ("fp16", "bf16", "fp32")
CONVERT_CHOICES = {
    "to": ("safetensors", "ckpt", "diffusers"),
    "dtype": _DTYPES,
    "unet-dtype": _DTYPES,
    "text-encoder-dtype": _DTYPES,
    "vae-dtype": _DTYPES,
    "family": FAMILY_KEYS,
    "prediction-type": ("epsilon", "v_prediction"),
}
"""The options of `impasto convert` that the form offers, and their values."""

_ENDINGS = {"safetensors": ".safetensors", "ckpt": ".ckpt", "diffusers": ""}
_LONGEST = 500
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]{0,199}", re.ASCII)

Arguments = list[str | Path]


def convert_arguments(model: FoundModel, form: FormData, folders: Sequence[Path]) -> Arguments:
    """Return the arguments of `impasto convert` for a form.

    Raises:
        HTTPException: 400 if a field has an invalid value; 409 if the name is taken.
    """
    chosen = {key: _text(form, key) for key in CONVERT_CHOICES}
    for key, value in chosen.items():
        if value and value not in CONVERT_CHOICES[key]:
            raise HTTPException(400, f"{key} cannot be {value!r}.")
    name = _text(form, "name")
    ending = _ENDINGS[chosen["to"] or "safetensors"]
    fault = file_name_problem(name) if name else "is missing"
    if name.startswith("."):
        fault = "starts with a dot, and such files are hidden"
    if fault:
        raise HTTPException(400, f"The name {fault}. Enter one such as my-model, without a folder.")
    target = _folder(form, folders) / (name if name.endswith(ending) else f"{name}{ending}")
    if target.exists() or target.is_symlink():
        raise HTTPException(409, f"{target.name} already exists. Choose another name.")
    options = [f"--{key}={value}" for key, value in chosen.items() if value]
    options += ["--ema"] if form.get("ema") else []
    title = _text(form, "title")
    options += [f"--title={title}"] if title else []
    return ["convert", *options, "--", model.path, target]


def download_arguments(form: FormData, folders: Sequence[Path]) -> Arguments:
    """Return the arguments of `impasto download` for a form; the last one is the id.

    Raises:
        HTTPException: 400 if a field has an invalid value.
    """
    hub_id, revision, file = (_text(form, key) for key in ("id", "revision", "file"))
    if not _REPO_ID.fullmatch(hub_id):
        raise HTTPException(
            400, "The id must have the form owner/name, as shown on the pages of the Hub."
        )
    if revision and not _REVISION.fullmatch(revision):
        raise HTTPException(400, "The revision must be the name of a branch or tag, or a commit.")
    options = [f"--revision={revision}"] if revision else []
    options += [f"--file={file}"] if file else []
    return ["download", *options, "--out", _folder(form, folders), "--", hub_id]


def publish_arguments(model: FoundModel, form: FormData) -> Arguments:
    """Return the arguments of `impasto publish` for a form, without the option for sending.

    Raises:
        HTTPException: 400 if a field has an invalid value.
    """
    repo_id = _text(form, "repo")
    if not _REPO_ID.fullmatch(repo_id):
        raise HTTPException(400, "The repository must have the form owner/name.")
    license_id, name, link = (_text(form, f"license{end}") for end in ("", "-name", "-link"))
    try:
        require_license(license_id, name, link)
    except ConfigError as error:
        raise HTTPException(400, str(error)) from error
    options = [f"--license={license_id}"]
    options += [f"--license-name={name}", f"--license-link={link}"] if license_id == "other" else []
    options += ["--private"] if form.get("private") else []
    return ["publish", *options, "--", model.path, repo_id]


def sent_to_publish(arguments: Sequence[str]) -> dict[str, str]:
    """Return the form fields for a result of `publish_arguments`; empty for another command."""
    if len(arguments) < 2 or arguments[0] != "publish":
        return {}
    options = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments[1:-3])
    private = {"private": "yes"} if "private" in options else {}
    return {**options, "repo": arguments[-1]} | private


def _text(form: FormData, key: str) -> str:
    value = form.get(key, "")
    text = value.strip() if isinstance(value, str) else ""
    if len(text) > _LONGEST or not text.isprintable():
        raise HTTPException(400, f"{key} is too long, or has unprintable characters.")
    return text


def _folder(form: FormData, folders: Sequence[Path]) -> Path:
    """Return the model folder that a form names by number; the first if there is no number."""
    number = _text(form, "folder") or "0"
    if number not in map(str, range(len(folders))):
        raise HTTPException(400, "There is no such model folder.")
    return folders[int(number)].absolute()
