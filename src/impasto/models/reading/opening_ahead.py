"""Opens a base model before it is needed, and reads its U-Net in the background."""

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
    """A base model whose U-Net is being read into memory.

    Attributes:
        source: Path that it was opened by.
        options: Options that it was opened with.
        contents: Contents of its files; the tensors of its U-Net return the values read ahead.
        reading: Reader of those tensors.
    """

    source: str
    options: OpenOptions
    contents: ModelContents
    reading: ReadAhead

    def current(self, progress: Progress | None = None) -> ModelContents:
        """Return the contents, opened again if the files of the U-Net have changed since.

        A file that changes after this call gives an error when its tensors are read.

        Raises:
            ModelError: As for `open_model`.
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
        """Stop reading, and free the tensors that were not used."""
        self.reading.close()


def open_ahead(source: str | Path, options: OpenOptions, dtype: torch.dtype) -> OpenedAhead | None:
    """Open a base model and start reading its U-Net; None if it is not local or cannot be opened.

    Faults are not reported here but by `open_model` later.

    Args:
        source: Path of the model; a model or VAE given by a Hub id or URL is not fetched ahead.
        options: Options for opening it.
        dtype: Dtype that its U-Net will be converted to.
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
