"""What forms of the page "Models" ask for, checked and made into commands.

Names that were typed stand behind `--`, or are joined to their option by `=`, so that none is taken
for an option.
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
"""The options of `impasto convert` that a form has, and their values."""

_ENDINGS = {"safetensors": ".safetensors", "ckpt": ".ckpt", "diffusers": ""}
_LONGEST = 500
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]{0,199}", re.ASCII)

Arguments = list[str | Path]


def convert_arguments(model: FoundModel, form: FormData, folders: Sequence[Path]) -> Arguments:
    """`impasto convert` as a form asks for it.

    Raises:
        HTTPException: A field has no value that it can have, or there is something of that name.
    """
    chosen = {key: _text(form, key) for key in CONVERT_CHOICES}
    for key, value in chosen.items():
        if value and value not in CONVERT_CHOICES[key]:
            raise HTTPException(400, f"{key} cannot be {value!r}.")
    name = _text(form, "name")
    ending = _ENDINGS[chosen["to"] or "safetensors"]
    fault = file_name_problem(name) if name else "is missing"
    if name.startswith("."):
        fault = "begins with a dot, and such files are hidden"
    if fault:
        raise HTTPException(400, f"The name {fault}. Give one such as my-model, without a folder.")
    target = _folder(form, folders) / (name if name.endswith(ending) else f"{name}{ending}")
    if target.exists() or target.is_symlink():
        raise HTTPException(409, f"{target.name} is there already. Choose another name.")
    options = [f"--{key}={value}" for key, value in chosen.items() if value]
    options += ["--ema"] if form.get("ema") else []
    title = _text(form, "title")
    options += [f"--title={title}"] if title else []
    return ["convert", *options, "--", model.path, target]


def download_arguments(form: FormData, folders: Sequence[Path]) -> Arguments:
    """`impasto download` as a form asks for it; the id is the last word.

    Raises:
        HTTPException: A field has no value that it can have.
    """
    hub_id, revision, file = (_text(form, key) for key in ("id", "revision", "file"))
    if not _REPO_ID.fullmatch(hub_id):
        raise HTTPException(400, "The id is of the form owner/name, as the Hub's pages show it.")
    if revision and not _REVISION.fullmatch(revision):
        raise HTTPException(400, "The revision is the name of a branch or tag, or a commit.")
    options = [f"--revision={revision}"] if revision else []
    options += [f"--file={file}"] if file else []
    return ["download", *options, "--out", _folder(form, folders), "--", hub_id]


def publish_arguments(model: FoundModel, form: FormData) -> Arguments:
    """`impasto publish` as a form asks for it, without what sends it.

    The run stands for its model where it is its only one.

    Raises:
        HTTPException: A field has no value that it can have.
    """
    repo_id = _text(form, "repo")
    if not _REPO_ID.fullmatch(repo_id):
        raise HTTPException(400, "The repository is of the form owner/name.")
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
    """The fields of the form that `publish_arguments` made a command of; empty of another."""
    if len(arguments) < 2 or arguments[0] != "publish":
        return {}
    options = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments[1:-3])
    private = {"private": "yes"} if "private" in options else {}
    return {**options, "repo": arguments[-1]} | private


def _text(form: FormData, key: str) -> str:
    value = form.get(key, "")
    text = value.strip() if isinstance(value, str) else ""
    if len(text) > _LONGEST or not text.isprintable():
        raise HTTPException(400, f"{key} is too long, or has characters that cannot be shown.")
    return text


def _folder(form: FormData, folders: Sequence[Path]) -> Path:
    """The folder of models that a form names by its number; the first without one."""
    number = _text(form, "folder") or "0"
    if number not in map(str, range(len(folders))):
        raise HTTPException(400, "There is no such folder of models.")
    return folders[int(number)].absolute()
