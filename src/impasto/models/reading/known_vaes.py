"""Identifies common standalone VAE files by content, and with that the models that they are for.

SD 1's, SD 2's and SDXL's VAEs have the same names and shapes and different latents; a bare file
does not state which it is. The SHA-256 are those that the files' publishers show.
"""

from __future__ import annotations

from pathlib import Path

from impasto import files

SD, SDXL = 0.18215, 0.13025
"""Scaling factors of the latents of SD 1 and 2, and of SDXL."""

KNOWN: dict[str, tuple[str, float]] = {
    "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75": ("vae-ft-mse-840000", SD),
    "c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab": ("vae-ft-mse-840000", SD),
    "df3c506e51b7ee1d7b5a6a2bb7142d47d488743c96aa778afb0f53a2cdc2d38d": ("kl-f8-anime2", SD),
    "2f11c4a99ddc28d0ad8bce0acc38bed310b45d38a3fe4bb367dc30f3ef1a4868": ("kl-f8-anime", SD),
    "f921fb3f29891d2a77a6571e56b8b5052420d2884129517a333c60b1b4816cdf": ("NovelAI's animevae", SD),
    "63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e": ("SDXL's own", SDXL),
    "235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1": ("fp16-fix", SDXL),
}  # fmt: skip
"""SHA-256 of a file -> its name, and its scaling factor."""


def known_vae(file: Path) -> tuple[str, float] | None:
    """Return the name and scaling factor of a VAE file, or None if it is not a known one."""
    return KNOWN.get(files.sha256_of(file))
