"""Varies an image's caption each time it is shown, by a seed: sd-scripts' caption options.

The order of steps is that of kohya-ss/sd-scripts (`library/train_util.py`,
BaseDataset.process_caption): prefix and suffix, dropout, wildcards, then tags: warm-up, shuffle,
dropout; then the secondary separator. All random choices depend only on (seed, epoch, image,
repeat), so the captions of a run can be previewed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from impasto.parsing import split_lines
from impasto.randomness import derive_rng

_WILDCARD = re.compile(r"\{([^}]+)\}")
_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use placeholders for {{ and }} while wildcards expand


@dataclass(frozen=True)
class TrainingPosition:
    """The point in training at which a caption is shown.

    Attributes:
        epoch: The current pass over the data, counted from 1 as sd-scripts does.
        step: Optimizer steps completed so far.
        total_steps: Optimizer steps of the whole run.
    """

    epoch: int
    step: int
    total_steps: int


@dataclass(frozen=True)
class CaptionRules:
    """How captions are varied; the defaults change nothing. The fields are sd-scripts' options.

    Attributes:
        prefix: Text inserted before the caption, followed by a space.
        suffix: Text appended to the caption, after a space.
        dropout_rate: Chance in [0, 1] that a caption is replaced by the empty string.
        dropout_every_n_epochs: All captions are empty in every n-th epoch; 0 means never.
        wildcards: Replace `{a|b}` by one of its options, chosen at random, and choose one line of
            a caption of several; `{{` and `}}` are literal braces. If off, the first line is used.
        separator: What tags are split at; they are joined again with ", ".
        keep_tokens: Number of tags at the start that are neither moved nor dropped.
        keep_tokens_separator: Marker between the fixed tags at the start and the others; a second
            one marks the start of fixed tags at the end. Empty means that no marker is used.
        secondary_separator: Joins tags that stay together; replaced by `separator` at the end.
        shuffle: Whether the order of tags is random.
        tag_dropout_rate: Chance in [0, 1] that a tag is dropped.
        warmup_min: Number of tags shown at the first step, beside the fixed ones.
        warmup_steps: Steps until all tags are shown; a value below 1 is a fraction of the run.
        normalizes: Whether tags are split and joined even if nothing varies them, so that the
            captions of `steady` rules have the same separators as those of training.
    """

    prefix: str | None = None
    suffix: str | None = None
    dropout_rate: float = 0.0
    dropout_every_n_epochs: int = 0
    wildcards: bool = False
    separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    secondary_separator: str | None = None
    shuffle: bool = False
    tag_dropout_rate: float = 0.0
    warmup_min: int = 1
    warmup_steps: float = 0.0
    normalizes: bool = False

    def write(self, caption: str, position: TrainingPosition, seed: int, *keys: int | str) -> str:
        """Return the caption to train on for one showing of an image; empty if it was dropped.

        Args:
            caption: The image's caption, possibly of several lines.
            position: The point in training at which it is shown.
            seed: The run's seed.
            keys: Identify the image and the repeat, for the random numbers.
        """
        text = self._framed(caption)
        if not (self.is_random or self.dropout_every_n_epochs or self._splits_tags):
            return self._ended(_first_line(text))
        rng = derive_rng(seed, "caption", position.epoch, *keys)
        dropped = rng.random() < self.dropout_rate
        n = self.dropout_every_n_epochs
        if dropped or (n > 0 and position.epoch % n == 0):
            return ""
        text = _choose_wildcards(text, rng) if self.wildcards else _first_line(text)
        if self._splits_tags:
            text = self._vary_tags(text, position, rng)
        return self._ended(text)

    @property
    def is_random(self) -> bool:
        """Whether the same caption may be written differently twice within one epoch."""
        return self.wildcards or self.shuffle or self.dropout_rate > 0 or self.tag_dropout_rate > 0

    @property
    def changes_captions(self) -> bool:
        """Whether `write` may return anything but the `steady` caption or an empty one."""
        return self.wildcards or self._varies_tags

    def steady(self) -> CaptionRules:
        """Return rules without shuffling, dropout and warm-up, for validation.

        Wildcards are still chosen, by the seed. Tags are joined as they are for training.
        """
        return replace(
            self,
            dropout_rate=0.0,
            dropout_every_n_epochs=0,
            shuffle=False,
            tag_dropout_rate=0.0,
            warmup_steps=0.0,
            normalizes=self._splits_tags,
        )

    @property
    def _splits_tags(self) -> bool:
        return self.normalizes or self._varies_tags

    @property
    def _varies_tags(self) -> bool:
        return self.shuffle or self.warmup_steps > 0 or self.tag_dropout_rate > 0

    def _framed(self, caption: str) -> str:
        text = f"{self.prefix} {caption}" if self.prefix else caption
        return f"{text} {self.suffix}" if self.suffix else text

    def _ended(self, text: str) -> str:
        if not self.secondary_separator:
            return text
        return text.replace(self.secondary_separator, self.separator)

    def _vary_tags(self, text: str, position: TrainingPosition, rng: np.random.Generator) -> str:
        first, flexible, last = self._groups(text)
        flexible = flexible[: self._visible(len(flexible), position)]
        if self.shuffle:
            flexible = [flexible[i] for i in rng.permutation(len(flexible))]
        if self.tag_dropout_rate > 0:
            draws = rng.random(len(flexible))
            kept = zip(flexible, draws >= self.tag_dropout_rate, strict=True)
            flexible = [tag for tag, keep in kept if keep]
        return ", ".join([*first, *flexible, *last])

    def _groups(self, text: str) -> tuple[list[str], list[str], list[str]]:
        """Return the fixed tags at the start, the tags that vary, and the fixed tags at the end."""
        if self.keep_tokens_separator and self.keep_tokens_separator in text:
            sections = text.split(self.keep_tokens_separator, 2)
            first, flexible, last = (
                [tag for tag in self._tags(section) if tag] for section in [*sections, ""][:3]
            )
            return first, flexible, last
        tags = self._tags(text)
        return tags[: self.keep_tokens], tags[self.keep_tokens :], []

    def _tags(self, text: str) -> list[str]:
        return [tag.strip() for tag in text.strip().split(self.separator)]

    def _visible(self, count: int, position: TrainingPosition) -> int:
        steps = self.warmup_steps
        if 0 < steps < 1:
            steps = math.floor(steps * position.total_steps)
        if steps <= 0 or position.step >= steps:
            return count
        return math.floor(position.step * (count - self.warmup_min) / steps) + self.warmup_min


def join_caption_and_tags(caption: str, tags: str, separator: str) -> str:
    """Return a caption and tags as one text; each line of a multi-line caption gets the tags.

    sd-scripts joins them in the same way for training (`library/train_util.py`, FineTuningDataset),
    but drops the tags of an image without a caption; here they are returned alone.
    """
    if not caption.strip():
        return tags
    if not tags.strip():
        return caption
    joiner = f"{separator.strip()} "
    on_one_line = joiner.join(line.strip() for line in split_lines(tags) if line.strip())
    lines = [line for line in split_lines(caption) if line.strip()]
    return "\n".join(f"{line}{joiner}{on_one_line}" for line in lines)


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]


def _choose_wildcards(text: str, rng: np.random.Generator) -> str:
    if "\n" in text:
        lines = text.split("\n")
        text = lines[rng.integers(len(lines))]
    text = text.replace("{{", _OPEN).replace("}}", _CLOSE)

    def choose(match: re.Match[str]) -> str:
        options = match.group(1).split("|")
        return options[rng.integers(len(options))]

    return _WILDCARD.sub(choose, text).replace(_OPEN, "{").replace(_CLOSE, "}")
