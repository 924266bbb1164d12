"""Builds the tokenizers of a model's text encoders, and the objects that cut texts into chunks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.errors import ModelError
from impasto.models.family import Component, Reading
from impasto.models.reading.contents import ModelContents
from impasto.models.tokenization.tokens import TextLayout, TextTokens
from impasto.models.tokenization.vocabulary import EOS, token_ids
from impasto.models.tokenization.vocabulary import tokenizer_files as shipped_files

if TYPE_CHECKING:
    from impasto.models.networks.loading import BaseModel


def build_tokenizer(contents: ModelContents, component: Component) -> Any:
    """Build a text encoder's CLIPTokenizer from the model's files or the shipped vocabulary.

    Raises:
        ModelError: The model's tokenizer files are unusable.
    """
    try:
        own = contents.tokenizer_files.get(component.text.tokenizer, {})
        return tokenizer_of(own, component.text.pad_token)
    except Exception as error:  # tokenizers raises plain Exception for malformed files
        raise ModelError(
            f"{contents.source}: its {component.text.tokenizer} folder cannot be read ({error}). "
            f"Download or copy it again, or remove it to use CLIP's standard vocabulary."
        ) from error


def tokenizer_of(tokenizer_files: Mapping[str, bytes], pad_token: str) -> Any:
    """Return a CLIPTokenizer built from files; from the shipped vocabulary if there are none.

    The same files give the same object, since building one takes half a second and a run needs
    three: callers must not add tokens to it, nor have it pad or truncate.
    """
    return _tokenizer_of(tuple(sorted((tokenizer_files or shipped_files(pad_token)).items())))


@lru_cache(maxsize=4)
def _tokenizer_of(tokenizer_files: tuple[tuple[str, bytes], ...]) -> Any:
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in tokenizer_files:
            (folder / file).write_bytes(content)
        return CLIPTokenizer.from_pretrained(folder)


def build_tokens(model: BaseModel, layout: TextLayout) -> tuple[TextTokens, ...]:
    """Build the objects that cut texts into chunks, one per text encoder of a model.

    All use one vocabulary; only the padding differs. SD 2's tokenizer files pad with `!`, which
    transformers then also removes from inside words; sd-scripts trains with that. For SDXL,
    sd-scripts uses OpenCLIP's tokenizer files, which do not. A1111 uses open_clip's tokens, where
    `!` is an ordinary token.
    """
    return tuple(
        _tokens(model.tokenizers[component.name], component.text, layout)
        for component in model.family.text_encoders
    )


def _tokens(own: Any, reading: Reading, layout: TextLayout) -> TextTokens:
    has_own_vocabulary = len(own) != len(token_ids())
    tokenizer = own if has_own_vocabulary else tokenizer_of({}, EOS)
    eats_pad = layout.rules.pads_with_token and reading.eats_pad
    return TextTokens(tokenizer, layout, reading.pad_id, reading.pad_token if eats_pad else None)
