"""A run as the rules of the compatibility table see it: its settings, and known facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from impasto.optimizer_table import OptimizerRow, row_of

if TYPE_CHECKING:
    from impasto.config.base import Section
    from impasto.config.method import MethodConfig
    from impasto.config.run import RunConfig
    from impasto.config.training import TrainingConfig

Precision = Literal["no", "fp16", "bf16"]

_ENDS_OF_UNET = {"conv_in", "time_embedding", "conv_norm_out", "conv_out"}
"""Blocks that `method.block_lrs` names only if it sets rates for all blocks, as `--block_lr`
does."""


@dataclass(frozen=True)
class Facts:
    """Facts about a run that are not in its settings; None if not known yet.

    Attributes:
        device: The device that computes, `cpu` or `cuda`.
        processes: The number of processes of the run.
        sharding: The method by which accelerate is configured to shard the model, `FSDP` or
            `DeepSpeed`; empty if it is not sharded.
        precision: The precision to which `training.mixed_precision = "auto"` resolves.
        total_steps: The number of optimizer steps in `training.max_epochs`.
        predicts_velocity: Whether the base model's U-Net predicts velocity, not noise.
        family: The name of the base model's family; empty if unknown.
        takes_clip_skip: Whether the output layer of the base model's text encoder can be chosen.
    """

    device: str | None = None
    processes: int | None = None
    sharding: Literal["", "FSDP", "DeepSpeed"] | None = None
    precision: Precision | None = None
    total_steps: int | None = None
    predicts_velocity: bool | None = None
    family: str = ""
    takes_clip_skip: bool | None = None


SETTINGS_ALONE = Facts()


@dataclass(frozen=True)
class Case:
    """Settings and facts of a run, with the derived values that rules need."""

    config: RunConfig
    facts: Facts

    @property
    def training(self) -> TrainingConfig:
        """The settings of the section `[training]`."""
        return self.config.training

    @property
    def method(self) -> MethodConfig:
        """The settings of the section `[method]`: what is trained, and how."""
        return self.config.method

    @property
    def kind(self) -> str:
        """The name of the optimizer, which is the key of its row in the table of optimizers."""
        return self.config.optimizer.kind

    @property
    def row(self) -> OptimizerRow:
        """The row of the optimizer in the table of optimizers."""
        return row_of(self.kind)

    @property
    def precision(self) -> str:
        """The precision of computation; `auto` if it has not been resolved yet."""
        asked = self.training.mixed_precision
        if asked != "auto":
            return asked
        return self.facts.precision or "auto"

    @property
    def in_backward(self) -> bool:
        """Whether weights are updated within the backward pass."""
        return self.training.optimizer_in_backward != "off"

    @property
    def graphs_steps(self) -> bool:
        """Whether whole steps are recorded as CUDA graphs."""
        return self.training.cuda_graphs == "step"

    @property
    def is_fused_adamw(self) -> bool:
        """Whether the optimizer is PyTorch's fused AdamW, with its state on the device."""
        return self.kind == "adamw" and bool(self.config.optimizer.arguments.get("fused", True))

    @property
    def adds_decay_to_gradients(self) -> bool:
        """Whether weight decay is applied through the gradients (`weight_decouple = false`)."""
        given = self.config.optimizer.given()
        return given.get("weight_decouple") is False and bool(given.get("weight_decay"))

    @property
    def weighs_by_inverse_snr(self) -> bool:
        """Whether a model that predicts noise would have infinite loss weight at pure noise."""
        loss = self.config.loss
        of_original = loss.snr_schedule == "original"
        by_inverse = loss.debiased or loss.noise_loss_like_v is not None
        return loss.uncertainty or (by_inverse and not of_original)

    @property
    def weighs_by_rescaled_snr(self) -> bool:
        """Whether the loss is weighted by noise level, and the noise levels are rescaled."""
        loss = self.config.loss
        given = (loss.min_snr_gamma, loss.soft_min_snr_gamma, loss.noise_loss_like_v)
        weighs = loss.debiased or loss.v_loss_as_noise_loss or any(g is not None for g in given)
        return weighs and self.config.noise.zero_terminal_snr

    @property
    def rates(self) -> list[float]:
        """The distinct learning rates of the trained weights, in ascending order, without 0."""
        method, lr = self.method, self.config.optimizer.lr
        if method.kind == "hypernetwork":
            return [lr]
        names_all = method.block_lrs.keys() >= _ENDS_OF_UNET  # blocks that the model may lack
        rates = {*method.block_lrs.values(), *([] if names_all else [lr])}
        if method.train_text_encoder:
            rates |= {method.text_encoder_lr or lr, *method.text_encoder_lrs.values()}
        return sorted(rates - {0})

    @property
    def settings_of_rates(self) -> list[str]:
        """The paths of the settings that give a part of the model its own learning rate."""
        method = self.method
        if method.kind == "hypernetwork":
            return []
        alone = [] if method.text_encoder_lr is None else ["method.text_encoder_lr"]
        encoders = [f"method.text_encoder_lrs.{name}" for name in method.text_encoder_lrs]
        return [*alone, *encoders, *(["method.block_lrs"] if method.block_lrs else [])]

    @property
    def goes_by_chunks(self) -> str:
        """The setting that makes the optimizer update the weights in chunks; empty if none."""
        if self.training.weight_dtype != "fp32":
            return f"training.weight_dtype {self.training.weight_dtype}"
        if self.in_backward:
            return "training.optimizer_in_backward"
        return "training.offload_optimizer" if self.training.offload_optimizer else ""

    @property
    def stands_against_pull(self) -> str:
        """What excludes `optimizer.start_decay`, in words; empty if nothing does."""
        if self.row.looks_at_all_together:
            return f"optimizer.kind {self.kind}"
        if self.graphs_steps:
            return "training.cuda_graphs step"
        if self.facts.sharding:
            return f"a model that is sharded by {self.facts.sharding}"
        return self.goes_by_chunks

    @property
    def has_masks(self) -> bool:
        """Whether some images have masks that weight their loss by position."""
        entries = self.config.dataset.entries
        subsets = [s for entry in entries for s in entry.subsets if s.num_repeats]
        return any(subset.alpha_mask or subset.mask_dir is not None for subset in subsets)

    @property
    def has_regularisation(self) -> bool:
        """Whether the settings name regularisation images; folders may hold further ones."""
        dataset = self.config.dataset
        subsets = [s for entry in dataset.entries for s in entry.subsets if s.num_repeats]
        return any(subset.is_reg for subset in subsets)

    @property
    def split_twice(self) -> bool:
        """Whether a dataset has a `validation_split` although `validation.image_dir` is set."""
        asked = any(entry.validation_split is not None for entry in self.config.dataset.entries)
        return asked and self.config.validation.image_dir is not None

    @property
    def seeds_no_split(self) -> bool:
        """Whether a dataset has a `validation_seed`, and no images are held out of any dataset."""
        entries = self.config.dataset.entries
        asked = any(entry.validation_split is not None for entry in entries)
        seeded = any(entry.validation_seed is not None for entry in entries)
        if self.config.dataset.datasets:  # sd-scripts ignores it there
            return False
        return seeded and not asked and not self.config.validation.split

    @property
    def idle_bucket_setting(self) -> str:
        """A bucket setting that is set only in datasets without buckets; empty if none."""
        entries = self.config.dataset.entries
        given = {
            "buckets": [entry for entry in entries if entry.buckets],
            "bucket_no_upscale": [entry for entry in entries if entry.bucket_no_upscale],
            "bucket_table": [entry for entry in entries if entry.bucket_table == "novelai"],
        }
        idle = (key for key, own in given.items() if own and not any(e.enable_bucket for e in own))
        return next(idle, "")

    @property
    def draws_previews(self) -> bool:
        """Whether there are prompts for previews."""
        previews = self.config.previews
        return bool(previews.prompts) or previews.prompt_file is not None

    @property
    def idle_settings(self) -> dict[str, list[str]]:
        """Section -> settings without effect, as there are no held-out images or no prompts."""
        names = {
            "validation": [] if self.holds_out else ["every_steps", "standard_error", "copies"],
            "previews": [] if self.draws_previews else ["every_epochs", "hypernetworks", "sampler"],
        }
        sections = {"validation": self.config.validation, "previews": self.config.previews}
        found = {name: [*_not_as_usual(sections[name], own)] for name, own in names.items()}
        return {name: own for name, own in found.items() if own}

    @property
    def holds_out(self) -> bool:
        """Whether there are images to validate on."""
        return self.config.holds_out

    @property
    def steps(self) -> int | None:
        """The optimizer steps of the run; None if epochs have not been converted to steps yet."""
        return self.training.max_steps or self.facts.total_steps

    @property
    def never_learns(self) -> bool:
        """Whether the text encoder would be trained only from a step after the end of the run."""
        return self.steps is not None and self.text_encoder_begins >= self.steps

    @property
    def text_encoder_begins(self) -> int:
        """The first step in which the text encoder is trained, if it is trained."""
        method = self.method
        return method.text_encoder_from_step if method.kind == "full" else 0

    @property
    def text_encoder_pauses(self) -> bool:
        """Whether the text encoder is trained for a part of the run only."""
        method = self.method
        ends = method.kind == "full" and method.text_encoder_until_step is not None
        return ends or self.text_encoder_begins > 0

    @property
    def posthoc_setting(self) -> str:
        """The first setting of stored post-hoc averages that is not at its default, or empty."""
        return next(_not_as_usual(self.config.saving, ("posthoc_every_steps", "posthoc_dtype")), "")

    @property
    def ema_settings(self) -> str:
        """The settings of the running average that are set although nothing uses them, in words."""
        training = self.training
        shared = not training.posthoc_ema
        given = {
            "ema_power": training.ema_power is not None,
            "ema_on_cpu": training.ema_on_cpu and shared,
            "ema_every": training.ema_every > 1 and shared,
        }
        return " and ".join(f"training.{name}" for name, is_given in given.items() if is_given)


def _not_as_usual(section: Section, names: Sequence[str]) -> Iterator[str]:
    """Yield those of `names` whose settings are not at their defaults."""
    fields = type(section).model_fields
    return (name for name in names if getattr(section, name) != fields[name].default)
