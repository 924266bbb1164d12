"""Form labels of settings, and their names in other trainers.

The names of sd-scripts are options of its commands, which a test compares with the table of
`sdscripts/flags.py`. Those of OneTrainer are labels of its window (as of 2026-11). Both help users
find a setting; its values need not be spelt alike.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """The names of a setting.

    Attributes:
        title: The form label.
        sd_scripts: Options of sd-scripts' commands that set it, without dashes.
        onetrainer: Labels of OneTrainer's window.
    """

    title: str
    sd_scripts: tuple[str, ...] = ()
    onetrainer: tuple[str, ...] = ()

    def elsewhere(self, name: str) -> str:
        """Return the names in other trainers as text; empty if none differs from the name here.

        Args:
            name: The setting's own name, without its section.
        """
        told = []
        if options := [option for option in self.sd_scripts if option != name]:
            told.append(f"sd-scripts: {', '.join(options)}")
        if others := [one for one in self.onetrainer if one.lower() != self.title.lower()]:
            told.append(f"OneTrainer: {', '.join(others)}")
        return "; ".join(told)


def label_of(path: str) -> Label:
    """Return the label of a setting.

    Args:
        path: Its path, such as `training.max_steps`.
    """
    title, sd_scripts, *others = _TABLE[path]
    return Label(title, tuple(sd_scripts.split()), tuple(others))


_TABLE: dict[str, tuple[str, ...]] = {
    # path: (title, sd-scripts' options, OneTrainer's labels ...)
    "output_dir": ("Run directory", "output_dir", "Workspace Directory"),
    "seed": ("Seed", "seed"),
    "model.path": ("Base model", "pretrained_model_name_or_path"),
    "model.vae": ("Another VAE", "vae", "VAE Override"),
    "model.family": ("Model family", "v2", "Model Type"),
    "model.prediction_type": (
        "Prediction type", "v_parameterization", "Rescale Noise Scheduler + V-pred",
    ),
    "model.weights": ("Weights to load", ""),
    "model.variant": ("Variant of files", ""),
    "model.clip_skip": ("Clip skip", "clip_skip", "Clip Skip"),
    "model.size_conditioning": ("Size conditioning", ""),
    "model.empty_text": ("Empty captions in SDXL", ""),
    "model.max_tokens": ("Maximum tokens", "max_token_length"),
    "model.token_join": ("Encoding of long captions", ""),
    "model.token_split": ("Splitting of long captions", ""),
    "model.caption_emphasis": ("Emphasis in captions", "weighted_captions"),
    "dataset.image_dir": ("Image folder", "train_data_dir"),
    "dataset.metadata_file": ("Metadata file", "in_json"),
    "dataset.mask_dir": ("Mask folder", "conditioning_data_dir masked_loss", "Masked Training"),
    "dataset.config": ("Dataset configuration", "dataset_config"),
    "dataset.train_data_dir": ("Folder of N_class folders", "train_data_dir"),
    "dataset.reg_data_dir": ("Regularisation images", "reg_data_dir"),
    "dataset.general": ("For all datasets", ""),
    "dataset.datasets": ("Several datasets", ""),
    "dataset.cache_dir": ("Cache folder", "", "Cache Directory"),
    "dataset.vae_batch_size": ("Images encoded at once", "vae_batch_size"),
    "dataset.vae_tiling": ("Encode in tiles", ""),
    "dataset.vae_precision": ("Precision of the VAE", "no_half_vae", "VAE Data Type"),
    "dataset.decode_workers": (
        "Decoding processes", "max_data_loader_n_workers", "Dataloader Threads",
    ),
    "dataset.executor": ("Executor", ""),
    "dataset.ray_address": ("Address of the Ray cluster", ""),
    "dataset.on_error": ("Images that cannot be used", ""),
    "dataset.batch_order": ("Order of batches", ""),
    "dataset.batch_size": ("Batch size of this dataset", ""),
    "dataset.resolution": ("Resolution", "resolution", "Resolution"),
    "dataset.enable_bucket": ("Aspect-ratio buckets", "enable_bucket", "Aspect Ratio Bucketing"),
    "dataset.min_bucket_reso": ("Shortest side of a bucket", "min_bucket_reso"),
    "dataset.max_bucket_reso": ("Longest side of a bucket", "max_bucket_reso"),
    "dataset.bucket_reso_steps": ("Step of bucket sides", "bucket_reso_steps"),
    "dataset.bucket_no_upscale": ("Never enlarge images", "bucket_no_upscale"),
    "dataset.bucket_selection": ("Choice of the bucket", ""),
    "dataset.bucket_table": ("Table of buckets", ""),
    "dataset.buckets": ("Custom buckets", ""),
    "dataset.validation_split": ("Held-out fraction", ""),
    "dataset.validation_seed": ("Seed of the held-out images", ""),
    "dataset.prior_loss_weight": ("Weight of regularisation images", ""),
    "dataset.num_repeats": ("Repeats", "dataset_repeats", "Balancing"),
    "dataset.recursive": ("Include sub-folders", "", "Include Subdirectories"),
    "dataset.caption_extension": ("Caption extension", "caption_extension caption_extention"),
    "dataset.image_column": ("Image column", ""),
    "dataset.caption_column": ("Caption column", ""),
    "dataset.class_tokens": ("Caption of uncaptioned images", ""),
    "dataset.shuffle_caption": ("Shuffle tags", "shuffle_caption", "Tag Shuffling"),
    "dataset.caption_separator": ("Tag separator", "caption_separator", "Tag Delimiter"),
    "dataset.keep_tokens": ("Tags kept at the start", "keep_tokens", "Keep Tag Count"),
    "dataset.keep_tokens_separator": ("Separator of kept tags", "keep_tokens_separator"),
    "dataset.secondary_separator": ("Separator within tag groups", "secondary_separator"),
    "dataset.enable_wildcard": ("Wildcards in captions", "enable_wildcard"),
    "dataset.caption_prefix": ("Caption prefix", "caption_prefix"),
    "dataset.caption_suffix": ("Caption suffix", "caption_suffix"),
    "dataset.caption_dropout_rate": (
        "Caption dropout", "caption_dropout_rate", "Caption Dropout Probability",
    ),
    "dataset.caption_dropout_every_n_epochs": (
        "Epochs without captions", "caption_dropout_every_n_epochs",
    ),
    "dataset.caption_tag_dropout_rate": ("Tag dropout", "caption_tag_dropout_rate", "Tag Dropout"),
    "dataset.token_warmup_min": ("Tags at the first step", "token_warmup_min"),
    "dataset.token_warmup_step": ("Steps until all tags", "token_warmup_step"),
    "dataset.flip_aug": ("Mirror at random", "flip_aug", "Random Flip"),
    "dataset.flip_safe": ("Words that prevent mirroring", ""),
    "dataset.random_crop": ("Crop at random", "random_crop", "Crop Jitter"),
    "dataset.color_aug": ("Change colours at random", "color_aug", "Random Hue"),
    "dataset.face_crop_aug_range": ("Crop around faces", "face_crop_aug_range"),
    "dataset.alpha_mask": ("Transparency as mask", "alpha_mask"),
    "dataset.resize_interpolation": ("Resizing method", "resize_interpolation"),
    "dataset.latents_from_npz": ("Latents cached by sd-scripts", ""),
    "method.kind": ("What is trained", ""),
    "method.train_text_encoder": (
        "Train the text encoder", "train_text_encoder", "Train Text Encoder",
    ),
    "method.text_encoder_lr": (
        "Text encoder's learning rate", "learning_rate_te", "Text Encoder Learning Rate",
    ),
    "method.text_encoder_lrs": (
        "Rates of both text encoders", "learning_rate_te1 learning_rate_te2",
    ),
    "method.text_encoder_layers": ("Text encoder's last layers", ""),
    "method.text_encoder_from_step": ("Text encoder from step", ""),
    "method.text_encoder_until_step": ("Text encoder until step", "", "Stop Training After"),
    "method.block_lrs": ("Learning rates by block", "block_lr"),
    "method.train_only": ("Train only these weights", ""),
    "method.widths": ("Widths of the hypernetwork", ""),
    "method.layers": ("Layers of the hypernetwork", ""),
    "method.activation": ("Activation", ""),
    "method.activate_output": ("Activate the output", ""),
    "method.layer_norm": ("Layer norm", ""),
    "method.dropout": ("Dropout", ""),
    "method.initialization": ("Initialization", ""),
    "method.start_from": ("Hypernetwork to start from", ""),
    "method.templates": ("Caption templates", ""),
    "method.template_file": ("Template file", ""),
    "method.info": ("Note in the file", ""),
    "optimizer.kind": ("Optimizer", "optimizer_type use_8bit_adam use_lion_optimizer", "Optimizer"),
    "optimizer.lr": ("Learning rate", "learning_rate", "Learning Rate"),
    "optimizer.betas": ("Betas", "", "Beta1", "Beta2"),
    "optimizer.eps": ("Epsilon", "", "EPS"),
    "optimizer.weight_decay": ("Weight decay", "", "Weight Decay"),
    "optimizer.start_decay": ("Pull towards the base model", ""),
    "optimizer.arguments": ("More arguments", "optimizer_args"),
    "schedule.kind": ("Learning-rate schedule", "lr_scheduler", "Learning Rate Scheduler"),
    "schedule.warmup_steps": ("Warm-up", "lr_warmup_steps", "Learning Rate Warmup Steps"),
    "schedule.decay_steps": ("Decay steps", "lr_decay_steps"),
    "schedule.cycles": ("Cycles", "lr_scheduler_num_cycles", "Learning Rate Cycles"),
    "schedule.power": ("Power", "lr_scheduler_power"),
    "schedule.timescale": ("Timescale", "lr_scheduler_timescale"),
    "schedule.min_lr_ratio": (
        "Fraction left at the end", "lr_scheduler_min_lr_ratio", "Learning Rate Min Factor",
    ),
    "schedule.rules": ("Rates by step", ""),
    "loss.kind": ("Loss", "loss_type", "MSE Strength", "MAE Strength"),
    "loss.min_snr_gamma": ("Min-SNR gamma", "min_snr_gamma", "Loss Weight Function", "Gamma"),
    "loss.soft_min_snr_gamma": ("Soft min-SNR gamma", ""),
    "loss.uncertainty": ("Learned noise weights", ""),
    "loss.diff_tuning": ("Diff-Tuning", ""),
    "loss.debiased": ("Debiased estimation", "debiased_estimation_loss", "Loss Weight Function"),
    "loss.v_loss_as_noise_loss": (
        "Velocity loss as noise loss", "scale_v_pred_loss_like_noise_pred",
    ),
    "loss.noise_loss_like_v": ("Noise loss like velocity loss", "v_pred_like_loss"),
    "loss.snr_schedule": ("SNR schedule", ""),
    "loss.outside_mask": ("Loss outside the mask", "", "Unmasked Weight"),
    "loss.mask_by_area": ("Masks by area", "", "Normalize Masked Area Loss"),
    "loss.huber_schedule": ("Schedule of the threshold", "huber_schedule"),
    "loss.huber_c": ("Threshold", "huber_c", "Huber Delta"),
    "loss.huber_scale": ("Scale of the threshold", "huber_scale"),
    "noise.offset": ("Noise offset", "noise_offset", "Offset Noise Weight"),
    "noise.offset_random_strength": ("Offset of random strength", "noise_offset_random_strength"),
    "noise.adaptive_scale": ("Adaptive offset", "adaptive_noise_scale"),
    "noise.multires_iterations": ("Multi-resolution noise", "multires_noise_iterations"),
    "noise.multires_discount": ("Discount of coarse noise", "multires_noise_discount"),
    "noise.immiscible": ("Immiscible noise", ""),
    "noise.input_perturbation": (
        "Input perturbation", "ip_noise_gamma", "Perturbation Noise Weight",
    ),
    "noise.input_perturbation_random_strength": (
        "Perturbation at random", "ip_noise_gamma_random_strength",
    ),
    "noise.zero_terminal_snr": (
        "Zero-terminal SNR", "zero_terminal_snr", "Rescale Noise Scheduler + V-pred",
    ),
    "timesteps.sampling": ("Timestep sampling", "", "Timestep Distribution"),
    "timesteps.first": ("First timestep", "min_timestep", "Min Noising Strength"),
    "timesteps.last": ("Last timestep", "max_timestep", "Max Noising Strength"),
    "timesteps.logit_mean": ("Mean of the distribution", "", "Noising Bias"),
    "timesteps.logit_std": ("Width of the distribution", "", "Noising Weight"),
    "training.max_steps": ("Optimizer steps", "max_train_steps"),
    "training.max_epochs": ("Epochs", "max_train_epochs", "Epochs"),
    "training.memory": ("Memory limit", ""),
    "training.fit_check": ("Memory check", ""),
    "training.batch_size": ("Batch size", "train_batch_size", "Batch Size"),
    "training.batch_by_pixels": ("Size batches by pixels", ""),
    "training.gradient_accumulation_steps": (
        "Gradient accumulation", "gradient_accumulation_steps", "Accumulation Steps",
    ),
    "training.mixed_precision": ("Mixed precision", "mixed_precision", "Train Data Type"),
    "training.weight_dtype": ("Precision of weights", "full_bf16 full_fp16", "UNet Data Type"),
    "training.weight_copies": ("16-bit copies of weights", ""),
    "training.rounding": ("Rounding of weights", "", "Stochastic Rounding"),
    "training.gradient_checkpointing": (
        "Gradient checkpointing", "gradient_checkpointing", "Gradient Checkpointing",
    ),
    "training.checkpointed_levels": ("Checkpointed resolutions", ""),
    "training.compile": ("Compile the U-Net", "torch_compile"),
    "training.float8": ("Multiply in float8", ""),
    "training.cuda_graphs": ("CUDA graphs", ""),
    "training.attention": ("Attention", "xformers sdpa mem_eff_attn", "Attention"),
    "training.tf32": ("TF32", ""),
    "training.deterministic": ("Deterministic", ""),
    "training.channels_last": ("Channels last", ""),
    "training.optimizer_in_backward": (
        "Optimizer in the backward pass",
        "fused_backward_pass fused_optimizer_groups",
        "Fused Back Pass",
    ),
    "training.offload_optimizer": ("Optimizer state in RAM", ""),
    "training.stream_weights": ("Stream weights from RAM", "", "Layer Offload Fraction"),
    "training.max_grad_norm": ("Maximum gradient norm", "max_grad_norm", "Clip Grad Norm"),
    "training.text_cache_mib": ("Memory for encoded text", ""),
    "training.cache_text_to_disk": (
        "Encode captions beforehand",
        "cache_text_encoder_outputs "
        "cache_text_encoder_outputs_to_disk",
    ),
    "training.text_from_npz": ("Text cached by sd-scripts", ""),
    "training.ema_decay": ("EMA decay", "", "EMA"),
    "training.ema_power": ("EMA power", ""),
    "training.ema_on_cpu": ("EMA in RAM", ""),
    "training.ema_every": ("Steps between EMA updates", "", "EMA Update Step Interval"),
    "training.posthoc_ema": ("EMA chosen afterwards", ""),
    "validation.image_dir": ("Validation image folder", ""),
    "validation.split": ("Held-out fraction", ""),
    "validation.every_steps": ("Steps between validations", "", "Validate after"),
    "validation.copies": ("What counts as a copy", ""),
    "validation.timesteps": ("Noise levels per image", ""),
    "validation.standard_error": ("Target standard error", ""),
    "validation.training_images": ("Training images measured", ""),
    "validation.by": ("Losses by tag, dataset or subset", ""),
    "validation.by_images": ("Minimum images per group", ""),
    "previews.hypernetworks": ("Preview hypernetworks", ""),
    "previews.prompts": ("Preview prompts", ""),
    "previews.prompt_file": ("Prompt file", "sample_prompts"),
    "previews.every_epochs": ("Epochs between previews", "sample_every_n_epochs"),
    "previews.at_first": ("Preview of the base model", "sample_at_first"),
    "previews.sampler": ("Sampler", "sample_sampler", "Sampler"),
    "previews.negative_prompt": ("Negative prompt", "", "Negative Prompt"),
    "previews.every_steps": ("Steps between previews", "sample_every_n_steps", "Sample After"),
    "previews.width": ("Width", ""),
    "previews.height": ("Height", ""),
    "previews.steps": ("Sampler steps", "", "Steps"),
    "previews.guidance_scale": ("Guidance", "", "cfg scale"),
    "previews.guidance_rescale": ("Guidance rescale", ""),
    "previews.seed": ("Preview seed", ""),
    "previews.emphasis": ("Emphasis in prompts", ""),
    "previews.features": ("Comparison network", ""),
    "previews.vae_tiling": ("Decode in tiles", ""),
    "saving.state_every_steps": ("Steps between states", "save_state", "Backup After"),
    "saving.state_every_minutes": ("Minutes between states", "", "Backup After"),
    "saving.keep_states": (
        "States kept", "save_last_n_steps_state save_last_n_epochs_state", "Rolling Backup Count",
    ),
    "saving.keep_final_state": (
        "Keep states at the end", "save_state_on_train_end", "Backup Before Save",
    ),
    "saving.model_every_steps": ("Steps between models", "save_every_n_steps", "Save Every"),
    "saving.model_every_epochs": (
        "Epochs between models", "save_every_n_epochs save_n_epoch_ratio", "Save Every",
    ),
    "saving.keep_models": ("Intermediate models kept", ""),
    "saving.keep_step_models": ("Models kept by steps", "save_last_n_steps"),
    "saving.keep_epoch_models": ("Models kept by epochs", "save_last_n_epochs"),
    "saving.best_model": ("Keep the best model", ""),
    "saving.average": ("Which weights are exported", ""),
    "saving.posthoc_every_steps": ("Steps between averages", ""),
    "saving.posthoc_dtype": ("Precision of averages", ""),
    "saving.merge_ratio": ("Fraction of trained weights", ""),
    "saving.model_dir": ("Folder for models", "", "Model Output Destination"),
    "saving.overwrite": ("Overwrite models", ""),
    "saving.format": ("Model format", "save_model_as use_safetensors", "Output Format"),
    "saving.name": ("Model name", "output_name", "Save Filename Prefix"),
    "saving.export_dtype": ("Precision of the model", "save_precision", "Output Data Type"),
    "saving.unet_dtype": ("Precision of its U-Net", ""),
    "saving.text_encoder_dtype": ("Precision of text encoders", ""),
    "saving.vae_dtype": ("Precision of its VAE", ""),
    "saving.publish": ("Details to publish", ""),
    "saving.metadata": (
        "Metadata of the model",
        "metadata_title metadata_author "
        "metadata_description metadata_license metadata_tags",
    ),
    "logging.every_steps": ("Steps between metrics", ""),
    "logging.image_losses": ("Image losses", ""),
    "logging.trackers": ("Trackers", "log_with logging_dir", "Tensorboard"),
    "logging.wandb_project": ("Project at Weights & Biases", "log_tracker_name"),
    "logging.wandb_name": ("Name at Weights & Biases", "wandb_run_name"),
}  # fmt: skip
