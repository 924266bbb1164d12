"""Generates starting settings from a goal and the material: the images, the model, the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from impasto.config.goals import GOALS, RATES, Goal
from impasto.config.material import Material
from impasto.errors import ConfigError
from impasto.parsing import is_text, split_lines
from impasto.progress import counted

PROMPTS = 3
"""Maximum number of preview prompts: few, since each takes seconds every time."""

TEXT_ENCODERS = {
    "SD 1.x": (0.5, None, "half of the U-Net's: it forgets faster than it learns (EveryDream 2)"),
    "SD 2.x": (0.3, 2, "a third of the U-Net's, as in EveryDream 2's settings for SD 2.1"),
}
"""Generation of models -> the learning rate of its text encoder as a fraction of the U-Net's, the
number of last layers to train (None means all), and the reason. SDXL's two stay frozen, as in
OneTrainer's preset."""

TEXT_ENCODER_STEPS = 0.3
"""Fraction of the steps in which a text encoder is trained: OneTrainer's preset for SD 1.5 has 30
of 100 epochs."""

SDXL_NOISE_OFFSET = 0.05
"""The noise offset of the last stage of SDXL's own training (Podell et al. 2023, arXiv:2307.01952,
section 2.5)."""

_SDXL_TWO = 12
"""GiB from which SDXL is trained with a batch of two images."""

_WAITS = {"SDXL": 16, "bf16": 6, "fp16": 10}
"""GiB from which gradients can be accumulated over several batches: by `SDXL`, or for other models
by the 16-bit type of computation. With 8-bit AdamW, whose state is in RAM, checkpointing and a
trained text encoder, SD 1 and 2 take 5.8 GiB at 512 pixels with weights in bf16, and 9.6 with fp16,
whose weights are float32 (predicted, as `training.memory` does)."""

_LONGEST_PROMPT = 300
_BUCKET_SIDES = {512: (256, 1024), 768: (384, 1280)}
"""Resolution -> limits of bucket sides: the defaults, and those of `configs/sd2-768-v.toml`."""


