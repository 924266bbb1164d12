"""Captioners through transformers: one path for BLIP, BLIP-2, GIT, Florence-2 and chat models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from impasto.annotate.models import require_reachable
from impasto.checkpoints.links import require_links_inside
from impasto.errors import ConfigError, MissingDependencyError, ModelError, OutOfMemoryError
from impasto.invocation import install_packages
from impasto.progress import Progress, SilentProgress, counted

CHAT_PROMPT = "Describe this picture in one sentence, as a caption for training."

_READ = r'(?:" ?[^"]*"|\w+)'
_QUOTED = r"' ?(?:i'm)?[^']*'"
_READING = [
    re.compile(pattern)
    for pattern in (
        rf"(?:has|with|and) the (?:words?|letters?|name) {_READ}"
        r"(?: ?(?:is )?(?:on|in) (?:(?:the|her|their|him) )?\w+)?",
        rf"(?:with a sign )?that says ?(?:{_QUOTED}|{_READ})(?: ?on it)?",
        r"with the number \d+ on (?:it|\w+ \w+)",
        r'with the words "',
        r"word \w+ on it",
    )
]
"""Patterns of text that GIT invents when it tries to read, as sd-scripts removes them
(`finetune/make_captions_by_git.py`, PATTERN_REPLACE)."""


@dataclass(frozen=True)
class Generation:
    """Settings of caption generation.

    Attributes:
        beams: Number of beams; 1 without `top_p` is greedy search.
        top_p: Nucleus sampling: draws from the likeliest tokens of this total probability; 0 means
            off.
        min_length: Minimum number of tokens.
        max_length: Maximum number of tokens, without the prompt.
        repetition_penalty: Above 1 reduces repetition.
        temperature: Temperature of sampling.
        seed: Seed of sampling, combined with the names of the images in a batch.
    """

    beams: int = 3
    top_p: float = 0.0
    min_length: int = 5
    max_length: int = 75
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    seed: int = 42

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of transformers' `generate`."""
        drawing = self.top_p > 0
        options: dict[str, Any] = {
            "max_new_tokens": self.max_length,
            "min_new_tokens": min(self.min_length, self.max_length),
            "num_beams": 1 if drawing else self.beams,
            "do_sample": drawing,
            "repetition_penalty": self.repetition_penalty,
        }
        if drawing:
            options |= {"top_p": self.top_p, "temperature": self.temperature, "top_k": 0}
        return options


PRESETS: dict[str, Generation] = {
    "beam": Generation(),
    "sd-scripts": Generation(beams=1, top_p=0.9, repetition_penalty=1.1),
    "a1111": Generation(beams=1, min_length=24, max_length=48),
}
"""Generation presets: ours, that of sd-scripts' `finetune/make_captions.py`, and A1111's."""


@dataclass
class Captioner:
    """A loaded captioning model.

    Attributes:
        model: The model, of transformers.
        processor: Its processor.
        generation: Settings of generation.
        prompt: The prompt; empty means the model's default.
        remove_words: Whether text that the model invents when it tries to read is removed.
        progress: Notified when batches are split for lack of memory.
    """

    model: Any
    processor: Any
    generation: Generation = field(default_factory=Generation)
    prompt: str = ""
    remove_words: bool = False
    progress: Progress = field(default_factory=SilentProgress)

    @classmethod
    def load(cls, source: str, device: torch.device, **options: Any) -> Captioner:
        """Load from a folder or a Hub id; on a GPU in bfloat16, or in float16 if it lacks bfloat16.

        Raises:
            MissingDependencyError: transformers lacks a package that this model needs.
            ModelError: The model is missing, damaged, or not a captioner.
        """
        require_data_only(Path(source))
        require_reachable(source)
        from transformers import AutoConfig, AutoProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()
        dtype = torch.float32
        if device.type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = torch.bfloat16 if has_bf16 else torch.float16
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
            model = _class_for(config.model_type).from_pretrained(
                source, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
        except ImportError as error:
            raise MissingDependencyError(
                f"The captioner {source} needs a package that is not installed "
                f"({_first_line(error)}). Packages are installed with: {install_packages('NAME')}"
            ) from error
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            reason = _first_line(error)
            if "trust_remote_code" in str(error):
                raise ModelError(_WITH_CODE.format(source)) from error
            if "safetensors" in reason:
                raise ModelError(_PICKLED.format(source, "no .safetensors")) from error
            raise ModelError(
                f"The captioner {source} cannot be loaded ({reason}). Give the folder of a model "
                f"that transformers supports as image-text-to-text, or its Hub id."
            ) from error
        _pad_on_the_left(processor)
        return cls(model.to(device).eval(), processor, **options)

    def captions(self, images: Sequence[Image.Image], keys: Sequence[str]) -> list[str]:
        """Return a caption per image; if memory runs out, process half as many images at once.

        Args:
            images: RGB images.
            keys: Names of the images, for the seeds of sampling.

        Raises:
            OutOfMemoryError: Not even one image fits.
        """
        try:
            return [self._cleaned(text) for text in self._generated(images, keys)]
        except (torch.OutOfMemoryError, MemoryError) as error:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(images) == 1:
                raise OutOfMemoryError(
                    "Memory ran out while captioning a single image. Use a smaller model."
                ) from error
            half = len(images) // 2
            self.progress.note(f"Memory ran out: captioning {counted(half, 'images')} at a time.")
            return [
                *self.captions(images[:half], keys[:half]),
                *self.captions(images[half:], keys[half:]),
            ]

    @torch.no_grad()
    def _generated(self, images: Sequence[Image.Image], keys: Sequence[str]) -> list[str]:
        from impasto.randomness import derive_seed

        inputs, asked = self._inputs(images)
        inputs.pop("token_type_ids", None)  # a BERT tokenizer returns them, and GIT accepts none
        device = self.model.device
        moved = {
            name: value.to(device, self.model.dtype)
            if value.is_floating_point()
            else value.to(device)
            for name, value in inputs.items()
        }
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.generation.seed, *keys))
            ids = self.model.generate(**moved, **self.generation.options())
        begins = moved["input_ids"].shape[1] if asked and self._continues() else 0
        if begins and ids.shape[1] > begins:
            ids = ids[:, begins:]
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [self._without_prompt(text) for text in texts]

    def _inputs(self, images: Sequence[Image.Image]) -> tuple[dict[str, Any], bool]:
        """Return tensors for the model, and whether they include a prompt."""
        kind = self.model.config.model_type
        if getattr(self.processor, "chat_template", None):
            question = self.prompt or CHAT_PROMPT
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            batch = self.processor(
                images=[[image] for image in images], text=[text] * len(images), padding=True,
                return_tensors="pt",
            )  # fmt: skip
            return dict(batch), True
        prompt = self.prompt or ("<CAPTION>" if kind == "florence2" else "")
        if not prompt:
            return dict(self.processor(images=list(images), return_tensors="pt")), False
        texts = [prompt] * len(images)
        batch = self.processor(images=list(images), text=texts, padding=True, return_tensors="pt")
        return dict(batch), True

    def _continues(self) -> bool:
        """Return whether generated tokens follow the prompt's tokens, which must be cut off."""
        if self.model.config.model_type in _ANSWERS_ALONE:
            return False
        return not getattr(self.model.config, "is_encoder_decoder", False)

    def _without_prompt(self, text: str) -> str:
        plain = text.strip()
        return plain.removeprefix(self.prompt).strip() if self.prompt else plain

    def _cleaned(self, text: str) -> str:
        one_line = " ".join(text.split())
        return remove_read_text(one_line) if self.remove_words else one_line


