"""Datasets and models by the names that pages show, for forms in which one is chosen."""

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
    """A dataset or model that can be chosen.

    Attributes:
        path: Its absolute path.
        name: Its name as shown on pages.
        label: Its name, followed by its folder if several have this name.
    """

    path: str
    name: str
    label: str


def dataset_choices(folders: Folders) -> list[Choice]:
    """Return the datasets that have images."""
    return _choices(summary.path for summary in find_datasets(folders) if summary.count)


def model_choices(folders: Folders) -> list[Choice]:
    """Return the models that a run can start from: given ones, and the exports of runs."""
    found = sorted(model.path for model in all_models(folders))
    return _choices(p for p in found if p.suffix.lower() in CHECKPOINT_ENDINGS or is_diffusers(p))


def path_of_name(text: str, choices: Sequence[Choice]) -> str:
    """Return the path of the choice with a name, or the text itself if no choice has this name.

    A model may be named without its file extension.

    Raises:
        ConfigError: Several choices have this name.
    """
    found = [one.path for one in choices if one.name == text]
    found = found or [one.path for one in choices if Path(one.name).stem == text]
    if len(found) > 1:
        raise ConfigError(f"This name is ambiguous: {', '.join(found)}. Enter one of these paths.")
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
