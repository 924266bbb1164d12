"""File formats of results, by training method."""

from __future__ import annotations

FORMATS = {
    "full": ("safetensors", "ckpt", "diffusers"),
    "hypernetwork": ("a1111", "portable", "novelai", "safetensors"),
}
"""Training method -> the formats that its results can be written in; the first is the default."""