_WITH_CODE = (
    "The captioner {} comes with its own program code, which would run on this machine with "
    "all your permissions; it is not run. Give a model that transformers supports without it."
)
_PICKLED = (
    "The captioner {} has its weights as a pickle ({}), which can contain program code that runs "
    "when it is opened; it is not opened. Use a copy of the model with model.safetensors, or let "
    "transformers write one, on a machine where it can do no harm: from_pretrained, then "
    "save_pretrained."
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def require_data_only(source: Path) -> None:
    """Check that loading a model from a folder runs no code and reads nothing outside it.

    Raises:
        ModelError: Its weights are a pickle, it has its own code, or a link leads out of the
            folder.
    """
    if source.suffix.lower() == ".pth":
        raise ModelError(
            f"{source} is in the format of the original BLIP program. Use the same model in the "
            f"format of transformers: Salesforce/blip-image-captioning-large (or -base), or a "
            f"local copy of its folder."
        )
    if not source.is_dir():
        return
    require_links_inside(source)
    names = sorted(path.name for path in source.iterdir())
    pickled = [name for name in names if Path(name).suffix.lower() in _PICKLES]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise ModelError(_PICKLED.format(source, pickled[0]))


_ANSWERS_ALONE = {
    "blip",
    "blip-2",
    "florence2",
}  # their output repeats the prompt as text, or omits it


def remove_read_text(text: str) -> str:
    """Remove text that GIT invents when it tries to read, such as `with the word ... on it`.

    Uses the patterns that `finetune/make_captions_by_git.py` of sd-scripts removes.
    """
    for pattern in _READING:
        text = pattern.sub("", text)
    return " ".join(text.split()).replace(" ,", ",").strip(" ,")


def with_generation(captioner: Captioner, **changes: Any) -> Captioner:
    """Return a captioner with changed settings of generation.

    Raises:
        ConfigError: A number is out of range.
    """
    made = replace(captioner.generation, **changes)
    require_generation(made)
    return replace(captioner, generation=made)


def require_generation(made: Generation) -> None:
    """Check the settings of generation.

    Raises:
        ConfigError: One is out of range.
    """
    if made.beams < 1 or not 0 <= made.top_p <= 1 or made.max_length < 1:
        raise ConfigError(
            f"Captions are generated with {made.beams} beams, top_p {made.top_p:g} and at most "
            f"{made.max_length} tokens; expected 1 or more, 0 to 1, and 1 or more."
        )
    if made.min_length > made.max_length:
        raise ConfigError(
            f"min_length {made.min_length} is above max_length {made.max_length}. Change one."
        )


def _class_for(model_type: str) -> Any:
    import transformers

    by_type: dict[str, Callable[[], Any]] = {"git": lambda: transformers.AutoModelForCausalLM}
    usual = lambda: transformers.AutoModelForImageTextToText  # noqa: E731
    return by_type.get(model_type, usual)()


def _pad_on_the_left(processor: Any) -> None:
    """Pad prompts of unequal length on the left, since a decoder continues from the end."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None and getattr(processor, "chat_template", None):
        tokenizer.padding_side = "left"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
