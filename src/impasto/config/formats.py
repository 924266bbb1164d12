"""What results are written as, by the method that makes them."""

from __future__ import annotations

FORMATS = {
    "full": ("safetensors", "ckpt", "diffusers"),
    "hypernetwork": ("a1111", "portable", "novelai", "safetensors"),
}
"""What the results of each method can be written as; the first is the usual one."""
