"""Local copies of Hub repositories that earlier downloads left in the Hugging Face cache."""

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
    """A network of a local copy.

    Attributes:
        folder: Folder of the network.
        sets: Its sets of weights, by variant.
        is_averaged: Whether the Hub may have both averaged and plain weights of it.
    """

    folder: Path
    sets: Mapping[str | None, Path]
    is_averaged: bool = False

    def is_whole(self, choice: WeightChoice) -> bool:
        """Return whether its configuration and the chosen set of weights exist with all shards.

        Raises:
            ModelError: An index of shards cannot be read.
        """
        taken = choice.of(self.sets)
        return taken is not None and is_whole(taken[1]) and presence.is_file(self.folder / CONFIG)

    def has_asked(self, choice: WeightChoice) -> bool:
        """Return whether the chosen set is the requested one, and needed plain weights exist.

        Half-precision files from an earlier download do not replace requested main files.
        """
        taken = choice.of(self.sets)
        return taken is not None and not choice.lacking(taken[0]) and self.has_plain(choice)

    def has_plain(self, choice: WeightChoice) -> bool:
        """Return whether the plain weights exist, or the choice does not need them."""
        asks = choice.weights == "ema" or (choice.weights == "plain" and choice.variant is None)
        return not (asks and self.is_averaged) or NOT_AVERAGED in self.sets


@dataclass(frozen=True)
class LocalCopy:
    """The local copy of a repository from earlier downloads.

    Attributes:
        folder: Folder of the copy.
        parts: Its networks; None if it is neither a Diffusers model nor a VAE.
    """

    folder: Path
    parts: list[_Part] | None

    def has_all(self, choice: WeightChoice) -> bool:
        """Return whether a further download would not change which files are opened."""
        return self.parts is not None and all(
            part.is_whole(choice) and part.has_asked(choice) for part in self.parts
        )

    def usable(self, choice: WeightChoice) -> Path | None:
        """Return the folder or file that can be opened without the Hub, or None."""
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
    """Return the copy of a repository on this machine, or None.

    Args:
        wanted: Its `repo_id` and `revision`, as for `huggingface_hub.snapshot_download`.
        layouts: Folders of the known families.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
    except IncompleteSnapshotError as error:  # as ours always are: only needed files are downloaded
        folder = Path(error.snapshot_path)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return LocalCopy(folder, _parts_of(folder, layouts))


def _parts_of(folder: Path, layouts: Collection[FolderLayout]) -> list[_Part] | None:
    """Return the networks of a copy; None if it is neither a Diffusers model nor a VAE."""
    if not presence.is_file(folder / MODEL_INDEX):
        stems = vae_alone([path.name for path in folder.iterdir()], layouts)
        return None if stems is None else [_Part(folder, find_weights(folder, stems))]
    layout = folder_layout_of(_index_of(folder), layouts)
    if layout is None:
        return []  # of an unknown kind: opening it reports that
    return [
        _Part(folder / name, find_weights(folder / name, stems), name in layout.averaged)
        for name, stems in layout.weights
    ]


def _index_of(folder: Path) -> Mapping[str, Any]:
    """Return the content of a folder's `model_index.json`; empty if it cannot be read."""
    try:
        index = parse_json(read_text(folder / MODEL_INDEX))
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}
