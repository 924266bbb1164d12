"""What a plan of a run says, as plain values.

`plan.py` finds them out, `plan_text.py` shows them; programs get them as JSON
(`impasto train --plan --json`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from impasto.training.planning.exposure import Exposure
from impasto.training.planning.transfers import Transfers


@dataclass(frozen=True)
class DataPlan:
    """The images of a run.

    Attributes:
        images: Those that are trained on, regularisation images left out.
        held_out: Those that are not.
        skipped: `path` and `reason` of each that cannot be used.
        without_words: Images without a caption.
        several_lines: Captions with lines that are never shown.
        buckets: Width and height in pixels, as `512x768`, and how many images are in it.
        cropped_fraction: The mean fraction of the area that is cropped away, in [0, 1).
        enlarged: Images that are smaller than their bucket.
        too_long: Captions that are longer than `max_tokens`.
        max_tokens: Tokens of a caption that are read.
        regularisation: Regularisation images that are there.
        regularisation_used: Those of them that are trained on.
        regularisation_showings: How often those come in an epoch, all together.
        balanced_showings: How often the images do that they are balanced against.
        masked: Images with a mask in `mask_dir`.
    """

    images: int
    held_out: int
    skipped: Sequence[Mapping[str, str]]
    without_words: int
    several_lines: int
    buckets: Mapping[str, int]
    cropped_fraction: float
    enlarged: int
    too_long: int
    max_tokens: int
    regularisation: int = 0
    regularisation_used: int = 0
    regularisation_showings: int = 0
    balanced_showings: int = 0
    masked: int = 0


@dataclass(frozen=True)
class ModelPlan:
    """The model of a planned run, and which of its parts are trained.

    Attributes:
        family: What the model is.
        predicts: What its U-Net predicts.
        evidence: What says so.
        parts: What learns, and its number of weights.
        only: Pattern of `method.train_only` -> the names of the weights that it finds and that
            learn.
    """

    family: str
    predicts: str
    evidence: str
    parts: Mapping[str, int]
    only: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class StepPlan:
    """The length of a run.

    Attributes:
        total: Optimizer steps.
        per_epoch: Optimizer steps in a pass over the data.
        epochs: Passes.
        batches_per_epoch: Batches in a pass, of all processes.
        batch_sizes: Images of a batch at most, of each dataset.
        exposure: Images of a step, and how often each image comes.
        seconds_each: About how long a step takes.
        seconds: About how long all steps take.
        device: Where.
        transfers: What a step copies between RAM and the GPU; None where weights stay there.
    """

    total: int
    per_epoch: int
    epochs: float
    batches_per_epoch: int
    batch_sizes: Sequence[int]
    exposure: Exposure
    seconds_each: float
    seconds: float
    device: str
    transfers: Transfers | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device at the fullest moment.

    Attributes:
        moment: What is being done then.
        parts: Bytes by what takes them.
        total: Bytes in all.
        budget: Bytes that the run may take.
        ram: Bytes in RAM beside a GPU by what takes them.
    """

    moment: str
    parts: Mapping[str, int]
    total: int
    budget: int
    ram: Mapping[str, int]


@dataclass(frozen=True)
class DiskUse:
    """What a run leaves.

    Attributes:
        states: When states are written.
        state_bytes: The size of one.
        kept_states: How many of the newest are kept.
        models: When models are written.
        model_bytes: The size of one.
        models_at_once: How many there are at once.
        averages: How often the averages of `training.posthoc_ema` are stored; all are kept.
        averages_bytes: What they take each time.
        start_bytes: What the weights take that they are told from, which are stored once.
        total_bytes: The most that is there at once.
        free_bytes: What the disk has free.
    """

    states: Sequence[str]
    state_bytes: int
    kept_states: int
    models: Sequence[str]
    model_bytes: int
    models_at_once: int
    averages: int
    averages_bytes: int
    start_bytes: int
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class ValidationPlan:
    """What is measured on held-out images.

    Attributes:
        images: Held-out images.
        copies: Image files of the dataset that have a copy.
        groups: Groups of such files, each of which is on one side.
        near: Whether files that look the same count as copies.
        draws: Draws of noise and timestep for each image.
        standard_error: What these leave in the loss, as a share of it.
        training_images: Images of the training set that are measured too, at most.
        times: How often it is measured.
        seconds_each: About how long it takes at most.
    """

    images: int
    copies: int
    groups: int
    near: bool
    draws: int
    standard_error: float
    training_images: int
    times: int
    seconds_each: float


@dataclass(frozen=True)
class RunPlan:
    """All that is known of a run before it begins.

    Attributes:
        data: Its images.
        model: What is trained.
        steps: How long it takes.
        memory: What it takes of memory.
        disk: What it leaves.
        warnings: What is unusual about its settings, in sentences.
        changed: Settings that are not as usual, by their paths.
        validation: What is measured on held-out images; None where there are none.
    """

    data: DataPlan
    model: ModelPlan
    steps: StepPlan
    memory: MemoryPlan
    disk: DiskUse
    warnings: Sequence[str]
    changed: Mapping[str, Any]
    validation: ValidationPlan | None = None
