"""Refused combinations of settings of learning: losses, text encoders, validation, exports."""

from __future__ import annotations

from impasto.config.formats import FORMATS
from impasto.config.rule import Rule

LOSS = (
    Rule(
        ("loss.v_loss_as_noise_loss",),
        lambda c: c.config.loss.v_loss_as_noise_loss and c.facts.predicts_velocity is False,
        lambda _: (
            "loss.v_loss_as_noise_loss is for velocity models, and this one predicts noise. Remove "
            "it"
        ),
    ),
    Rule(
        ("loss.noise_loss_like_v",),
        lambda c: c.config.loss.noise_loss_like_v is not None and c.facts.predicts_velocity is True,
        lambda _: (
            "loss.noise_loss_like_v is for models that predict noise, and this one predicts "
            "velocity. Remove it"
        ),
    ),
    Rule(
        (
            "noise.zero_terminal_snr",
            "loss.debiased",
            "loss.noise_loss_like_v",
            "loss.uncertainty",
        ),
        lambda c: (
            c.config.noise.zero_terminal_snr
            and c.facts.predicts_velocity is False
            and c.weighs_by_inverse_snr
        ),
        lambda _: (
            "noise.zero_terminal_snr makes the weights of loss.debiased, loss.noise_loss_like_v "
            "and loss.uncertainty infinite at the timestep of pure noise. Remove one of them"
        ),
    ),
    Rule(
        ("loss.snr_schedule", "noise.zero_terminal_snr", "loss.min_snr_gamma"),
        lambda c: c.config.loss.snr_schedule == "original" and not c.weighs_by_rescaled_snr,
        lambda _: (
            "loss.snr_schedule original has no effect without noise.zero_terminal_snr and a weight "
            "by noise level, such as loss.min_snr_gamma. Remove it"
        ),
    ),
    Rule(
        ("loss.diff_tuning", "dataset.datasets"),
        lambda c: c.config.loss.diff_tuning is not None and not c.has_regularisation,
        lambda _: (
            "loss.diff_tuning needs regularisation images, which preserve what the model knows: "
            "add a subset with is_reg (impasto dataset prior draws them), or remove it"
        ),
    ),
    Rule(
        ("loss.outside_mask", "loss.mask_by_area", "dataset.alpha_mask", "dataset.mask_dir"),
        lambda c: (
            (c.config.loss.outside_mask > 0 or c.config.loss.mask_by_area) and not c.has_masks
        ),
        lambda c: (
            f"loss.{'outside_mask' if c.config.loss.outside_mask else 'mask_by_area'} has no "
            f"effect without masks: set dataset.mask_dir or alpha_mask, or remove it"
        ),
    ),
    Rule(
        ("noise.immiscible", "training.batch_size"),
        lambda c: (
            c.config.noise.immiscible
            and c.training.batch_size != "auto"
            and max(c.config.batch_sizes.values()) == 1
            and not c.training.batch_by_pixels
        ),
        lambda _: (
            "noise.immiscible has no effect with batches of one image, which leave nothing to "
            "assign. Raise training.batch_size, or remove it"
        ),
    ),
)
"""Rules about losses and noise that do not fit the model's prediction, the images or the
batches."""


TEXT = (
    Rule(
        ("model.clip_skip",),
        lambda c: c.config.model.clip_skip is not None and c.facts.takes_clip_skip is False,
        lambda c: (
            f"model.clip_skip is not for {c.facts.family or 'this model'}, whose text encoders "
            f"have fixed output layers in every program. Remove it"
        ),
        of_new_runs=True,
    ),
    Rule(
        ("method.text_encoder_from_step", "training.max_steps", "training.max_epochs"),
        lambda c: c.never_learns,
        lambda c: (
            f"method.text_encoder_from_step {c.text_encoder_begins} is not before "
            + (
                f"training.max_steps {c.steps}"
                if c.training.max_steps
                else f"the end of training.max_epochs {c.training.max_epochs}, after {c.steps} "
                "steps"
            )
            + ": the text encoder would never learn"
        ),
    ),
    Rule(
        ("training.cache_text_to_disk", "method.train_text_encoder"),
        lambda c: c.training.cache_text_to_disk and c.config.trains_text_encoder,
        lambda _: (
            "training.cache_text_to_disk and method.train_text_encoder contradict each other: the "
            "output of a text encoder that is trained changes with each step. Remove one of them"
        ),
    ),
    Rule(
        ("training.text_from_npz", "method.train_text_encoder"),
        lambda c: c.training.text_from_npz and c.config.trains_text_encoder,
        lambda _: (
            "training.text_from_npz and method.train_text_encoder contradict each other: the "
            "output of a text encoder that is trained changes with each step. Remove one of them"
        ),
    ),
    Rule(
        ("training.text_from_npz", "method.templates", "method.template_file"),
        lambda c: (
            c.training.text_from_npz
            and c.config.hypernetwork is not None
            and bool(c.config.hypernetwork.templates or c.config.hypernetwork.template_file)
        ),
        lambda _: (
            "training.text_from_npz cannot be combined with caption templates, which put other "
            "words around a caption each time. Remove one of the two"
        ),
    ),
)
"""Rules about text encoders that are trained, or whose outputs are read from files."""


