"""Settings of how images and their words are used, which each level of a dataset may give.

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
        raise ValueError(f"expected a word (found {text!r}), as every caption has nothing in it")
    return text


Word = Annotated[str, AfterValidator(_require_word)]
ColumnName = Annotated[str, Field(min_length=1)]


class SubsetKeys(Section):
    """How images and their words are used; may be given at each level."""

    num_repeats: Count = 1
    """How often each image comes in an epoch; 0 leaves the subset out."""

    recursive: bool = True
    """Also take images from sub-folders; not of a subset with `metadata_file`, which names its
    images."""

    caption_extension: Ending | None = None
    """The ending of the files with the words, in any letter case; off means `.caption` for prose
    and `.txt` for tags, joined where both exist. A `metadata_file` has the words itself."""

    image_column: ColumnName | None = None
    """The column of Parquet and Arrow tables with the images: bytes, Hugging Face's pairs of bytes
    and path, or paths below the table's folder. Off means `image`, or the only one of that kind."""

    caption_column: ColumnName | None = None
    """The column of such tables with the words, and the key of a webdataset's `.json` files; off
    means the first there is of `caption`, `text`, `prompt`, `captions`, `txt`, `tags`."""

    class_tokens: str | None = None
    """The words of an image that has no caption file, such as `sks dog`; where metadata has the
    words, of one without any. An image whose caption file is empty stays without words."""

    shuffle_caption: bool = False
    """Put the tags in another order each time."""

    caption_separator: Annotated[str, Field(min_length=1)] = ","
    """What stands between tags. Where tags are shuffled or dropped they are joined with `, `."""

    keep_tokens: Count = 0
    """This many tags at the beginning stay in their places and are never dropped."""

    keep_tokens_separator: str = ""
    """Such as `|||`: tags before it stay, those after it are shuffled and dropped, those after a
    second one stay at the end. Empty means there is none."""

    secondary_separator: str | None = None
    """Such as `;;;`: joins tags that stay together when they are shuffled."""

    enable_wildcard: bool = False
    """`{red|blue}` becomes one of its parts, `{{` and `}}` are braces, and of a caption of several
    lines one is taken. Without it the first line is taken."""

    caption_prefix: str | None = None
    """Put before each caption, with a space; of a caption of several lines before the first, as in
    sd-scripts."""

    caption_suffix: str | None = None
    """Put after each caption, with a space; of a caption of several lines after the last, as in
    sd-scripts."""

    caption_dropout_rate: Fraction = 0.0
    """Chance that a caption is left empty, so that guidance without words is trained too;
    0.1 is usual for large sets, 0 for small ones."""

    caption_dropout_every_n_epochs: Count = 0
    """In each n-th epoch all captions are empty; 0 means never."""

    caption_tag_dropout_rate: Fraction = 0.0
    """Chance of each tag to be left out."""

    token_warmup_min: Count = 1
    """Tags shown at the first step, where `token_warmup_step` is given."""

    token_warmup_step: Annotated[float, Field(ge=0)] = 0.0
    """Steps until all tags are shown, a few more at a time; below 1 a share of the run. 0 means all
    from the start."""

    flip_aug: bool = False
    """Mirror images in half of their showings. Mirror images are encoded ahead too."""

    flip_safe: tuple[Word, ...] = ("left", "right")
    """Images with one of these words in their caption are never mirrored."""

    random_crop: bool = False
    """Crop anywhere instead of in the middle. Images are then encoded each time they are shown,
    which is slower, as with the next two."""

    color_aug: bool = False
    """Change hue or brightness a little in a third of the showings."""

    face_crop_aug_range: tuple[float, float] | None = None
    """Crop around the face that a file's name tells of (`name_x_y_width_height.png`, its centre and
    size in pixels), so that it takes 1/high to 1/low of the shorter side: `[low, high]`."""

    alpha_mask: bool = False
    """Weigh each place in the loss by the image's opacity."""

    resize_interpolation: Literal[
        "lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"
    ] = "lanczos"
    """How images are resized."""

    latents_from_npz: bool = False
    """Use latents that sd-scripts left beside the images (`.npz`), where they fit. They hold one
    sample instead of moments, and nothing tells which VAE made them."""

    @model_validator(mode="after")
    def _class_tokens_hold_text(self) -> SubsetKeys:
        if self.class_tokens is not None and not self.class_tokens.strip():
            raise ValueError(
                "class_tokens is empty; expected words, as in class_tokens = 'sks dog'. Without it "
                "images that have no caption file stay without words"
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
