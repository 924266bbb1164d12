"""`impasto publish`: upload a model with a model card to the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from impasto import presence
from impasto.cli.local_paths import READ, WRITTEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from impasto.checkpoints.uploading import Content
    from impasto.cli.console import Console
    from impasto.runs import RunDirectory

PLAN = "upload.json"
"""The file that `--out` writes beside the card: the files that would be sent, and their sizes."""


@click.command()
@click.argument("source", metavar="RUN_OR_MODEL", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option(
    "--license", "license_id",
    help="The identifier of the licence on the Hub, such as creativeml-openrail-m; default: that "
    "in saving.metadata.",
)  # fmt: skip
@click.option("--license-name", help="With --license other: the name of the licence.")
@click.option("--license-link", help="With --license other: the URL of the licence text.")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option(
    "--card", metavar="FILE", type=READ,
    help="Use this README.md as the card, such as one written by --out, with the samples and "
    "curves beside it that it mentions.",
)  # fmt: skip
@click.option(
    "--out", metavar="DIR", type=WRITTEN,
    help="Write the card, its samples and curves, and the list of files into this folder.",
)  # fmt: skip
@click.option(
    "--yes", is_flag=True, help="Send the model; without this, nothing leaves this machine."
)
def publish(source: Path, repo_id: str, *, yes: bool, private: bool, **options: Any) -> None:
    """Publish a model on the Hugging Face Hub, with a card made from its run.

    Without --yes, this shows what would be sent, and sends nothing. The access token is read from
    HF_TOKEN or from `hf auth login`.

    \b
    impasto publish runs/my-style ada/my-style --license creativeml-openrail-m
    impasto publish runs/my-style ada/my-style --license creativeml-openrail-m --yes
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.checkpoints.uploading import has_token, model_files, require_repo_id, upload
    from impasto.cli.console import Console
    from impasto.report.hub_licenses import require_license
    from impasto.report.model_card import CARD, License, license_of, make_card

    console = Console()
    require_repo_id(repo_id)
    _require_apart(options["out"], source)
    source = _fetched(source, console)
    model, run = _model_of(source)
    asked = options["license_id"] or (license_of(run) if run is not None else None)
    license_id = require_license(asked, options["license_name"], options["license_link"])
    found, left_out = model_files(model)
    chosen = License(license_id, options["license_name"], options["license_link"])
    made = make_card(model, run, chosen)
    card = _card_text(options["card"], made.text)
    contents: dict[str, Content] = {CARD: card.encode("utf-8", errors="replace")}
    contents |= _images_of(options["card"], card, made.images)
    contents |= found
    if left_out:
        console.note(f"Not published: {', '.join(left_out)}")
    _show(console, repo_id, contents)
    if options["out"] is not None:
        plan = {
            "repo_id": repo_id,
            "private": private,
            "license": license_id,
            "left_out": left_out,
            "has_token": has_token(),
        }
        _write(options["out"], card, made.images, plan, contents)
        console.note(f"Wrote {options['out'] / CARD}.")
    elif not yes:
        console.paragraph(f"\n{card}")
    if not yes:
        console.note("Nothing was sent. Add --yes to send it.")
        return
    address = upload(repo_id, contents, console, private=private)
    console.note(f"Published: {address}")


def _fetched(source: Path, console: Console) -> Path:
    """Return a local path of the run or model; one in an object store is fetched as far as needed.

    Raises:
        ModelError: The model does not exist.
        RunError: The run does not exist.
        StorageError: The object store cannot be used.
    """
    from impasto.remote_paths import is_remote
    from impasto.runs.remote.contents import SETTINGS, is_of_models
    from impasto.runs.remote.fetching import fetch_model
    from impasto.runs.remote.reading import is_of_pages, is_of_publishing, open_run
    from impasto.runs.remote.run_in_store import require_location
    from impasto.storage import objects

    if not is_remote(source):
        return source
    require_location(source)
    if objects.look_up(source / SETTINGS) is not None:
        return open_run(source, console, is_of_publishing).path
    location, key = source.parent.parent, f"{source.parent.name}/{source.name}"
    if not is_of_models(key) or objects.look_up(location / SETTINGS) is None:
        return fetch_model(source, console)

    def is_wanted(other: str) -> bool:
        return f"{other}/".startswith(f"{key}/") or is_of_pages(other)

    found = open_run(location, console, is_wanted).path / key
    return found if presence.exists(found) else fetch_model(source, console)