HELD_OUT = (
    Rule(
        ("validation.image_dir", "dataset.validation_split"),
        lambda c: c.split_twice,
        lambda _: (
            "validation.image_dir and validation_split of a dataset contradict each other: "
            "remove one of them"
        ),
    ),
    Rule(
        ("validation.image_dir", "validation.split"),
        lambda c: c.config.validation.image_dir is not None and c.config.validation.split > 0,
        lambda _: (
            "validation.image_dir and validation.split contradict each other: the first has the "
            "images to validate on, and the second takes them from the dataset. Remove one of "
            "them"
        ),
        of_new_runs=True,
    ),
    Rule(
        ("dataset.validation_seed", "dataset.validation_split", "validation.split"),
        lambda c: c.seeds_no_split,
        lambda _: (
            "validation_seed of a dataset chooses what is held out of it, and nothing is: give "
            "validation.split or validation_split, or remove it"
        ),
        of_new_runs=True,
    ),
    Rule(
        (
            "dataset.buckets",
            "dataset.bucket_no_upscale",
            "dataset.bucket_table",
            "dataset.enable_bucket",
        ),
        lambda c: bool(c.idle_bucket_setting),
        lambda c: (
            f"dataset.{c.idle_bucket_setting} has no effect with enable_bucket = false, where all "
            f"images have the size of the resolution. Remove one of them"
        ),
        of_new_runs=True,
    ),
    Rule(
        ("validation.by", "validation.image_dir", "validation.split"),
        lambda c: bool(c.config.validation.by) and not c.config.holds_out,
        lambda _: (
            "validation.by has no effect where no images are held out: give validation.split or "
            "validation.image_dir, or remove it"
        ),
    ),
)
"""Rules about images that are held out twice or not at all, and about bucket settings without
effect."""


DRAWN = (
    Rule(
        ("previews.features", "previews.prompts", "previews.prompt_file"),
        lambda c: c.config.previews.features is not None and not c.draws_previews,
        lambda _: (
            "previews.features has no effect without previews: give previews.prompts or "
            "previews.prompt_file, or remove it"
        ),
    ),
)
"""Rules about previews."""


WRITTEN = (
    Rule(
        ("saving.format", "method.kind"),
        lambda c: c.config.saving.format not in (None, *FORMATS[c.method.kind]),
        lambda c: (
            f"saving.format {c.config.saving.format} is not one of method.kind {c.method.kind}, "
            f"which has {', '.join(FORMATS[c.method.kind])}"
        ),
    ),
    Rule(
        ("method.kind", "saving.unet_dtype", "saving.text_encoder_dtype", "saving.vae_dtype"),
        lambda c: c.method.kind == "hypernetwork" and bool(c.config.saving.component_dtypes),
        lambda c: (
            f"saving.{next(iter(c.config.saving.component_dtypes))}_dtype has no effect on a "
            f"hypernetwork"
        ),
    ),
    Rule(
        ("method.kind", "saving.merge_ratio"),
        lambda c: c.method.kind == "hypernetwork" and c.config.saving.merge_ratio != 1,
        lambda _: (
            "saving.merge_ratio has no effect on a hypernetwork, which is drawn with at any "
            "strength. Remove it"
        ),
    ),
    Rule(
        ("method.kind", "saving.export_dtype"),
        lambda c: c.method.kind == "hypernetwork" and c.config.export_precision == "bf16",
        lambda _: "saving.export_dtype of a hypernetwork is fp32 or fp16",
    ),
)
"""Rules about formats and precisions of exported files."""
