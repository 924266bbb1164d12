"""A base model that is opened before it is needed, whose U-Net is read meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from impasto import presence
from impasto.checkpoints.reading_ahead import ReadAhead
from impasto.errors import ImpastoError
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.progress import Progress
from impasto.remote_paths import is_remote


@dataclass(frozen=True)
class OpenedAhead:
    """A base model on its way into memory.

    Attributes:
        source: The path that it was opened by.
        options: What was known of it.
        contents: What its files hold; the tensors of its U-Net take what was read of them.
        reading: Reads them.
    """

    source: str
    options: OpenOptions
    contents: ModelContents
    reading: ReadAhead

    def current(self, progress: Progress | None = None) -> ModelContents:
        """The contents; opened anew if the files of the U-Net are others by now.

        What changes from here on is an error to whoever reads the tensors.

        Raises:
            ModelError: As `open_model`.
        """
        unet = self.contents.components[self.contents.identity.family.unet.name]
        checks = {lazy.stored.path: lazy.stored.check for lazy in unet.values() if lazy.stored}
        try:
            for check in checks.values():
                check()
        except ImpastoError:
            return open_model(self.source, self.options, progress)
        return self.contents

    def close(self) -> None:
        """Read no further, and free what nobody took."""
        self.reading.close()


def open_ahead(source: str | Path, options: OpenOptions, dtype: torch.dtype) -> OpenedAhead | None:
    """Open a base model and begin to read its U-Net, if it is on this machine and can be opened.

    Whatever is wrong with it is reported when `open_model` opens it, in its turn.

    Args:
        source: A path; what an id or a URL names, here or as another VAE, is not fetched ahead.
        options: What is known of it.
        dtype: The type that its U-Net will come to.
    """
    named = [source, *([] if options.vae is None else [options.vae])]
    if not all(not is_remote(path) and presence.exists(Path(path).expanduser()) for path in named):
        return None
    try:
        contents = open_model(source, options)
    except ImpastoError:
        return None
    unet = contents.identity.family.unet.name
    reading = ReadAhead(contents.components[unet], dtype)
    components = {**contents.components, unet: reading.tensors}
    return OpenedAhead(str(source), options, replace(contents, components=components), reading)
