"""What earlier downloads from the Hugging Face Hub left in its cache on this machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.checkpoints.hub_listing import CHECKPOINT_ENDINGS, CONFIG, MODEL_INDEX, vae_alone
from impasto.checkpoints.weight_files import (
    NOT_AVERAGED,
    FolderLayout,
    WeightChoice,
    find_weights,
    folder_layout_of,
    is_whole,
)
from impasto.parsing import parse_json, read_text


@dataclass(frozen=True)
class _Part:
    """A network of a copy.

    Attributes:
        folder: Where it is.
        sets: Its sets of weights, by variant.
        is_averaged: Whether the Hub may have both averaged and plain weights of it.
    """

    folder: Path
    sets: Mapping[str | None, Path]
    is_averaged: bool = False

    def is_whole(self, choice: WeightChoice) -> bool:
        """Whether its configuration and the set of weights that is taken are there, all shards.

        Raises:
            ModelError: An index of shards cannot be read.
        """
        taken = choice.of(self.sets)
        return taken is not None and is_whole(taken[1]) and presence.is_file(self.folder / CONFIG)

    def has_asked(self, choice: WeightChoice) -> bool:
        """Whether the set that is taken is the one that is asked for, and plain weights are there.

        Half precision that an earlier download left is none for who asks for the main files.
        """
        taken = choice.of(self.sets)
        return taken is not None and not choice.lacking(taken[0]) and self.has_plain(choice)

    def has_plain(self, choice: WeightChoice) -> bool:
        """Whether the plain weights are there where the choice asks for them."""
        asks = choice.weights == "ema" or (choice.weights == "plain" and choice.variant is None)
        return not (asks and self.is_averaged) or NOT_AVERAGED in self.sets


@dataclass(frozen=True)
class LocalCopy:
    """What earlier downloads of a repository left.

    Attributes:
        folder: Where it is.
        parts: Its networks; None where it is neither a Diffusers model nor a VAE.
    """

    folder: Path
    parts: list[_Part] | None

    def has_all(self, choice: WeightChoice) -> bool:
        """Whether no download would change which files are opened."""
        return self.parts is not None and all(
            part.is_whole(choice) and part.has_asked(choice) for part in self.parts
        )

    def usable(self, choice: WeightChoice) -> Path | None:
        """What of it can be opened where the Hub cannot be asked."""
        if self.parts is None:
            files = self.folder.rglob("*")
            found = [path for path in files if path.suffix.lower() in CHECKPOINT_ENDINGS]
            return found[0] if len(found) == 1 and choice.variant is None else None
        can_be_opened = (
            all(part.is_whole(choice) for part in self.parts)
            and (choice.variant is None or any(choice.variant in part.sets for part in self.parts))
            and (choice.weights != "ema" or all(part.has_plain(choice) for part in self.parts))
        )
        return self.folder if can_be_opened else None


def local_copy(
    wanted: Mapping[str, str | None], layouts: Collection[FolderLayout]
) -> LocalCopy | None:
    """The copy of a repository on this machine, or None.

    Args:
        wanted: Its `repo_id` and `revision`, as `huggingface_hub.snapshot_download` takes them.
        layouts: The folders of the families that are known.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
    except IncompleteSnapshotError as error:  # as all of ours are: only what is used comes
        folder = Path(error.snapshot_path)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return LocalCopy(folder, _parts_of(folder, layouts))


def _parts_of(folder: Path, layouts: Collection[FolderLayout]) -> list[_Part] | None:
    """The networks of a copy; None where it is neither a Diffusers model nor a VAE."""
    if not presence.is_file(folder / MODEL_INDEX):
        stems = vae_alone([path.name for path in folder.iterdir()], layouts)
        return None if stems is None else [_Part(folder, find_weights(folder, stems))]
    layout = folder_layout_of(_index_of(folder), layouts)
    if layout is None:
        return []  # whatever it is: opening it says so
    return [
        _Part(folder / name, find_weights(folder / name, stems), name in layout.averaged)
        for name, stems in layout.weights
    ]


def _index_of(folder: Path) -> Mapping[str, Any]:
    """What a folder's `model_index.json` says; nothing if it cannot be read."""
    try:
        index = parse_json(read_text(folder / MODEL_INDEX))
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}
