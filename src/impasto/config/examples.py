"""An example value for each setting, for display; most are derived from the setting itself."""

from __future__ import annotations

from typing import Any

from impasto.config.tree import Setting

_EXAMPLES: dict[str, Any] = {
    "output_dir": "runs/my-style",
    "model.path": "models/v1-5-pruned.safetensors",
    "model.vae": "models/vae-ft-mse.safetensors",
    "model.variant": "fp16",
    "model.clip_skip": 2,
    "dataset.image_dir": "pictures",
    "dataset.metadata_file": "meta.json",
    "dataset.mask_dir": "masks",
    "dataset.config": "dataset.toml",
    "dataset.train_data_dir": "train",
    "dataset.reg_data_dir": "reg",
    "dataset.class_tokens": "sks dog",
    "dataset.general": {"resolution": 640},
    "dataset.datasets": [{"resolution": 512, "subsets": [{"image_dir": "pictures"}]}],
    "dataset.cache_dir": "cache",
    "dataset.ray_address": "192.168.1.5:6379",
    "dataset.buckets": [[512, 768], [768, 512]],
    "dataset.validation_split": 0.05,
    "dataset.image_column": "image",
    "dataset.caption_column": "caption",
    "dataset.caption_extension": ".txt",
    "dataset.keep_tokens_separator": "|||",
    "dataset.secondary_separator": ";;;",
    "dataset.caption_prefix": "a drawing,",
    "dataset.caption_suffix": "in ink",
    "dataset.face_crop_aug_range": [2.0, 4.0],
    "method.block_lrs": {"mid_block": 1e-6},
    "method.widths": [320, 640, 768, 1280],
    "method.dropout": [0.0, 0.1, 0.0],
    "method.activation": "swish",
    "method.start_from": "style.pt",
    "method.templates": ["[filewords], art by [name]"],
    "method.template_file": "templates.txt",
    "method.info": "trained on 40 drawings",
    "method.text_encoder_lr": 1e-6,
    "method.text_encoder_lrs": {"text_encoder": 1e-6},
    "optimizer.kind": "adamw8bit",
    "optimizer.lr": 1e-5,
    "optimizer.betas": [0.9, 0.99],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.01,
    "optimizer.arguments": {"amsgrad": True},
    "schedule.warmup_steps": "5%",
    "schedule.decay_steps": "20%",
    "schedule.timescale": 10_000,
    "schedule.min_lr_ratio": 0.1,
    "schedule.rules": "1e-5:100, 5e-6:1000, 1e-6",
    "loss.min_snr_gamma": 5,
    "loss.noise_loss_like_v": 0.5,
    "training.max_steps": 2000,
    "training.max_epochs": 10,
    "training.memory": "auto",
    "training.batch_size": 4,
    "training.ema_decay": 0.9999,
    "training.ema_power": 0.75,
    "validation.image_dir": "held-out",
    "validation.split": 0.05,
    "validation.by": ["tag"],
    "previews.features": "dinov2",
    "previews.hypernetworks": ["style.pt:0.8"],
    "previews.prompts": ["a castle on a hill"],
    "previews.prompt_file": "prompts.txt",
    "previews.negative_prompt": "blurry",
    "saving.state_every_minutes": 15,
    "saving.model_every_steps": 500,
    "saving.model_every_epochs": 1,
    "saving.keep_models": 3,
    "saving.keep_step_models": 4,
    "saving.keep_epoch_models": 2,
    "saving.model_dir": "models",
    "saving.name": "my-style",
    "saving.publish": ["prompts"],
    "saving.metadata": {"author": "Ada"},
    "logging.trackers": ["tensorboard"],
    "logging.wandb_name": "my-style",
}


def example_of(setting: Setting) -> Any:
    """Return a value that a setting accepts on its own; other settings may forbid it."""
    if setting.path in _EXAMPLES:
        return _EXAMPLES[setting.path]
    if setting.type.form == "flag":
        return not setting.default
    if setting.type.choices:
        others = [choice for choice in setting.type.choices if choice != setting.default]
        return (others or [setting.default])[0]
    if setting.default is not None:
        return setting.default
    return max(1, setting.type.bounds.get("ge", 1))
