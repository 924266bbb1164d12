"""Settings to begin with, for a goal: what is usual for it, and why, in one table.

The values are those of the examples in `configs/`, which are where to look for more; only the
number of steps is computed, from the number of images. They are a beginning, and no more: whether
a run goes well is told by its validation loss and its samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from impasto.errors import ConfigError
from impasto.parsing import is_text, split_lines
from impasto.progress import counted

PROMPTS = 3
"""Previews that are drawn: few, since each takes seconds every time."""

RATES = {
    "SD 2.x": (0.6, "SD 2 forgets faster than SD 1"),  # configs/sd2-base.toml
    "SDXL": (0.2, "sd-scripts' guide for SDXL has 4e-7 for single images"),
}
"""Generation of models -> its learning rate, as a fraction of that of SD 1.x, and why."""

_LONGEST_PROMPT = 300
_BUCKET_SIDES = {512: (256, 1024), 768: (384, 1280)}
"""Resolution -> sides of buckets: as usual, and as in `configs/sd2-768-v.toml`."""


@dataclass(frozen=True)
class Goal:
    """What is wanted, with the settings that are usual for it.

    Attributes:
        title: What it is called.
        words: What it is for.
        example: The file in `configs/` that its values are from.
        lr: Learning rate of a whole U-Net.
        lr_why: Where that is from.
        batch: Images per step: the batch size times the accumulation.
        passes: How often each image is shown.
        steps: The least and the greatest number of steps, whatever the number of images.
        warmup: Share of the steps, or steps, in which the rate rises.
        held_out: Images for validation; at most a fifth of all.
        more: Further settings by their paths, each with why.
    """

    title: str
    words: str
    example: str
    lr: float
    lr_why: str
    batch: int
    passes: int
    steps: tuple[int, int]
    warmup: int | str
    held_out: int
    more: Mapping[str, tuple[Any, str]] = field(default_factory=dict)


GOALS: dict[str, Goal] = {
    "style": Goal(
        title="A style",
        words="A drawing or painting style from 50 to 1,000 images.",
        example="style-12gb",
        lr=5e-6,
        lr_why="halve it if samples turn blotchy, double it if nothing changes",
        batch=4,
        passes=40,  # 2,000 steps of 4 for 200 images, as in the example
        steps=(500, 5000),
        warmup="3%",
        held_out=10,
        more={
            "schedule.kind": ("cosine", "calms down towards the end"),
            "dataset.caption_dropout_rate": (0.05, "keeps guidance without words alive"),
        },
    ),
    "subject": Goal(
        title="A subject",
        words="One person, animal or thing from 10 to 50 images.",
        example="subject-12gb",
        lr=2e-6,
        lr_why="few images are learnt by heart fast",
        batch=2,
        passes=64,  # 800 steps of 2 for 25 images, as in the example
        steps=(300, 1600),
        warmup=20,
        held_out=4,
        more={
            "loss.min_snr_gamma": (5, "settles sooner (arXiv:2303.09556)"),
            "saving.keep_models": (4, "the best is often not the last"),
        },
    ),
    "large": Goal(
        title="A large set",
        words="Thousands of images with tags.",
        example="large-24gb",
        lr=1e-5,
        lr_why="for a batch of 32",
        batch=32,
        passes=10,
        steps=(500, 200_000),
        warmup="2%",
        held_out=64,
        more={
            "schedule.kind": ("cosine", "calms down towards the end"),
            "timesteps.sampling": ("stratified", "a steadier loss at no cost"),
            "dataset.caption_dropout_rate": (0.1, "guidance without words is trained too"),
            "training.ema_decay": (0.9999, "the average draws better than the last weights"),
            "training.ema_power": (0.75, "forgets the first weights sooner"),
            "training.ema_every": (10, "nearly the same average for a part of the cost"),
            "model.max_tokens": (225, "long lists of tags are read whole"),
        },
    ),
    "scratch": Goal(
        title="From scratch",
        words="A new model, whose weights are random, as impasto init makes it.",
        example="large-24gb",
        lr=1e-4,
        lr_why="that of Stable Diffusion 1 (its model card); a tiny model takes 1e-3",
        batch=32,
        passes=100,
        steps=(5000, 500_000),
        warmup="5%",
        held_out=64,
        more={
            "dataset.caption_dropout_rate": (0.1, "as Stable Diffusion 1.5 was trained"),
            "timesteps.sampling": ("stratified", "a steadier loss at no cost"),
            "method.train_text_encoder": (True, "that of a new model knows no words either"),
            "training.ema_decay": (0.9999, "the average draws better than the last weights"),
            "training.ema_power": (0.75, "forgets the first weights sooner"),
            "training.ema_every": (10, "nearly the same average for a part of the cost"),
        },
    ),
}


@dataclass(frozen=True)
class Material:
    """What settings for a goal depend on.

    Attributes:
        model: The base model's path or id.
        family: What the model is, in words.
        resolution: Pixels a side that it was trained at.
        generation: What its learning rate goes by, as in `SD 2.x`.
        takes_clip_skip: Whether models of its family were trained on other layers.
        image_dir: The folder of images.
        images: How many there are.
        captions: Their captions, in order, empty ones too.
        output_dir: The run directory to be.
        vram: GiB that the run may take; None means what is free.
        clip_skip: The layer of the text encoder that was asked for.
    """

    model: str
    family: str
    resolution: int
    generation: str
    takes_clip_skip: bool
    image_dir: str
    images: int
    captions: Sequence[str]
    output_dir: str
    vram: int | None = None
    clip_skip: int | None = None


def settings_for(goal: Goal, material: Material) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree of settings for a goal, and why a setting is as it is, by path.

    Raises:
        ConfigError: `clip_skip` is asked for, and the model's family has a layer of its own.
    """
    found: dict[str, tuple[Any, str]] = {
        "output_dir": (material.output_dir, ""),
        **_model_settings(material),
        **_data_settings(material),
        "optimizer.lr": _rate(goal, material),
        "schedule.warmup_steps": (goal.warmup, ""),
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
    """The text of a settings file for a goal, with comments.

    Raises:
        ConfigError: As for `settings_for`.
    """
    tree, reasons = settings_for(goal, material)
    section, lines = "", [f"# {goal.title}: {goal.words} Values as in the example {goal.example}."]
    for line in split_lines(tomli_w.dumps(tree).removesuffix("\n")):
        if line.startswith("["):
            section = f"{line.strip('[]')}."
        name, equals, _ = line.partition(" = ")
        why = reasons.get(f"{section}{name}") if equals else None
        lines.append(f"{line}  # {why}" if why else line)
    return "\n".join(lines) + "\n"


def steps_for(goal: Goal, images: int) -> int:
    """Optimizer steps for a number of images, in tens."""
    least, most = goal.steps
    wanted = goal.passes * images / goal.batch
    return int(min(max(wanted, least), most)) // 10 * 10


def bucket_sides(resolution: int) -> tuple[int, int, int]:
    """Shortest and longest side of buckets and their step, in pixels.

    Elsewhere than for full-size models: half and twice the resolution, in steps of a quarter of it
    and at most 64, as for the model of the demo.
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


def _data_settings(material: Material) -> dict[str, tuple[Any, str]]:
    low, high, step = bucket_sides(material.resolution)
    found: dict[str, tuple[Any, str]] = {
        "dataset.image_dir": (material.image_dir, f"{material.images:,} images"),
        "dataset.resolution": (material.resolution, "what the model was trained at"),
    }
    if material.resolution != 512:
        found |= {
            "dataset.min_bucket_reso": (low, ""),
            "dataset.max_bucket_reso": (high, ""),
            "dataset.bucket_reso_steps": (step, ""),
        }
    return found


def _training_settings(goal: Goal, material: Material) -> dict[str, tuple[Any, str]]:
    passes = goal.passes * material.images / goal.batch
    least, most = goal.steps
    bounds = "" if least <= passes <= most else f", but {least:,} to {most:,} steps"
    is_auto = material.vram is None
    return {
        "training.max_steps": (
            steps_for(goal, material.images),
            f"each image {goal.passes} times at {goal.batch} a step{bounds}",
        ),
        "training.batch_size": (1, ""),
        "training.gradient_accumulation_steps": (
            goal.batch,
            f"behaves like a batch of {goal.batch} in the memory of 1",
        ),
        "training.mixed_precision": ("auto", "bf16 on cards from 2020 on, else fp16"),
        "training.memory": (
            "auto" if is_auto else material.vram,
            "what is free: settings that are not set here are chosen so that it fits"
            if is_auto
            else "GiB: settings that are not set here are chosen so that it fits",
        ),
    }


def _validation_settings(goal: Goal, material: Material) -> dict[str, tuple[Any, str]]:
    number = min(goal.held_out, material.images // 5)
    if not number:
        return {}
    why = f"{counted(number, 'images')}: their loss shows when the model begins to learn by heart"
    return {
        "validation.split": (float(f"{number / material.images:.4g}"), why),
        "validation.every_steps": (_every(goal, material, 10), ""),
        "saving.best_model": (
            True,
            "the model with the least of that loss is kept beside the last",
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
    """Steps between what is to happen so many times in a run, in tens."""
    return max(10, steps_for(goal, material.images) // times // 10 * 10)


def prompts_of(captions: Sequence[str]) -> list[str]:
    """A few different captions from all over a dataset."""
    words = dict.fromkeys(
        text.strip() for text in captions if text.strip() and len(text) <= _LONGEST_PROMPT
    )
    usable = [text for text in words if is_text(text) and text.isprintable()]
    if len(usable) <= PROMPTS:
        return usable
    return [usable[place * len(usable) // PROMPTS] for place in range(PROMPTS)]
