"""Finds the files of taggers and captioners by path, short name or Hub id."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto.annotator_table import CAPTIONERS, SHIPPED_CAPTIONERS, SHIPPED_TAGGERS, TAGGERS
from impasto.checkpoints.downloads import download_snapshot
from impasto.checkpoints.hub import TIMEOUT_S
from impasto.errors import ConfigError, ModelError
from impasto.progress import Progress

__all__ = ["CAPTIONERS", "TAGGERS", "locate_captioner", "locate_tagger", "require_reachable"]

_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_FILES = ("*.onnx", "*.csv", "*.txt", "*.json")


def locate_tagger(name: str, progress: Progress) -> Path:
    """Return the folder or file of a tagger, which is downloaded if it is not on this machine.

    Args:
        name: A path, a short name, or a Hub id, optionally followed by a folder in it.
        progress: Shows the download.

    Raises:
        ConfigError: There is no such name; with the nearest.
        ModelError: It could not be downloaded.
    """
    path = Path(name)
    if path.exists() or name in SHIPPED_TAGGERS:
        return path if path.exists() else SHIPPED_TAGGERS[name]
    hub_id = TAGGERS[name].hub_id if name in TAGGERS else name
    owner, _, rest = hub_id.partition("/")
    repository, _, folder = rest.partition("/")
    if not repository or path.suffix:
        raise ConfigError(_unknown(name, [*TAGGERS, *SHIPPED_TAGGERS]))
    below = f" of {folder}" if folder else ""
    wanted = _Wanted(f"{owner}/{repository}", f"tagger {name}", f"the .onnx and its tags{below}")
    with wanted.or_what_to_do():
        return _downloaded(wanted.hub_id, folder, progress) / folder


def locate_captioner(name: str) -> str:
    """Return the folder of a captioner, or its id on the Hub.

    Raises:
        ConfigError: There is no such name; with the nearest.
    """
    if Path(name).exists():
        return name
    if name in SHIPPED_CAPTIONERS:
        return str(SHIPPED_CAPTIONERS[name])
    if name in CAPTIONERS:
        return CAPTIONERS[name]
    if name.count("/") != 1 or Path(name).suffix:
        raise ConfigError(_unknown(name, [*CAPTIONERS, *SHIPPED_CAPTIONERS]))
    return name


def require_reachable(hub_id: str) -> None:
    """Check that a captioner of the Hub is cached or can be downloaded, before transformers tries.

    transformers tries six times, for half a minute, and prints each time.

    Raises:
        ModelError: It is not cached, and there is no network or no such model.
    """
    from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache

    if Path(hub_id).exists() or isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return
    with _Wanted(hub_id, f"captioner {hub_id}", "its .json and .safetensors").or_what_to_do():
        if is_offline_mode():
            raise ConnectionError
        HfApi().model_info(hub_id, timeout=TIMEOUT_S)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    return (
        f"There is no model {name!r}: neither a path that exists, nor a known name, nor a Hub id "
        f"(owner/name). Nearest: {', '.join(near) or 'none'}; known: "
        f"{', '.join(known)}."
    )


def _downloaded(hub_id: str, folder: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [f"{folder}/{p}" if folder else p for p in _FILES]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError):
        pass  # not downloaded yet
    return download_snapshot(hub_id, progress, repo_id=hub_id, allow_patterns=patterns)


@dataclass(frozen=True)
class _Wanted:
    """A model that is needed from the Hub.

    Attributes:
        hub_id: Its id.
        title: A description: `tagger wd-swinv2-v3`.
        files: A description of the files that are needed.
    """

    hub_id: str
    title: str
    files: str

    @contextlib.contextmanager
    def or_what_to_do(self) -> Iterator[None]:
        """Convert download errors into one that says in a paragraph what to do.

        Raises:
            ModelError: There is no network, or no such model.
        """
        from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

        try:
            yield
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"The Hugging Face Hub shows no {self.hub_id}: it is misspelt, private or "
                f"gated. Check the name, log in with `hf auth login` if it is gated, or give the "
                f"folder of a copy, with {self.files}, in place of the name."
            ) from error
        except (OSError, ValueError, HTTPError) as error:
            is_of_disk = getattr(error, "errno", None) in _OF_DISK
            said = self._without_room(error) if is_of_disk else self._without_network(error)
            raise ModelError(said) from error

    @property
    def _cache(self) -> Path:
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE) / f"models--{self.hub_id.replace('/', '--')}"

    def _without_room(self, error: Exception) -> str:
        return (
            f"The {self.title} cannot be stored in {self._cache}: {_reason(error)}. Free some "
            "space there, or set HF_HOME to a writable folder."
        )

    def _without_network(self, error: Exception) -> str:
        from huggingface_hub.constants import ENDPOINT

        kind, _, _ = self.title.partition(" ")
        return (
            f"The {self.title} is not on this machine, and {ENDPOINT}/{self.hub_id} could not be "
            f"reached ({_reason(error)}). Download it on a machine with a network and give its "
            f"folder, with {self.files}, in place of the name. Or copy {self._cache} from a "
            f"machine that has used it. The only {kind} that comes with this program, for flat "
            f"icons only, is named `demo`."
        )


def _reason(error: Exception) -> str:
    """Return a short reason why the Hub could not be reached."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    said = str(error).strip().split("\n")[0].removeprefix("Got: ")
    return said[:80] or type(error).__name__
