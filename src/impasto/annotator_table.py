"""The tables of taggers and captioners with short names, and the categories of tags.

Imports no library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TAG_CATEGORIES = (
    "general", "character", "rating", "copyright", "artist", "meta", "model", "quality", "year",
)  # fmt: skip
"""The categories of tags."""

_DEMO = Path(__file__).resolve().parent / "demo"
DEMO_TAGGER = _DEMO / "tagger"
"""The small tagger that is part of the program; it knows only the demo's flat icons."""

SHIPPED_TAGGERS: Mapping[str, Path] = {"demo": DEMO_TAGGER}
SHIPPED_CAPTIONERS: Mapping[str, Path] = {"demo": _DEMO / "captioner"}
"""Small models that are part of the program, by short name; they know only the demo's drawings."""


@dataclass(frozen=True)
class KnownTagger:
    """A tagger on the Hub.

    Attributes:
        hub_id: `owner/name`, or `owner/name/folder`.
        balance: The threshold at which precision equals recall, from its model card; None if the
            card does not state it.
    """

    hub_id: str
    balance: float | None = None


TAGGERS: Mapping[str, KnownTagger] = {
    "wd-swinv2-v3": KnownTagger("SmilingWolf/wd-swinv2-tagger-v3", 0.2653),
    "wd-vit-v3": KnownTagger("SmilingWolf/wd-vit-tagger-v3", 0.2614),
    "wd-convnext-v3": KnownTagger("SmilingWolf/wd-convnext-tagger-v3"),
    "wd-vit-large-v3": KnownTagger("SmilingWolf/wd-vit-large-tagger-v3"),
    "wd-eva02-large-v3": KnownTagger("SmilingWolf/wd-eva02-large-tagger-v3", 0.5296),
    "wd-v1-4-convnext-v2": KnownTagger("SmilingWolf/wd-v1-4-convnext-tagger-v2", 0.3685),
    "wd-v1-4-convnextv2-v2": KnownTagger("SmilingWolf/wd-v1-4-convnextv2-tagger-v2", 0.3710),
    "wd-v1-4-swinv2-v2": KnownTagger("SmilingWolf/wd-v1-4-swinv2-tagger-v2", 0.3771),
    "wd-v1-4-vit-v2": KnownTagger("SmilingWolf/wd-v1-4-vit-tagger-v2", 0.3537),
    "wd-v1-4-moat-v2": KnownTagger("SmilingWolf/wd-v1-4-moat-tagger-v2"),
    "cl-tagger": KnownTagger("cella110n/cl_tagger/cl_tagger_1_02"),
    "pixai-v0.9": KnownTagger("deepghs/pixai-tagger-v0.9-onnx"),
    "camie": KnownTagger("deepghs/camie_tagger_onnx/refined"),
    "joytag": KnownTagger("fancyfeast/joytag"),
    "deepdanbooru": KnownTagger("skytnt/deepdanbooru_onnx"),
}
CAPTIONERS: Mapping[str, str] = {
    "blip-base": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
    "blip2": "Salesforce/blip2-opt-2.7b",
    "git-large": "microsoft/git-large-textcaps",
    "florence2-large": "florence-community/Florence-2-large",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
    "joycaption": "fancyfeast/llama-joycaption-beta-one-hf-llava",
}
