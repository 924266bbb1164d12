"""The table of all flags of sd-scripts' `fine_tune.py`, `train_db.py` and `sdxl_train.py`.

A flag has the same meaning here, and sets a setting (`to`) or has a rule in `translate.py`; or it
is accepted without effect, with a notice (`notice`); or it is rejected with what to use instead
(`refusal`). Differences from sd-scripts are in `differs`. A flag that only some of the commands
have, or that means something else in others, lists its commands (`only`). The flags, types and
defaults are those of kohya-ss/sd-scripts at commit 48d368fa (`library/train_util.py`,
`fine_tune.py`, `train_db.py`, `sdxl_train.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from impasto.sdscripts.flag import FINE_TUNE, SDXL_TRAIN, TRAIN_DB, Flag, Kind, Script
from impasto.sdscripts.schedule_flags import NEAREST_SCHEDULES

_OF_SD: tuple[Script, ...] = (FINE_TUNE, TRAIN_DB)
_OF_DREAMBOOTH: tuple[Script, ...] = (TRAIN_DB, SDXL_TRAIN)
_OF_METADATA: tuple[Script, ...] = (FINE_TUNE, SDXL_TRAIN)


def _same(kind: Kind, *flags: tuple[str, Any, str]) -> list[Flag]:
    return [Flag(name, kind, default, to) for name, default, to in flags]


def _noticed(kind: Kind, notice: str, *names: str) -> list[Flag]:
    return [Flag(name, kind, notice=notice) for name in names]


def _refused(kind: Kind, refusal: str, *names: str) -> list[Flag]:
    return [Flag(name, kind, refusal=refusal) for name in names]


def _only(scripts: tuple[Script, ...], *flags: Flag) -> list[Flag]:
    return [replace(flag, only=scripts) for flag in flags]


_ATTENTION = "PyTorch's own attention is used, which needs as little time and memory"
_MODEL = [
    *_same("text", ("pretrained_model_name_or_path", None, "model.path"),
           ("vae", None, "model.vae")),
    *_only(_OF_SD, Flag("clip_skip", "int", to="model.clip_skip", differs="without it, the layer "
           "recorded in the base model's file is used, if any; in sd-scripts the last layer"),
           Flag("v2")),
    *_only(
        (SDXL_TRAIN,),
        Flag("clip_skip", "int", notice="it has no effect in sd-scripts' sdxl_train.py, and none "
             "here: SDXL uses the penultimate layer of both text encoders"),
        Flag("v2", refusal="sdxl_train.py trains SDXL; fine_tune.py trains SD 2"),
        Flag("disable_mmap_load_safetensors", notice="tensors are read into memory, and files "
             "are never memory-mapped"),
        Flag("cache_text_encoder_outputs", to="training.cache_text_to_disk"),
        Flag("cache_text_encoder_outputs_to_disk", to="training.cache_text_to_disk"),
    ),
    Flag("v_parameterization"),
    Flag("max_token_length", "int", choices=("75", "150", "225")),
    *_only(_OF_METADATA, Flag("train_text_encoder", to="method.train_text_encoder")),
    *_only(
        (TRAIN_DB,),
        Flag("stop_text_encoder_training", "int"),
        Flag("no_token_padding", refusal="the U-Nets of Stable Diffusion are trained and sampled "
             "with texts that are padded to 77 tokens"),
    ),
    Flag("weighted_captions"),
    *_noticed("text", "the tokenizer ships with Impasto and is never downloaded",
              "tokenizer_cache_dir"),
    *_noticed("flag", "the VAE encodes in float32 in any case", "no_half_vae"),
    *_noticed("flag", "models are read tensor by tensor and need no second copy in memory",
              "lowram"),
    *_noticed("flag", "the VRAM cache is never emptied between batches of latents", "highvram"),
    *_noticed(
        "flag",
        _ATTENTION, "xformers", "sdpa", "mem_eff_attn",
    ),
    *_only(_OF_METADATA, *_noticed("flag", _ATTENTION, "diffusers_xformers")),
]  # fmt: skip

_DATASET = [
    Flag("dataset_config", "text"),
    Flag("train_data_dir", "text"),
    *_only(_OF_METADATA, Flag("in_json", "text"),
           *_same("int", ("dataset_repeats", None, "dataset.num_repeats"))),
    Flag("resolution", "text"),
    *_same(
        "int",
        ("train_batch_size", 1, "training.batch_size"),
        ("min_bucket_reso", 256, "dataset.min_bucket_reso"),
        ("max_bucket_reso", 1024, "dataset.max_bucket_reso"),
        ("bucket_reso_steps", 64, "dataset.bucket_reso_steps"),
        ("keep_tokens", 0, "dataset.keep_tokens"),
        ("caption_dropout_every_n_epochs", 0, "dataset.caption_dropout_every_n_epochs"),
        ("token_warmup_min", 1, "dataset.token_warmup_min"),
        ("vae_batch_size", 1, "dataset.vae_batch_size"),
    ),
    *_same(
        "float",
        ("caption_dropout_rate", 0.0, "dataset.caption_dropout_rate"),
        ("caption_tag_dropout_rate", 0.0, "dataset.caption_tag_dropout_rate"),
        ("token_warmup_step", 0.0, "dataset.token_warmup_step"),
    ),
    *_same(
        "text",
        ("caption_separator", ",", "dataset.caption_separator"),
        ("keep_tokens_separator", "", "dataset.keep_tokens_separator"),
        ("secondary_separator", None, "dataset.secondary_separator"),
        ("caption_prefix", None, "dataset.caption_prefix"),
        ("caption_suffix", None, "dataset.caption_suffix"),
    ),
    *(
        Flag(name, to=f"dataset.{name}")
        for name in (
            "enable_bucket", "bucket_no_upscale", "shuffle_caption", "enable_wildcard",
            "color_aug", "flip_aug", "random_crop",
        )
    ),
    *_only((TRAIN_DB,), Flag("alpha_mask", to="dataset.alpha_mask")),
    *_only(_OF_METADATA, Flag("alpha_mask", to="dataset.alpha_mask", differs="it always weights "
           "the loss; in sd-scripts never in fine_tune.py, and in sdxl_train.py only with "
           "--masked_loss or another flag that weights it, such as --min_snr_gamma")),
    Flag("resize_interpolation", "text", None, "dataset.resize_interpolation",
         differs="without it Lanczos; in sd-scripts area for images that shrink"),
    Flag("face_crop_aug_range", "text"),
    *_noticed("flag", "latents are always cached on disk, found by content and checked",
              "cache_latents", "cache_latents_to_disk", "skip_cache_check"),
    *_noticed("flag", "sizes and captions are always cached", "cache_info"),
    *_only(
        (FINE_TUNE,),
        *_noticed("text", "captions are read from metadata; the caption files of a folder of "
                  "images are .caption and .txt, or those of the dataset configuration",
                  "caption_extension", "caption_extention"),
    ),
    *_only(
        _OF_DREAMBOOTH,
        *(
            Flag(name, "text", to="dataset.caption_extension", differs="without it .txt is read as "
                 "well as .caption, with a notice; in sd-scripts only .caption")
            for name in ("caption_extension", "caption_extention")
        ),
        Flag("reg_data_dir", "text"),
        Flag("conditioning_data_dir", "text", differs="masks for --train_data_dir; in sd-scripts "
             "it is ignored, and only subsets of a dataset configuration have masks"),
        Flag("masked_loss", differs="masks of --conditioning_data_dir count too"),
    ),
    *_only((TRAIN_DB,), Flag("prior_loss_weight", "float", 1.0)),
    *_noticed("int", "images are decoded by one process per CPU, 8 at most, and by none for a few "
              "images; dataset.decode_workers sets the number", "max_data_loader_n_workers"),
    *_noticed("flag", "there are no workers between epochs", "persistent_data_loader_workers"),
    *_refused("flag", "`impasto dataset plan`, `captions` and `report` show the dataset",
              "debug_dataset"),
    *_refused("text", "classes are not imported by name from the command line", "dataset_class"),
]  # fmt: skip

_BY_CHANCE = "weights are rounded stochastically; in sd-scripts to the nearest"
_LOOP = [
    *_same("int", ("max_train_steps", 1600, "training.max_steps"),
           ("max_train_epochs", None, "training.max_epochs"),
           ("gradient_accumulation_steps", 1, "training.gradient_accumulation_steps"),
           ("min_timestep", None, "timesteps.first"), ("max_timestep", None, "timesteps.last")),
    *_same("float", ("max_grad_norm", 1.0, "training.max_grad_norm")),
    Flag("seed", "int"),
    Flag("gradient_checkpointing", to="training.gradient_checkpointing"),
    Flag("mixed_precision", "text", "no", choices=("no", "fp16", "bf16")),
    Flag("full_fp16", differs=_BY_CHANCE),
    *_only(_OF_SD, Flag("full_bf16", differs="weights have 16 bits; in sd-scripts it is ignored, "
                        "and they have 32")),
    *_only((SDXL_TRAIN,), Flag("full_bf16", differs=f"{_BY_CHANCE}, except Adafactor's with "
                               "--fused_backward_pass")),
    *_refused("flag", "trained weights have 16 bits at least; --full_bf16 and an 8-bit "
              "optimizer save memory", "fp8_base"),
    Flag("torch_compile"),
    *_noticed("text", "the U-Net is always compiled by inductor, PyTorch's own compiler",
              "dynamo_backend"),
    Flag("config_file", "text"),
    *_refused("flag", "`impasto import-command` writes the settings of a command line",
              "output_config"),
]  # fmt: skip

_OF_PROCESSES = ("a whole number is optimizer steps on any number of processes; in sd-scripts it "
                 "is divided by the number of processes")  # fmt: skip
_OPTIMIZER = [
    Flag("optimizer_type", "text", "", differs="Adafactor always uses --learning_rate as its "
         "rate; DAdaptAdam replaces DAdaptation and DAdaptAdamPreprint, and "
         "pytorch-optimizer's DAdaptAdan replaces DAdaptAdan and DAdaptAdanIP"),
    Flag("use_8bit_adam"),
    Flag("use_lion_optimizer"),
    *_same("float", ("learning_rate", 2e-6, "optimizer.lr")),
    *_only(_OF_SD, *_same("float", ("learning_rate_te", None, "method.text_encoder_lr"))),
    *_only(
        (SDXL_TRAIN,),
        *_same("float", ("learning_rate_te1", None, "method.text_encoder_lrs.text_encoder"),
               ("learning_rate_te2", None, "method.text_encoder_lrs.text_encoder_2")),
        Flag("block_lr", "text"),
        Flag("fused_backward_pass", differs="works with optimizers other than Adafactor too, and "
             "clips the norm of the whole gradient, not of each weight's"),
        Flag("fused_optimizer_groups", "int", differs="the same as --fused_backward_pass, whatever "
             "the number; no effect with gradient accumulation"),
    ),
    Flag("optimizer_args", "list", differs="relative_step=True and warmup_init=True of Adafactor "
         "are rejected, and so are arguments that the optimizer here does not use"),
    Flag("lr_scheduler", "text", "constant", differs="adafactor is a constant rate"),
    Flag("lr_scheduler_args", "list", differs="step_rules of piecewise_constant, and min_lr or "
         "min_lr_rate of cosine_with_min_lr; others are rejected. Steps in step_rules are "
         "optimizer steps on any number of processes"),
    Flag("lr_scheduler_type", "text", nearest=NEAREST_SCHEDULES, refusal="rates depend only on the "
         "step here, so that runs are resumed exactly; --lr_scheduler has the usual shapes"),
    Flag("lr_warmup_steps", "text", "0", differs=_OF_PROCESSES),
    Flag("lr_decay_steps", "text", "0", differs=_OF_PROCESSES),
    Flag("lr_scheduler_num_cycles", "int", 1),
    Flag("lr_scheduler_power", "float", 1.0),
    Flag("lr_scheduler_timescale", "int", differs=_OF_PROCESSES),
    Flag("lr_scheduler_min_lr_ratio", "float"),
    *_only(
        _OF_SD,
        *_noticed("flag", "it has no effect in sd-scripts' fine_tune.py and train_db.py, and "
                  "none here; the nearest setting is training.optimizer_in_backward = "
                  "\"exact\"",
                  "fused_backward_pass"),
    ),
]  # fmt: skip

_LOSS = [
    *_same("float", ("noise_offset", None, "noise.offset"),
           ("adaptive_noise_scale", None, "noise.adaptive_scale"),
           ("multires_noise_discount", 0.3, "noise.multires_discount"),
           ("ip_noise_gamma", None, "noise.input_perturbation"),
           ("min_snr_gamma", None, "loss.min_snr_gamma"),
           ("huber_c", 0.1, "loss.huber_c"), ("huber_scale", 1.0, "loss.huber_scale")),
    Flag("multires_noise_iterations", "int", to="noise.multires_iterations", differs="the noise of "
         "each image is scaled to a standard deviation of 1; in sd-scripts that of the batch"),
    *_only((SDXL_TRAIN,), *_same("float", ("v_pred_like_loss", None, "loss.noise_loss_like_v"))),
    *_only(_OF_SD, *_noticed("float", "it has no effect in sd-scripts' fine_tune.py and "
                             "train_db.py, and none here; the setting is loss.noise_loss_like_v",
                             "v_pred_like_loss")),
    Flag("noise_offset_random_strength", to="noise.offset_random_strength"),
    Flag("ip_noise_gamma_random_strength", to="noise.input_perturbation_random_strength"),
    Flag("zero_terminal_snr", to="noise.zero_terminal_snr"),
    Flag("scale_v_pred_loss_like_noise_pred", to="loss.v_loss_as_noise_loss"),
    Flag("debiased_estimation_loss", to="loss.debiased"),
    Flag("loss_type", "text", "l2", "loss.kind", choices=("l1", "l2", "huber", "smooth_l1")),
    Flag("huber_schedule", "text", "snr", "loss.huber_schedule",
         choices=("constant", "exponential", "snr")),
]  # fmt: skip

_METADATA = ("author", "description", "license", "tags", "usage_hint", "thumbnail", "merged_from",
             "trigger_phrase")  # fmt: skip
_HUB = "nothing is uploaded during training; `impasto publish` uploads the model in --output_dir"
_SAVING = [
    Flag("output_dir", "text"),
    Flag("output_name", "text"),
    Flag("save_model_as", "text",
         choices=("ckpt", "safetensors", "diffusers", "diffusers_safetensors"),
         differs="without it, a model from a .safetensors file is saved as .safetensors; in "
         "sd-scripts as .ckpt, unless --use_safetensors is given"),
    Flag("use_safetensors"),
    Flag("save_precision", "text", choices=("float", "fp16", "bf16")),
    *_same("int", ("save_every_n_epochs", None, "saving.model_every_epochs"),
           ("save_every_n_steps", None, "saving.model_every_steps")),
    Flag("save_n_epoch_ratio", "int", differs="it needs --max_train_epochs; --save_every_n_epochs "
         "works with --max_train_steps too"),
    Flag("save_last_n_epochs", "int"),
    Flag("save_last_n_steps", "int"),
    *_noticed("flag", "states are always saved, every 500 steps and at the end, in the run "
              "directory", "save_state", "save_state_on_train_end"),
    *_noticed("int", "the two newest states are kept", "save_last_n_epochs_state",
              "save_last_n_steps_state"),
    Flag("resume", "text", differs="the folder of a run of Impasto, which continues exactly; "
         "states saved by sd-scripts are rejected"),
    *_refused("text", _HUB, "huggingface_repo_id", "huggingface_repo_type",
              "huggingface_path_in_repo", "huggingface_token", "huggingface_repo_visibility"),
    *_refused("flag", _HUB, "async_upload", "save_state_to_huggingface", "resume_from_huggingface"),
    *_same("text", ("metadata_title", None, ""),
           *((f"metadata_{key}", None, f"saving.metadata.{key}") for key in _METADATA)),
    *_refused("text", "the modelspec standard has no such key for a whole model",
              "metadata_preprocessor", "metadata_is_negative_embedding"),
]  # fmt: skip

_SAMPLING = [
    *_same("int", ("sample_every_n_steps", None, "previews.every_steps"),
           ("sample_every_n_epochs", None, "previews.every_epochs")),
    Flag("sample_at_first", differs="previews are drawn at the end too"),
    Flag("sample_prompts", "text", None, "previews.prompt_file"),
    Flag("sample_sampler", "text", "ddim"),
]  # fmt: skip

_METRICS = "metrics go to metrics.jsonl and report.html in the run directory"
_LOGGING = [
    Flag("logging_dir", "text", differs="it turns TensorBoard on; its files are in the "
         "folder tensorboard of the run, and nothing is written to the given folder"),
    Flag("log_with", "text", choices=("tensorboard", "wandb", "all")),
    Flag("log_tracker_name", "text", differs="it sets only the project of Weights & Biases; "
         "TensorBoard's files are always in the folder tensorboard of the run"),
    Flag("wandb_run_name", "text"),
    *_noticed("text", _METRICS, "log_prefix", "log_tracker_config"),
    *_noticed("text", "it is passed to Weights & Biases for this run and written nowhere; with "
              "WANDB_API_KEY or `wandb login`, other users of the machine cannot see the key",
              "wandb_api_key"),
    *_noticed("flag", "settings are always written to config.toml in the run directory",
              "log_config"),
    *_noticed("text", "messages go to the terminal", "console_log_level", "console_log_file"),
    *_noticed("flag", "messages are simple", "console_log_simple"),
]  # fmt: skip

_DEEPSPEED = (
    "set it in accelerate config (distributed_type DEEPSPEED, zero_stage 1 or 2, or FSDP), and "
    "start the run with accelerate launch"
)
_DISTRIBUTED = [
    *_noticed("int", "processes wait for each other without a timeout", "ddp_timeout"),
    *_noticed("flag", "gradients are always views", "ddp_gradient_as_bucket_view"),
    *_noticed("flag", "it has no advantage here", "ddp_static_graph"),
    *_refused("flag", _DEEPSPEED, "deepspeed", "zero3_init_flag", "zero3_save_16bit_model",
              "fp16_master_weights_and_gradients"),
    *_refused("int", _DEEPSPEED, "zero_stage"),
    *_refused("text", _DEEPSPEED, "offload_optimizer_device", "offload_optimizer_nvme_path",
              "offload_param_device", "offload_param_nvme_path"),
]  # fmt: skip

_HYPERNETWORK = (
    "sd-scripts has no hypernetworks in fine_tune.py any more. Impasto trains them with "
    '`method.kind = "hypernetwork"` in the settings of `impasto train`; `impasto import-command` '
    "writes such settings from a command line without this flag"
)
_GONE = _only(
    (FINE_TUNE,), *_refused("text", _HYPERNETWORK, "hypernetwork_module", "hypernetwork_weights")
)

ROWS: tuple[Flag, ...] = (
    *_MODEL, *_DATASET, *_LOOP, *_OPTIMIZER, *_LOSS, *_SAVING, *_SAMPLING, *_LOGGING,
    *_DISTRIBUTED, *_GONE,
)  # fmt: skip


@functools.cache
def flags_of(script: Script) -> Mapping[str, Flag]:
    """Return name without dashes -> flag, for a command."""
    return MappingProxyType({row.name: row for row in ROWS if script in row.only})
