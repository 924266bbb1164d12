"""CLIP's vocabulary of 49,408 tokens, which ships with Impasto, so that none is downloaded.

The 48,894 merges are OpenAI CLIP's (MIT, see `clip_vocabulary/NOTICE.txt`); the vocabulary follows
from them: 256 byte characters, the same at the end of a word, the merges, and the two special
tokens.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files as package_files
from pathlib import Path

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MODEL_MAX_LENGTH = 77


@lru_cache(maxsize=1)
def merges() -> tuple[tuple[str, str], ...]:
    """Return the byte-pair merges in order of rank."""
    packed = package_files("impasto.models").joinpath("clip_vocabulary", "merges.txt.xz")
    lines = lzma.decompress(packed.read_bytes()).decode("utf-8").split("\n")[1:-1]
    return tuple((left, right) for left, right in (line.split(" ") for line in lines))


@lru_cache(maxsize=1)
def token_ids() -> dict[str, int]:
    """Return token -> id in [0, 49408)."""
    letters = list(_byte_characters())
    words = letters + [letter + "</w>" for letter in letters]
    words += ["".join(pair) for pair in merges()]
    return {word: index for index, word in enumerate([*words, BOS, EOS])}


def _byte_characters() -> list[str]:
    """Return one printable character per byte, as GPT-2's byte-level BPE assigns them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def write_tokenizer(folder: Path, *, pad_token: str) -> None:
    """Write a Diffusers-style tokenizer folder that transformers loads by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer_files(pad_token).items():
        (folder / name).write_bytes(content)


@lru_cache(maxsize=2)
def tokenizer_files(pad_token: str) -> Mapping[str, bytes]:
    """Return the files of a Diffusers-style tokenizer folder: name -> content."""
    text = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges())
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": pad_token,
        "model_max_length": MODEL_MAX_LENGTH,
    }
    return {
        "merges.txt": text.encode(),
        "vocab.json": json.dumps(token_ids(), ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(config, indent=1).encode(),
    }
