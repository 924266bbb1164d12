"""Settings of how images and captions are used, which may be set at each level of a dataset.

Key names are those of sd-scripts' dataset configuration; the levels are in `dataset.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from impasto.config.base import Section
from impasto.config.names import Ending

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


def _require_word(text: str) -> str:
    if not text.strip():
        raise ValueError(f"expected a word (found {text!r}), which every caption contains")
    return text


Word = Annotated[str, AfterValidator(_require_word)]
ColumnName = Annotated[str, Field(min_length=1)]


class SubsetKeys(Section):
    """How images and captions are used; may be set at each level."""

    num_repeats: Count = 1
    """How many times each image is shown in an epoch; 0 leaves the subset out."""

    recursive: bool = True
    """Also use images in sub-folders. Has no effect on a subset with `metadata_file`, which lists
    its images."""

    caption_extension: Ending | None = None
    """Extension of the caption files, in any letter case. Off means `.caption` for prose and `.txt`
    for tags, joined where both exist. A `metadata_file` holds the captions itself."""

    image_column: ColumnName | None = None
    """Column of Parquet and Arrow tables that holds the images: bytes, Hugging Face's pairs of
    bytes and path, or paths below the table's folder. Off means `image`, or the only column of such
    a type."""

    caption_column: ColumnName | None = None
    """Column of such tables that holds the captions, and the key in a webdataset's `.json` files.
    Off means the first that exists of `caption`, `text`, `prompt`, `captions`, `txt`, `tags`."""

    class_tokens: str | None = None
    """Caption for images that have no caption file, such as `sks dog`; with a `metadata_file`, for
    entries without a caption. An image whose caption file is empty keeps its empty caption."""

    shuffle_caption: bool = False
    """Shuffle the tags of a caption each time it is used."""

    caption_separator: Annotated[str, Field(min_length=1)] = ","
    """Separator between tags. Where tags are shuffled or dropped, they are joined with `, `."""

    keep_tokens: Count = 0
    """Number of tags at the start of a caption that stay in place and are never dropped."""

    keep_tokens_separator: str = ""
    """Separator, such as `|||`, that marks the tags to keep: those before it stay, those after it
    are shuffled and dropped, those after a second one stay at the end. Empty means none."""

    secondary_separator: str | None = None
    """Separator, such as `;;;`, within a group of tags that stay together when tags are
    shuffled."""

    enable_wildcard: bool = False
    """Resolve wildcards: `{red|blue}` becomes one of its alternatives, `{{` and `}}` are literal
    braces, and one line of a caption of several lines is chosen. Off means that its first line is
    used."""

    caption_prefix: str | None = None
    """Text before each caption, followed by a space; before the first line of a caption of several
    lines, as in sd-scripts."""

    caption_suffix: str | None = None
    """Text after each caption, preceded by a space; after the last line of a caption of several
    lines, as in sd-scripts."""

    caption_dropout_rate: Fraction = 0.0
    """Probability that a caption is replaced by the empty one, so that the model also learns to
    draw without a prompt, which classifier-free guidance needs; 0.1 is usual for large datasets, 0
    for small ones."""

    caption_dropout_every_n_epochs: Count = 0
    """Drop all captions in every n-th epoch; 0 means never."""

    caption_tag_dropout_rate: Fraction = 0.0
    """Probability that a tag is dropped, for each tag."""

    token_warmup_min: Count = 1
    """Number of tags that are shown at the first step, if `token_warmup_step` is set."""

    token_warmup_step: Annotated[float, Field(ge=0)] = 0.0
    """Steps until all tags are shown, a few more at a time; a value below 1 is a fraction of the
    run. 0 means all tags from the start."""

    flip_aug: bool = False
    """Mirror images in half of their showings. Both versions are encoded ahead of training."""

    flip_safe: tuple[Word, ...] = ("left", "right")
    """Words that prevent mirroring: images with one of them in their caption are never mirrored."""

    random_crop: bool = False
    """Crop at a random position instead of the centre. Images are then encoded each time they are
    shown, which is slower; so are those of `color_aug` and `face_crop_aug_range`."""

    color_aug: bool = False
    """Change hue or brightness slightly in a third of the showings."""

    face_crop_aug_range: tuple[float, float] | None = None
    """Crop around the face whose position is in the file name (`name_x_y_width_height.png`, its
    centre and size in pixels), so that it takes up 1/high to 1/low of the shorter side: `[low,
    high]`."""

    alpha_mask: bool = False
    """Use the alpha channel as a loss mask: each pixel counts by its opacity."""

    resize_interpolation: Literal[
        "lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"
    ] = "lanczos"
    """Interpolation with which images are resized."""

    latents_from_npz: bool = False
    """Use latents that sd-scripts cached beside the images (`.npz`) where they fit. They hold one
    sample instead of the mean and standard deviation, and do not record which VAE made them."""

    @model_validator(mode="after")
    def _class_tokens_hold_text(self) -> SubsetKeys:
        if self.class_tokens is not None and not self.class_tokens.strip():
            raise ValueError(
                "class_tokens is empty; expected words, as in class_tokens = 'sks dog'. Without "
                "it, images that have no caption file have an empty caption"
            )
        return self

    @model_validator(mode="after")
    def _face_range_is_in_order(self) -> SubsetKeys:
        if self.face_crop_aug_range is not None:
            low, high = self.face_crop_aug_range
            if not 1 <= low <= high:
                raise ValueError(
                    f"face_crop_aug_range is [{low}, {high}]; expected [low, high] with "
                    f"1 <= low <= high, as in [2.0, 4.0]"
                )
        return self
