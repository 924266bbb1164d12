"""Settings of the training objective: the loss, the noise, and the noise levels to train on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from impasto.config.base import Section
from impasto.config.kinds import of_its_kind

NotNegative = Annotated[float, Field(ge=0)]


class LossWeights(Section):
    """How much each noise level counts, whatever the kind of loss."""

    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Gamma of min-SNR weighting, which gives low noise less weight, so that training converges
    sooner; 5 is usual. Off means that all noise levels count the same."""

    soft_min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Gamma of soft min-SNR weighting, a smooth form of min-SNR: the weight of the error in the
    image is SNR * gamma / (SNR + gamma) instead of min(SNR, gamma) (arXiv:2401.11605); 4 is that
    paper's value. Set this or `min_snr_gamma`."""

    uncertainty: bool = False
    """Learn the weight of each noise level during training: each is divided by its usual loss, so
    that all levels contribute equally in the end (arXiv:2312.02696). It replaces all other weights
    by noise level except `diff_tuning`, and starts as the loss of a velocity model. The learned
    weights are stored in training states and are not part of the model."""

    diff_tuning: Annotated[float, Field(gt=0)] | None = None
    """Exponent tau of Diff-Tuning (arXiv:2406.00773), which trains mostly on high noise and uses
    regularisation images to preserve what the model knows at low noise, which all images share:
    training images are weighted by t^tau and regularisation images by (T - t)^tau, both 1 on
    average over the timesteps. 1 is the paper's tau. Needs regularisation images, preferably drawn
    by the base model (`impasto dataset prior`); in the authors' code their mean loss counts 0.1,
    which is `prior_loss_weight = 0.1` here."""

    debiased: bool = False
    """Weight the loss by 1 / sqrt(SNR), or 1 / (SNR + 1) for velocity models (debiased
    estimation)."""

    v_loss_as_noise_loss: bool = False
    """Scale the loss of a velocity model to that of a model that predicts noise: sd-scripts'
    `scale_v_pred_loss_like_noise_pred`."""

    noise_loss_like_v: Annotated[float, Field(gt=0)] | None = None
    """Factor of a velocity loss that is added to the loss of a model that predicts noise:
    sd-scripts' `v_pred_like_loss`."""

    snr_schedule: Literal["trained", "original"] = "trained"
    """Signal-to-noise ratios that the weights above use if `noise.zero_terminal_snr` rescales the
    schedule: `trained` uses those of the rescaled schedule, with which its last steps count next to
    nothing in the loss of a velocity model; `original` uses those before rescaling, as sd-scripts
    does."""

    outside_mask: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Lowest loss weight in images with masks, from 0 to 1: black, and any grey darker than this,
    counts this much. 0 uses the mask unchanged; 0.1 also trains weakly on the surroundings, so that
    they do not degrade."""

    mask_by_area: bool = False
    """Divide the loss of a masked image by the mean of its mask, so that a small subject counts as
    much as one that fills the image."""

    @model_validator(mode="after")
    def _learned_or_given(self) -> LossWeights:
        fixed = (
            "min_snr_gamma", "soft_min_snr_gamma", "debiased", "v_loss_as_noise_loss",
            "noise_loss_like_v",
        )  # fmt: skip
        given = [name for name in fixed if getattr(self, name)]
        if self.uncertainty and given:
            raise ValueError(
                f"{given[0]} has no effect with uncertainty, which learns the weight of each noise "
                f"level whatever other factor it has: remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _one_min_snr(self) -> LossWeights:
        if self.min_snr_gamma is not None and self.soft_min_snr_gamma is not None:
            raise ValueError(
                "min_snr_gamma and soft_min_snr_gamma are two forms of one weight: remove one"
            )
        return self


class PlainLoss(LossWeights):
    """Squared or absolute error."""

    kind: Literal["l2", "l1"] = "l2"
    """`l2` squares the error; `l1` gives large errors less weight, so that outliers do less
    harm."""


class HuberLoss(LossWeights):
    """An error that is squared where it is small, and absolute where it is large."""

    kind: Literal["huber", "smooth_l1"]
    """`huber` is like `l2` below a threshold and like `l1` above it, so that outliers do less harm;
    `smooth_l1` is the same divided by the threshold."""

    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How the threshold depends on the noise: `constant`; `exponential`, falling from `huber_scale`
    without noise to `huber_c` times that; `snr`, by the signal-to-noise ratio."""

    huber_c: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Threshold at the highest noise level: smaller is closer to `l1`."""

    huber_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the threshold; not for `huber_schedule` snr."""

    @model_validator(mode="after")
    def _scale_is_used(self) -> HuberLoss:
        if self.huber_scale != 1.0 and self.huber_schedule == "snr":
            raise ValueError(
                "huber_scale has no effect on huber_schedule snr: remove it, or choose constant "
                "or exponential"
            )
        return self


