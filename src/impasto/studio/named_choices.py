"""Datasets and models by the names that the pages show, for the forms that ask for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto.errors import ConfigError
from impasto.parsing import is_text, printable
from impasto.studio.datasets import find_datasets
from impasto.studio.folders import Folders
from impasto.studio.models import CHECKPOINT_ENDINGS, all_models, is_diffusers


@dataclass(frozen=True)
class Choice:
    """Something that can be chosen.

    Attributes:
        path: Where it is.
        name: Its name as pages show it.
        label: The name, with the folder where several have it.
    """

    path: str
    name: str
    label: str


def dataset_choices(folders: Folders) -> list[Choice]:
    """The datasets that have images."""
    return _choices(summary.path for summary in find_datasets(folders) if summary.count)


def model_choices(folders: Folders) -> list[Choice]:
    """The models that a run can begin with: those that were given, and what runs have exported."""
    found = sorted(model.path for model in all_models(folders))
    return _choices(p for p in found if p.suffix.lower() in CHECKPOINT_ENDINGS or is_diffusers(p))


def path_of_name(text: str, choices: Sequence[Choice]) -> str:
    """The path of what has a name among some choices; the text itself where nothing has.

    A model may be named without its ending.

    Raises:
        ConfigError: Several have it.
    """
    found = [one.path for one in choices if one.name == text]
    found = found or [one.path for one in choices if Path(one.name).stem == text]
    if len(found) > 1:
        raise ConfigError(f"Several have this name: {', '.join(found)}. Give one of these paths.")
    return found[0] if found else text


def _choices(paths: Iterable[Path]) -> list[Choice]:
    known = [path.absolute() for path in paths if is_text(str(path))]
    times = Counter(path.name for path in known)
    return [
        Choice(
            str(path),
            printable(path.name),
            printable(path.name if times[path.name] == 1 else f"{path.name}, in {path.parent}"),
        )
        for path in known
    ]
