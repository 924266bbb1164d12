"""The table of training goals, with the usual settings of each and the reasons for them.

The values are those of the examples in `configs/`, which have more; `goal_settings.py` generates
settings from them. They are only a starting point: its validation loss and samples show whether a
run goes well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RATES = {
    "SD 2.x": (0.6, "SD 2 forgets faster than SD 1"),  # configs/sd2-base.toml
    "SDXL": (0.2, "sd-scripts' guide for SDXL has 4e-7 for single images"),
}
"""Generation of models -> its learning rate as a fraction of that of SD 1.x, and the reason."""


@dataclass(frozen=True)
class Goal:
    """A training goal, with the settings that are usual for it.

    Attributes:
        title: The name of the goal.
        text: What the goal is for.
        example: The file in `configs/` from which its values are taken.
        lr: Learning rate of a whole U-Net.
        lr_why: The reason for that rate.
        batch: Images per step: the batch size times the accumulation.
        passes: How often each image is shown, counting validation images too.
        steps: The minimum and maximum number of steps, whatever the number of images.
        warmup: Percentage of the steps, or steps, in which the rate rises.
        held_out: Images for validation; at most a fifth of all.
        noise_offset: Noise offset of models that predict noise; SDXL has its own.
        text_encoder: Whether text encoders are trained too, where that is usual for the model.
        more: Further settings by path, each with the reason.
    """

    title: str
    text: str
    example: str
    lr: float
    lr_why: str
    batch: int
    passes: int
    steps: tuple[int, int]
    warmup: int | str
    held_out: int
    noise_offset: float = 0.02  # EveryDream 2's default, "to err on the safe side"
    text_encoder: bool = False
    more: Mapping[str, tuple[Any, str]] = field(default_factory=dict)


GOALS: dict[str, Goal] = {
    "style": Goal(
        title="A style",
        text="A drawing or painting style from 50 to 1,000 images.",
        example="style-12gb",
        lr=5e-6,
        lr_why="halve it if samples turn blotchy, double it if nothing changes",
        batch=4,
        passes=40,  # 2,000 steps of 4 for 200 images, as in the example
        steps=(500, 5000),
        warmup="3%",
        held_out=10,
        more={
            "schedule.kind": ("cosine", "lowers the rate smoothly to 0"),
            "dataset.caption_dropout_rate": (0.05, "trains the empty prompt, which guidance needs"),
            "saving.merge_ratio": (
                0.9,
                "a tenth of the model is the base model: keeps more of what it knew",
            ),
        },
    ),
    "subject": Goal(
        title="A subject",
        text="One person, animal or thing from 10 to 50 images.",
        example="subject-12gb",
        lr=2e-6,
        lr_why="few images are memorized quickly",
        batch=2,
        passes=64,  # 800 steps of 2 for 25 images, as in the example
        steps=(300, 1600),
        warmup=20,
        held_out=4,
        text_encoder=True,
        more={
            "loss.min_snr_gamma": (5, "converges sooner (arXiv:2303.09556)"),
            "saving.keep_models": (4, "the best is often not the last"),
        },
    ),
    "large": Goal(
        title="A large set",
        text="Thousands of images with tags.",
        example="large-24gb",
        lr=1e-5,
        lr_why="for a batch of 32",
        batch=32,
        passes=10,
        steps=(500, 200_000),
        warmup="2%",
        held_out=64,
        more={
            "schedule.kind": ("cosine", "lowers the rate smoothly to 0"),
            "timesteps.sampling": ("stratified", "a steadier loss at no cost"),
            "dataset.caption_dropout_rate": (0.1, "trains the empty prompt, which guidance needs"),
            "training.ema_decay": (0.9999, "the average draws better than the last weights"),
            "training.ema_power": (0.75, "forgets the first weights sooner"),
            "training.ema_every": (10, "nearly the same average for a part of the cost"),
            "model.max_tokens": (225, "long tag lists are not cut"),
        },
    ),
    "scratch": Goal(
        title="From scratch",
        text="A new model, whose weights are random, as impasto init makes it.",
        example="large-24gb",
        lr=1e-4,
        lr_why="that of Stable Diffusion 1 (its model card); a tiny model takes 1e-3",
        batch=32,
        passes=100,
        steps=(5000, 500_000),
        warmup="5%",
        held_out=64,
        noise_offset=0.0,  # the original models were made without
        more={
            "dataset.caption_dropout_rate": (0.1, "as Stable Diffusion 1.5 was trained"),
            "timesteps.sampling": ("stratified", "a steadier loss at no cost"),
            "method.train_text_encoder": (True, "a new model's text encoder is random too"),
            "training.ema_decay": (0.9999, "the average draws better than the last weights"),
            "training.ema_power": (0.75, "forgets the first weights sooner"),
            "training.ema_every": (10, "nearly the same average for a part of the cost"),
        },
    ),
}
