"""The file extensions of images: of those that are supported, and of those that are only reported.

A folder may hold images in formats that are not supported. They are reported with advice, never
skipped silently.
"""

from __future__ import annotations

import functools
import os
import unicodedata

from impasto.invocation import install_extra

HEIF = frozenset({".heic", ".heif", ".hif", ".heics", ".heifs"})
EXTENSIONS = HEIF | {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".webp", ".bmp", ".dib",
    ".gif", ".tif", ".tiff", ".avif", ".avifs",
}  # fmt: skip
_SAVE_AS = "save it as PNG, JPEG or WebP"
_OTHERS = {
    "JPEG XL": ".jxl",
    "JPEG 2000": ".jp2 .j2k .jpf .jpx .jpm .jpc .j2c",
    "Photoshop": ".psd .psb",
    "a drawing program's document": ".xcf .kra .ora .clip .sai .sai2 .mdp .procreate .afphoto "
    ".csp .pdn .ase .aseprite .fla .ai .eps .cdr",
    "vector graphics": ".svg .svgz .wmf .emf",
    "a camera's raw file": ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw "
    ".3fr .iiq .rwl .raw",
    "Targa": ".tga .icb .vda .vst",
    "HDR": ".exr .hdr .pfm .jxr .wdp .hdp",
    "Netpbm": ".ppm .pgm .pbm .pnm .pam",
    "a texture": ".dds .ktx .ktx2 .pvr .astc .blp .vtf",
    "an icon": ".ico .icns .cur .ani",
    "an image format": ".qoi .pcx .sgi .rgb .rgba .bw .ras .xbm .xpm .wbmp .fits .fit .bpg .flif "
    ".mng .jng .pict .pct .webp2 .wp2 .jls .cal .djvu",
    "a video": ".mp4 .webm .mov .mkv .avi .m4v .gifv",
}
UNREAD: dict[str, str] = {
    ending: f"{what} ({ending}) is not read; {_SAVE_AS}"
    for what, endings in _OTHERS.items()
    for ending in endings.split()
}
"""File extension of an unsupported image format -> the reason and advice."""

_SIGNATURES = (
    b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*",
)  # fmt: skip


def is_odd_ending(ending: str) -> bool:
    """Return whether an extension is that of an image with a suffix added, as in `.jpg_large`."""
    lower = ending.lower()
    return lower not in EXTENSIONS and any(
        lower.startswith(known) and not lower[len(known)].isalpha() for known in EXTENSIONS
    )


def looks_like_image(head: bytes) -> bool:
    """Return whether the first 16 bytes of a file are those of a supported image format."""
    return (
        head.startswith(_SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in {b"avif", b"heic", b"mif1"})
    )


def normalized_name(name: str) -> str:
    """Return a file name as systems that ignore spelling see it: NFC, extension in lower case."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122 - hot path
    plain = stem if stem.isascii() else unicodedata.normalize("NFC", stem)
    return plain + ending.lower()


def heif_advice() -> str:
    """Return advice about HEIC and HEIF images if their decoder is missing."""
    return (
        f"HEIC and HEIF need the package pillow-heif, which is not installed: "
        f"{install_extra('heif')}, or save it as JPEG or PNG"
    )


@functools.cache
def register_heif() -> bool:
    """Make Pillow read HEIC and HEIF; return False if pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True