def _require_apart(out: Path | None, source: Path) -> None:
    """Make sure that `--out` is not inside the run or model to be published.

    Raises:
        ConfigError: It is.
    """
    from impasto import files
    from impasto.errors import ConfigError

    if out is not None and files.is_inside(out, source):
        raise ConfigError(f"--out {out} is inside {source}. Give a folder outside of it.")


def _model_of(source: Path) -> tuple[Path, RunDirectory | None]:
    """Return the model to publish, and the run that trained it, or None if that is unknown.

    Raises:
        RunError: The run has no trained model yet.
    """
    from impasto.errors import RunError
    from impasto.runs import RunDirectory

    run = RunDirectory(source)
    if presence.is_dir(source) and presence.is_file(run.config_file):
        model = run.exported_model()
        if model is None:
            raise RunError(
                f"{source} has no trained model yet: it is exported when a run ends. "
                f"{run.state().sentence(source)}"
            )
        return model, run
    owner = RunDirectory(source.resolve().parent.parent)
    in_run = source.resolve().parent.name in ("export", "models") and owner.is_there()
    return source, owner if in_run else None


def _card_text(file: Path | None, made: str) -> str:
    from impasto.errors import ConfigError
    from impasto.parsing import read_text

    if file is None:
        return made
    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--card {file} cannot be read: {error}.") from error
    if not text.startswith("---\n") or "\nlicense:" not in text:
        raise ConfigError(
            f"--card {file} does not begin with the metadata that the Hub needs: a line ---, "
            f"entries such as license, and another line ---."
        )
    return text


def _images_of(file: Path | None, card: str, made: Mapping[str, bytes]) -> dict[str, Content]:
    """Return file name -> content of the images that the card mentions.

    Images beside the user's own card, as written by `--out`, come before those in `made`, so that
    the user publishes the images that were reviewed, even if the run has drawn new ones since.
    Without a card, all images in `made` are returned.
    """
    from impasto import files
    from impasto.report.model_card import CURVES, SAMPLES

    if file is None:
        return dict(made)
    beside = {
        f"{folder}/{path.name}": path
        for folder in (SAMPLES, CURVES)
        for path in sorted((file.parent / folder).glob("*"))
        if path.is_file() and files.is_inside(path, file.parent)
    }
    images: dict[str, Content] = {**made, **beside}
    return {name: image for name, image in images.items() if _is_named(name, card)}


def _is_named(name: str, card: str) -> bool:
    """Return whether the text of a card contains the name of a file, plain or URL-quoted."""
    return any(re.search(rf"{re.escape(text)}(?!\w)", card) for text in (name, quote(name)))


def _show(console: Console, repo_id: str, contents: dict[str, Content]) -> None:
    from impasto.checkpoints.uploading import size_of
    from impasto.progress import size_text

    total = sum(map(size_of, contents.values()))
    console.heading(f"For {repo_id}: {size_text(total)}")
    console.table({name: size_text(size_of(content)) for name, content in contents.items()})


def _write(
    folder: Path,
    card: str,
    images: Any,
    plan: dict[str, Any],
    contents: dict[str, Content],
) -> None:
    """Write the card, its images and the list of files; delete the images of an earlier card."""
    from impasto import files
    from impasto.checkpoints.uploading import size_of
    from impasto.report.model_card import CARD, OWN_IMAGES

    sizes = [{"name": name, "bytes": size_of(content)} for name, content in contents.items()]
    if presence.is_file(folder / PLAN):
        for former in OWN_IMAGES - {*images, *contents}:
            (folder / former).unlink(missing_ok=True)
    for name, content in images.items():
        with files.replace_file(folder / name) as partial:
            partial.write_bytes(content)
    files.write_text(folder / CARD, card)
    files.write_json(folder / PLAN, {**plan, "files": sizes})
