"""Settings of what is minimised: the loss, the noise, and which noise levels are trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from impasto.config.base import Section
from impasto.config.kinds import of_its_kind

NotNegative = Annotated[float, Field(ge=0)]


class LossWeights(Section):
    """How much each noise level counts, whatever the kind of loss."""

    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Weigh low noise less, so that training converges sooner (min-SNR); 5 is usual. Off means that
    all noise levels count the same."""

    soft_min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """The same without a bend: the weight of the error in the image is SNR * gamma / (SNR + gamma)
    instead of the smaller of the two (arXiv:2401.11605); 4 is that paper's. Give this
    or `min_snr_gamma`."""

    uncertainty: bool = False
    """Learn while training how much each noise level counts: each by the inverse of its usual loss,
    so that all come to weigh the same (arXiv:2312.02696). It takes the place of all other weights
    by noise level but `diff_tuning`, and begins as the loss of a velocity model. What is learned is
    kept in states, and is no part of the model."""

    diff_tuning: Annotated[float, Field(gt=0)] | None = None
    """Train mostly on high noise, and keep what the model knows at low noise, which serves all
    images, by regularisation images, as Diff-Tuning does (arXiv:2406.00773): images count by t^tau
    and regularisation images by (T - t)^tau, both 1 on average over the timesteps. 1 is the paper's
    tau. Needs regularisation images, best drawn by the base model (`impasto dataset prior`); in the
    authors' code their mean loss counts 0.1, which is `prior_loss_weight = 0.1` here."""

    debiased: bool = False
    """Weigh by 1 / sqrt(SNR), or 1 / (SNR + 1) for velocity models (debiased estimation)."""

    v_loss_as_noise_loss: bool = False
    """Scale the loss of a velocity model to that of noise: sd-scripts'
    `scale_v_pred_loss_like_noise_pred`."""

    noise_loss_like_v: Annotated[float, Field(gt=0)] | None = None
    """Add this share of a velocity loss to that of a noise model: sd-scripts'
    `v_pred_like_loss`."""

    snr_schedule: Literal["trained", "original"] = "trained"
    """Which signal-to-noise ratios the weights above go by where `noise.zero_terminal_snr` rescales
    the schedule: `trained`, those of the rescaled one, by which its last steps count next to
    nothing in the loss of a velocity model, or `original`, those before, as in sd-scripts."""

    outside_mask: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The least weight of a place where images have masks, from 0 to 1: black, and whatever is
    darker than this, counts this much. 0 means as the mask says; 0.1 keeps some of the
    surroundings, so that they do not go wild."""

    mask_by_area: bool = False
    """Divide the loss of an image that has a mask by the mean of its weights, so that a small
    subject counts as much as one that fills the image."""

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
                f"level whatever it is multiplied by: take one out"
            )
        return self

    @model_validator(mode="after")
    def _one_min_snr(self) -> LossWeights:
        if self.min_snr_gamma is not None and self.soft_min_snr_gamma is not None:
            raise ValueError(
                "min_snr_gamma and soft_min_snr_gamma are two forms of one weight: take one out"
            )
        return self


class PlainLoss(LossWeights):
    """The squared or the absolute error."""

    kind: Literal["l2", "l1"] = "l2"
    """`l2` squares the error; `l1` weighs large errors less, so odd images do less harm."""


class HuberLoss(LossWeights):
    """An error that is squared where it is small, and not where it is large."""

    kind: Literal["huber", "smooth_l1"]
    """`huber` is like `l2` below a threshold and like `l1` above it, so that odd images do less
    harm; `smooth_l1` is the same divided by the threshold."""

    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How the threshold follows the noise: `constant`; `exponential`, from `huber_scale` without
    noise to `huber_c` times that; `snr`, by the signal-to-noise ratio."""

    huber_c: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The threshold where there is most noise: smaller is closer to `l1`."""

    huber_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the threshold; not for `huber_schedule` snr."""

    @model_validator(mode="after")
    def _scale_is_used(self) -> HuberLoss:
        if self.huber_scale != 1.0 and self.huber_schedule == "snr":
            raise ValueError(
                "huber_scale has no effect on huber_schedule snr: take it out, or choose constant "
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
    """The noise that the model learns to find."""

    offset: NotNegative = 0.0
    """Strength of noise that is the same all over a channel, so that images may become darker or
    brighter as a whole; 0.05 to 0.1 is usual, 0 means none."""

    offset_random_strength: bool = False
    """Multiply `offset` by a number from 0 to 1 that each step draws."""

    adaptive_scale: float = 0.0
    """Add this times a channel's mean to `offset`; needs it."""

    multires_iterations: Annotated[int, Field(ge=0, le=20)] = 0
    """Add noise at this many coarser scales; 6 to 10 is usual, 0 means none."""

    multires_discount: Annotated[float, Field(gt=0, le=1)] = 0.3
    """How much less each coarser scale counts."""

    immiscible: bool = False
    """Assign the noises of a batch to its images so that the distances between images and their
    noises are smallest in total (immiscible diffusion, arXiv:2406.12303): images meet noises that
    are nearer to them, and training converges sooner, the more so the larger `batch_size`."""

    input_perturbation: NotNegative = 0.0
    """Strength of noise on the input that is not in the target; 0.1 is usual, 0 means none."""

    input_perturbation_random_strength: bool = False
    """Multiply `input_perturbation` by a number from 0 to 1 that each step draws."""

    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last step is noise alone, for very dark and bright images;
    for velocity models. Samplers have to know: previews and Diffusers folders do. A model that
    predicts noise is trained so, and drawn with as before."""

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
    """Which noise levels are trained on; 0 is the least noise, 999 the most."""

    sampling: Literal["uniform", "stratified", "logit_normal"] = "uniform"
    """`uniform` draws each with equal chance; `stratified` spreads those of a step evenly, for a
    steadier loss; `logit_normal` prefers the middle."""

    first: Annotated[int, Field(ge=0, lt=1000)] = 0
    """The least noise to train on."""

    last: Annotated[int, Field(gt=0, le=1000)] = 1000
    """The most noise to train on, itself not included."""

    logit_mean: float = 0.0
    """Of `logit_normal`: above 0 prefers more noise."""

    logit_std: Annotated[float, Field(gt=0)] = 1.0
    """Of `logit_normal`: larger spreads wider."""

    @model_validator(mode="after")
    def _in_order(self) -> TimestepConfig:
        if self.first >= self.last:
            raise ValueError(f"first is {self.first} and last {self.last}: nothing lies between")
        if self.sampling != "logit_normal" and (self.logit_mean, self.logit_std) != (0.0, 1.0):
            raise ValueError("logit_mean and logit_std need the sampling logit_normal")
        return self