def settings_for(goal: Goal, material: Material) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tree of settings for a goal, and the reasons for settings by path.

    Raises:
        ConfigError: `clip_skip` is requested, and the model's family has a fixed layer.
    """
    found: dict[str, tuple[Any, str]] = {
        "output_dir": (material.output_dir, ""),
        **_model_settings(material),
        **_data_settings(material),
        **_method_settings(goal, material),
        "optimizer.lr": _rate(goal, material),
        "schedule.warmup_steps": (goal.warmup, ""),
        **_noise_settings(goal, material),
        **_training_settings(goal, material),
        **_validation_settings(goal, material),
        **_preview_settings(goal, material),
        **goal.more,
        **_saving_settings(goal, material),
    }
    tree: dict[str, Any] = {}
    for path, (value, _) in found.items():
        section, _, name = path.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return tree, {path: why for path, (_, why) in found.items() if why}


def settings_text(goal: Goal, material: Material) -> str:
    """Return the text of a settings file for a goal, with comments.

    Raises:
        ConfigError: As for `settings_for`.
    """
    tree, reasons = settings_for(goal, material)
    section, lines = "", [f"# {goal.title}: {goal.text} Values as in the example {goal.example}."]
    for line in split_lines(tomli_w.dumps(tree).removesuffix("\n")):
        if line.startswith("["):
            section = f"{line.strip('[]')}."
        name, equals, _ = line.partition(" = ")
        why = reasons.get(f"{section}{name}") if equals else None
        lines.append(f"{line}  # {why}" if why else line)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Batches:
    """How the images of an optimizer step are split into batches.

    Attributes:
        size: Images per forward pass.
        accumulated: Forward passes per step.
    """

    size: int
    accumulated: int

    @property
    def images(self) -> int:
        """The number of images per step."""
        return self.size * self.accumulated


def batches_for(goal: Goal, material: Material) -> Batches:
    """Return the batches of a goal: single images if there is memory to accumulate their gradients.

    Gradients of SDXL's U-Net take 4.8 GiB in 16 bits, those of SD 1 and 2 take 3.2 in float32. If
    each is freed as soon as it is computed, SDXL at 1024 pixels takes 8.0 GiB with a batch of 1 and
    8.9 with 2 (`configs/sdxl-12gb.toml`); then gradients cannot be accumulated over batches.
    """
    is_sdxl = material.generation == "SDXL"
    gib = material.free_gib if material.vram is None else material.vram
    if gib is None or gib >= _WAITS["SDXL" if is_sdxl else material.half or "fp16"]:
        return Batches(1, goal.batch)
    return Batches(min(goal.batch, 1 if is_sdxl and gib < _SDXL_TWO else 2), 1)


def steps_for(goal: Goal, material: Material) -> int:
    """Return the number of optimizer steps for the number of images, as a multiple of ten."""
    least, most = _bounds(goal, material)
    wanted = goal.passes * material.images / batches_for(goal, material).images
    return int(min(max(wanted, least), most)) // 10 * 10


def _bounds(goal: Goal, material: Material) -> tuple[int, int]:
    """Return the minimum and maximum number of steps, proportionally more for smaller batches."""
    times = goal.batch // batches_for(goal, material).images
    least, most = goal.steps
    return least * times, most * times


def bucket_sides(resolution: int) -> tuple[int, int, int]:
    """Return the shortest and longest side of buckets and their step, in pixels.

    For resolutions other than those of full-size models: half and twice the resolution, in steps of
    a quarter of it and at most 64, as for the demo model.
    """
    if resolution in _BUCKET_SIDES:
        return *_BUCKET_SIDES[resolution], 64
    step = min(64, max(8, resolution // 32 * 8))
    low = max(step, resolution // 2 // step * step)
    return low, 2 * resolution // step * step, step


def _rate(goal: Goal, material: Material) -> tuple[float, str]:
    if material.generation not in RATES or goal is GOALS["scratch"]:
        return goal.lr, goal.lr_why
    fraction, why = RATES[material.generation]
    images = batches_for(goal, material).images
    if images != goal.batch:
        fraction *= math.sqrt(images / goal.batch)
        why = f"{why}; less by the square root, with {images} for {goal.batch} images a step"
    return float(f"{goal.lr * fraction:.2g}"), why


def _model_settings(material: Material) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {"model.path": (material.model, material.family)}
    if material.clip_skip is not None:
        if not material.takes_clip_skip:
            raise ConfigError(
                f"{material.model} is {material.family}, whose text encoder is read at a layer of "
                f"its own: leave --clip-skip out."
            )
        why = "the layer that NovelAI trained with; for anime models"
        found["model.clip_skip"] = (material.clip_skip, why if material.clip_skip == 2 else "")
    return found


def _method_settings(goal: Goal, material: Material) -> dict[str, tuple[Any, str]]:
    """Return settings that train text encoders for a while at their own rate, if that is usual."""
    if not goal.text_encoder or material.generation not in TEXT_ENCODERS:
        return {}
    fraction, layers, why = TEXT_ENCODERS[material.generation]
    rate = float(f"{_rate(goal, material)[0] * fraction:.2g}")
    until = max(1, int(steps_for(goal, material) * TEXT_ENCODER_STEPS))
    found: dict[str, tuple[Any, str]] = {
        "method.train_text_encoder": (True, "learns the subject's name; faces need it most"),
        "method.text_encoder_lr": (rate, why),
        "method.text_encoder_until_step": (until, "for 3 of 10 steps, as in OneTrainer's preset"),
    }
    if layers is not None:
        found["method.text_encoder_layers"] = (layers, "the last; the others keep what they know")
    return found


def _noise_settings(goal: Goal, material: Material) -> dict[str, tuple[Any, str]]:
    """Return a slight noise offset, with which images can become darker or brighter overall."""
    if not goal.noise_offset or not material.predicts_noise:
        return {}
    if material.generation == "SDXL":
        return {"noise.offset": (SDXL_NOISE_OFFSET, "what SDXL was trained with itself")}
    why = "slight: allows darker and brighter images; EveryDream 2's default"
    return {"noise.offset": (goal.noise_offset, why)}


def _data_settings(material: Material) -> dict[str, tuple[Any, str]]:
    low, high, step = bucket_sides(material.resolution)
    found: dict[str, tuple[Any, str]] = {
        "dataset.image_dir": (material.image_dir, f"{material.images:,} images"),
        "dataset.resolution": (material.resolution, _resolution_why(material)),
    }
    if material.resolution != 512:
        found |= {
            "dataset.min_bucket_reso": (low, ""),
            "dataset.max_bucket_reso": (high, ""),
            "dataset.bucket_reso_steps": (step, ""),
        }
    if material.mask_dir:
        masked = f"masks of {material.masked:,} of the {material.images:,} images"
        found["dataset.mask_dir"] = (material.mask_dir, f"{masked}: black areas do not count")
    return found


def _resolution_why(material: Material) -> str:
    if material.native in {None, material.resolution}:
        return "what the model was trained at"
    return f"as asked for; the model was trained at {material.native}"


def _training_settings(goal: Goal, material: Material) -> dict[str, tuple[Any, str]]:
    batches = batches_for(goal, material)
    passes = goal.passes * material.images / batches.images
    least, most = _bounds(goal, material)
    bounds = "" if least <= passes <= most else f"; {least:,} to {most:,} steps are usual"
    steps, trained = steps_for(goal, material), material.images - held_out(goal, material)
    is_auto = material.vram is None
    return {
        "training.max_steps": (
            steps,
            f"each image about {steps * batches.images / trained:,.0f} times at "
            f"{batches.images} a step{bounds}",
        ),
        "training.batch_size": (batches.size, ""),
        "training.gradient_accumulation_steps": (
            batches.accumulated,
            f"behaves like a batch of {batches.images} in the memory of 1"
            if batches.accumulated > 1
            else "gradients are freed one by one to fit, so they cannot accumulate",
        ),
        "training.mixed_precision": ("auto", "bf16 on cards from 2020 on, else fp16"),
        "training.memory": (
            "auto" if is_auto else material.vram,
            "free memory: settings that are not set here are chosen to fit"
            if is_auto
            else "GiB: settings that are not set here are chosen to fit",
        ),
    }


def held_out(goal: Goal, material: Material) -> int:
    """Return the number of validation images: the goal's, at most a fifth of all images."""
    return min(goal.held_out, material.images // 5)


def _validation_settings(goal: Goal, material: Material) -> dict[str, tuple[Any, str]]:
    number = held_out(goal, material)
    if not number:
        return {}
    why = f"{counted(number, 'images')}: their loss shows when the model begins to over-fit"
    return {
        "validation.split": (float(f"{number / material.images:.4g}"), why),
        "validation.every_steps": (_every(goal, material, 10), ""),
        "saving.best_model": (
            True,
            "the model with the lowest validation loss is kept beside the last",
        ),
    }


def _preview_settings(goal: Goal, material: Material) -> dict[str, tuple[Any, str]]:
    prompts = prompts_of(material.captions)
    if not prompts:
        return {}
    found: dict[str, tuple[Any, str]] = {
        "previews.prompts": (prompts, "captions of the images"),
        "previews.every_steps": (_every(goal, material, 8), ""),
    }
    if material.resolution != 512:
        side = material.resolution // 8 * 8
        found |= {"previews.width": (side, ""), "previews.height": (side, "")}
    return found


def _saving_settings(goal: Goal, material: Material) -> dict[str, tuple[Any, str]]:
    if "saving.keep_models" not in goal.more:
        return {}
    return {"saving.model_every_steps": (_every(goal, material, 4), "")}


def _every(goal: Goal, material: Material, times: int) -> int:
    """Return the interval in steps, a multiple of ten, for `times` events in a run."""
    return max(10, steps_for(goal, material) // times // 10 * 10)


def prompts_of(captions: Sequence[str]) -> list[str]:
    """Return a few different captions, spread over the dataset."""
    texts = dict.fromkeys(
        text.strip() for text in captions if text.strip() and len(text) <= _LONGEST_PROMPT
    )
    usable = [text for text in texts if is_text(text) and text.isprintable()]
    if len(usable) <= PROMPTS:
        return usable
    return [usable[number * len(usable) // PROMPTS] for number in range(PROMPTS)]
