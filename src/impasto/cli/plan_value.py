"""The plan of a run as plain values.

`plan.py` computes them, `plan_text.py` prints them; programs get them as JSON
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
        images: Number of training images, without regularisation images.
        held_out: Number of images held out for validation.
        skipped: `path` and `reason` of each image that cannot be used.
        without_words: Number of images without a caption.
        several_lines: Number of captions with lines that are never used.
        buckets: Bucket, as `512x768` (width x height in pixels) -> number of its images.
        cropped_fraction: The mean fraction of the area that is cropped away, in [0, 1).
        enlarged: Number of images that are smaller than their bucket.
        too_long: Number of captions that are longer than `max_tokens`.
        max_tokens: The length to which captions are cut, in tokens.
        regularisation: Number of regularisation images.
        regularisation_used: Number of these that are trained on.
        regularisation_showings: How often these are shown per epoch, in total.
        balanced_showings: How often the images that they are balanced against are shown.
        masked: Number of images with a mask in `mask_dir`.
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
        family: The model's family.
        predicts: What its U-Net predicts.
        evidence: How family and prediction were detected.
        parts: Trained network -> its number of trained weights.
        only: Pattern of `method.train_only` -> the names of the trained weights that it matches.
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
        total: Number of optimizer steps.
        per_epoch: Optimizer steps per epoch.
        epochs: Number of epochs.
        batches_per_epoch: Batches per epoch, of all processes.
        batch_sizes: The largest batch size of each dataset.
        exposure: Images per step, and how often each image is seen.
        seconds_each: Estimated seconds per step.
        seconds: Estimated seconds for all steps.
        device: The type of device.
        transfers: Copies per step between RAM and the GPU; None if weights stay on the GPU.
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
    """Peak memory on the device, in bytes.

    Attributes:
        phase: The work during which the peak is reached.
        parts: Use -> bytes.
        total: Total bytes.
        budget: Bytes that the run may use.
        ram: Use -> bytes in RAM, if the device is a GPU.
    """

    phase: str
    parts: Mapping[str, int]
    total: int
    budget: int
    ram: Mapping[str, int]


@dataclass(frozen=True)
class DiskUse:
    """The files that a run writes, and their sizes.

    Attributes:
        states: When training states are written.
        state_bytes: The size of a state.
        kept_states: How many of the newest states are kept.
        models: When models are written.
        model_bytes: The size of a model.
        models_at_once: The largest number of models on disk at once.
        averages: How often the averages of `training.posthoc_ema` are stored; all are kept.
        averages_bytes: The size of the averages stored each time.
        start_bytes: The size of the initial weights, stored once, relative to which averages are
            stored.
        total_bytes: The peak disk use of the run.
        free_bytes: The free space on the disk.
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
    """The validation of a planned run.

    Attributes:
        images: Number of held-out images.
        copies: Number of image files of the dataset that have a copy.
        groups: Number of groups of such copies; a group is never split between training and
            validation.
        near: Whether images that look the same count as copies.
        draws: Draws of noise and timestep per image.
        standard_error: The expected standard error of the loss, as a fraction of the loss.
        training_images: The largest number of training images that are measured too.
        times: How often the validation loss is measured.
        seconds_each: Estimated seconds per measurement, at most.
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
    """The complete plan of a run.

    Attributes:
        data: Its images.
        model: Its model and trained parts.
        steps: Its length.
        memory: Its peak memory.
        disk: The files that it writes.
        warnings: Sentences about unusual settings.
        changed: Path -> value of the settings that differ from their defaults.
        validation: Its validation; None if no images are held out.
    """

    data: DataPlan
    model: ModelPlan
    steps: StepPlan
    memory: MemoryPlan
    disk: DiskUse
    warnings: Sequence[str]
    changed: Mapping[str, Any]
    validation: ValidationPlan | None = None