LOSSES: dict[str, type[Section]] = {
    "l2": PlainLoss,
    "l1": PlainLoss,
    "huber": HuberLoss,
    "smooth_l1": HuberLoss,
}

LossConfig = Annotated[
    PlainLoss | HuberLoss,
    Field(discriminator="kind"),
    of_its_kind(
        LOSSES,
        "l2",
        lambda name, kind: (
            f"{name} has no effect on the kind {kind}; it belongs to huber and smooth_l1"
        ),
    ),
]


class NoiseConfig(Section):
    """The noise that is added to images, and that the model learns to predict."""

    offset: NotNegative = 0.0
    """Strength of noise that is constant over each channel of an image, which lets the model draw
    images that are darker or brighter overall; 0.05 to 0.1 is usual, 0 means none."""

    offset_random_strength: bool = False
    """Multiply `offset` by a random number from 0 to 1, drawn at each step."""

    adaptive_scale: float = 0.0
    """Factor on the mean of each channel of the latents, which is added to `offset`; needs `offset`
    above 0."""

    multires_iterations: Annotated[int, Field(ge=0, le=20)] = 0
    """Number of coarser scales at which noise is added (multi-resolution noise); 6 to 10 is usual,
    0 means none."""

    multires_discount: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Factor on the strength of the noise from each scale to the next coarser one."""

    immiscible: bool = False
    """Assign the noise samples of a batch to its images so that the total distance between images
    and noise is smallest (immiscible diffusion, arXiv:2406.12303): each image gets noise nearer to
    it, and training converges sooner, the more so the larger `batch_size`."""

    input_perturbation: NotNegative = 0.0
    """Strength of extra noise on the model's input that is not part of the target; 0.1 is usual, 0
    means none."""

    input_perturbation_random_strength: bool = False
    """Multiply `input_perturbation` by a random number from 0 to 1, drawn at each step."""

    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that its last step is pure noise, for very dark and bright
    images; for velocity models. Samplers must use the same schedule: previews and Diffusers folders
    do. A model that predicts noise is trained with it, but drawn with the old schedule."""

    @model_validator(mode="after")
    def _has_an_offset(self) -> NoiseConfig:
        added = [n for n in ("adaptive_scale", "offset_random_strength") if getattr(self, n)]
        if self.offset == 0 and added:
            raise ValueError(f"{added[0]} needs noise.offset above 0")
        if self.input_perturbation == 0 and self.input_perturbation_random_strength:
            raise ValueError("input_perturbation_random_strength needs input_perturbation above 0")
        discount = type(self).model_fields["multires_discount"].default
        if self.multires_iterations == 0 and self.multires_discount != discount:
            raise ValueError("multires_discount has no effect without multires_iterations")
        return self


class TimestepConfig(Section):
    """Which noise levels are trained on: timestep 0 is the least noise, 999 the most."""

    sampling: Literal["uniform", "stratified", "logit_normal"] = "uniform"
    """How timesteps are drawn: `uniform` with equal probability; `stratified` spreads those of a
    step evenly, for a steadier loss; `logit_normal` prefers the middle."""

    first: Annotated[int, Field(ge=0, lt=1000)] = 0
    """Lowest timestep to train on, the one with the least noise."""

    last: Annotated[int, Field(gt=0, le=1000)] = 1000
    """End of the range of timesteps to train on; the range excludes this value."""

    logit_mean: float = 0.0
    """Mean of the logit-normal distribution; above 0 prefers more noise. Only for `sampling`
    logit_normal."""

    logit_std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the logit-normal distribution; larger spreads wider. Only for
    `sampling` logit_normal."""

    @model_validator(mode="after")
    def _in_order(self) -> TimestepConfig:
        if self.first >= self.last:
            raise ValueError(
                f"first is {self.first} and last {self.last}; expected first below last"
            )
        if self.sampling != "logit_normal" and (self.logit_mean, self.logit_std) != (0.0, 1.0):
            raise ValueError(
                "logit_mean and logit_std have no effect unless sampling is logit_normal"
            )
        return self
