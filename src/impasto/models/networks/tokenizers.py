"""Tokenizers of a model's text encoders, and what cuts texts into their chunks."""

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
    """A text encoder's CLIPTokenizer of the model's own files, or else of the shipped vocabulary.

    Raises:
        ModelError: The model's files make no tokenizer.
    """
    try:
        own = contents.tokenizer_files.get(component.text.tokenizer, {})
        return tokenizer_of(own, component.text.pad_token)
    except Exception as error:  # tokenizers raises the plain class on a stranger's files
        raise ModelError(
            f"{contents.source}: its {component.text.tokenizer} folder cannot be read ({error}). "
            f"Download or copy it again, or remove it: then CLIP's own vocabulary is taken."
        ) from error


def tokenizer_of(tokenizer_files: Mapping[str, bytes], pad_token: str) -> Any:
    """A CLIPTokenizer from files; without any, from the shipped vocabulary and `pad_token`.

    The same files give the same object, since making one takes half a second and a run needs three:
    add no tokens to it, and ask it neither to pad nor to truncate.
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
    """What cuts texts into chunks for each text encoder of a model.

    All have the words of one vocabulary; what they fill up with differs. SD 2's tokenizer files
    pad with `!`, which transformers then also takes out of words; sd-scripts trains with that. For
    SDXL it takes the files of OpenCLIP, which do not. A1111 has open_clip's tokens, where `!` is a
    word like others.
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
