r"""Train the tiny base model's U-Net and text encoder from random weights with Impasto's trainer.

The components that so small a model needs are passed in as overrides; README.md beside this file
gives the reason for each.

    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 \
        recipes/tiny/train_base.py WORK/pictures/base WORK/vae WORK/base --steps 1250
    ... the same with WORK/base2 --from-model WORK/base/export --lr 8e-4 --steps 1200
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pytorch_optimizer import Muon
from safetensors.torch import load_file, save_file
from torch import Tensor

from impasto.config.load import build_run_config
from impasto.config.optimizer import OptimizerConfig
from impasto.data.scanning.scan import scan_folder
from impasto.diffusion.prediction import Prediction
from impasto.diffusion.randomness import PerSampleRandomness
from impasto.diffusion.schedule import NoiseSchedule
from impasto.models.families import SD1
from impasto.models.networks.loading import load_base_model
from impasto.models.trainable import TrainedModule
from impasto.models.writing.architectures import ARCHITECTURES, write_random_model
from impasto.training.builders.overrides import Overrides
from impasto.training.events import SilentEvents
from impasto.training.optim.rounding import Rounding
from impasto.training.trainer import resume, train

WARMUP_STEPS, LEVEL_SHARE, LAST_FACTOR = 60, 0.35, 0.02
PREVIEWS = ("a cat face", "a banana", "a red apple and a house", "an owl", "a sailboat", "a rose")


def leaning_timesteps(draws: PerSampleRandomness, num_timesteps: int) -> Int[Tensor, "b"]:
    """Draw even samples' timesteps from the whole range, odd ones' from the upper 40 percent.

    Both are stratified. At 16x16 latents and with few images, x_t alone identifies the image below
    about t = 900. The caption matters only above that, so half of all samples go there.
    """
    pairs = max(1, math.ceil(draws.samples_in_step / 2))
    place = (draws.ranks // 2 + draws.uniform("timestep")) / pairs
    low = torch.where(draws.ranks % 2 == 0, 0.0, 0.6)
    return ((low + (1 - low) * place).clamp(max=1 - 1e-9) * num_timesteps).long()


def stratified_timesteps(draws: PerSampleRandomness, num_timesteps: int) -> Int[Tensor, "b"]:
    """Draw timesteps evenly over the whole range, stratified over a step: for the second stage."""
    place = (draws.ranks + draws.uniform("timestep")) / draws.samples_in_step
    return (place.clamp(max=1 - 1e-9) * num_timesteps).long()


def velocity_weight(
    t: Int[Tensor, "b"],
    schedule: NoiseSchedule,
    prediction: Prediction,  # noqa: ARG001
) -> Float[Tensor, "b"]:
    """Return min(1 / abar_t, 40): a velocity predictor's loss, for one that predicts the noise.

    |v - v'|^2 = |eps - eps'|^2 / abar_t follows from the definitions in arXiv:2202.00512.
    """
    return (1 / schedule.alphas_cumprod[t]).clamp(max=40)


def build_muon(
    parts: Sequence[TrainedModule],
    config: OptimizerConfig,
    rounding: Rounding | None = None,  # noqa: ARG001
) -> torch.optim.Optimizer:
    """Build Muon for hidden matrices and kernels, AdamW for the rest, token rows twice as fast."""
    hidden, rest, tokens = [], [], []
    for part in parts:
        for name, parameter in part.parameters().items():
            if "token_embedding" in name:
                tokens.append(parameter)
            elif (
                parameter.ndim < 2 or "conv_in" in name or "conv_out" in name or "embedding" in name
            ):
                rest.append(parameter)
            else:
                hidden.append(parameter)
    adam: dict[str, Any] = {"use_muon": False, "betas": (0.9, 0.98), "eps": 1e-8}
    return Muon(
        [
            {"params": hidden, "lr": config.lr, "use_muon": True, "use_adjusted_lr": True},
            {"params": rest, "lr": config.lr, **adam},
            {"params": tokens, "lr": 2 * config.lr, **adam},
        ]
    )


def level_then_cosine(step: int, total: int) -> float:
    """Return the rate's factor: a short warm-up, a constant third, a cosine down to 0.02."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    level_end = LEVEL_SHARE * total
    if step < level_end:
        return 1.0
    progress = (step - level_end) / max(1, total - level_end)
    return LAST_FACTOR + (1 - LAST_FACTOR) * 0.5 * (1 + math.cos(math.pi * progress))


def start_text_encoder(tensors: dict[str, Tensor], heads: int) -> None:
    """Initialize the text encoder: padding positions summarise the caption, as in CLIP.

    Tokens get a standard deviation of 0.5, values and outputs are enlarged, and the keys of padding
    start with a low attention logit (about -3).
    """
    names = {name.removeprefix("text_model."): name for name in tensors}
    tokens = tensors[names["embeddings.token_embedding.weight"]]
    tokens.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    tokens[49407] *= 0.4
    padding = torch.nn.functional.normalize(tokens[49407], dim=0)
    width = len(padding)
    per_head = torch.ones(width) / math.sqrt(width // heads)
    for layer in range(2):
        attention = f"encoder.layers.{layer}.self_attn"
        tensors[names[f"{attention}.v_proj.weight"]] *= 2
        tensors[names[f"{attention}.out_proj.weight"]] *= 3
        tensors[names[f"{attention}.k_proj.weight"]] -= 1.5 * torch.outer(per_head, padding)
        tensors[names[f"{attention}.q_proj.bias"]] += per_head


def start_unet(tensors: dict[str, Tensor]) -> None:
    """Initialize the U-Net to predict eps = x_t, which is nearly right at high noise.

    silu(x) - silu(-x) = x: conv_in puts x and -x into eight channels, the last skip connection and
    its shortcut carry them to the end, conv_out takes the difference.
    """
    channels = tensors["conv_in.weight"].shape[0]
    last = max(
        n for n in tensors if n.startswith("up_blocks.2.resnets.") and "shortcut.weight" in n
    )
    resnet = last.removesuffix("conv_shortcut.weight")
    shortcut = tensors[last]
    tensors["conv_in.weight"][:8] = 0
    tensors["conv_in.bias"][:8] = 0
    shortcut[:8] = 0
    tensors[f"{resnet}conv_shortcut.bias"][:8] = 0
    tensors[f"{resnet}conv2.weight"][:8] = 0
    tensors[f"{resnet}conv2.bias"][:8] = 0
    tensors["conv_out.weight"].normal_(std=0.01, generator=torch.Generator().manual_seed(2))
    tensors["conv_out.bias"].zero_()
    for channel in range(4):
        tensors["conv_in.weight"][channel, channel, 1, 1] = 1
        tensors["conv_in.weight"][channel + 4, channel, 1, 1] = -1
        shortcut[channel, shortcut.shape[1] - channels + channel] = 1
        shortcut[channel + 4, shortcut.shape[1] - channels + channel + 4] = 1
        tensors["conv_out.weight"][channel, channel, 1, 1] = 1
        tensors["conv_out.weight"][channel, channel + 4, 1, 1] = -1


def write_start(vae: Path, target: Path) -> None:
    """Write a random tiny model with the trained VAE and the initial weights above."""
    write_random_model(ARCHITECTURES["tiny"], target, seed=0, dtype=torch.float32)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copyfile(vae / name, target / "vae" / name)
    for file, change in (
        (SD1.unet.file, start_unet),
        (SD1.text_encoders[0].file, lambda tensors: start_text_encoder(tensors, heads=4)),
    ):
        tensors = load_file(target / file)
        change(tensors)
        save_file(tensors, target / file, metadata={"format": "pt"})


def merge_unused_tokens(model: Path, captions: Sequence[str]) -> int:
    """Give all unused token rows one common vector, which compresses to almost nothing."""
    tokenizer = load_base_model(model).tokenizers[SD1.text_encoders[0].name]
    used = sorted({i for ids in tokenizer(list(captions)).input_ids for i in ids})
    tensors = load_file(model / SD1.text_encoders[0].file)
    rows = tensors[next(name for name in tensors if "token_embedding" in name)]
    common = rows[used].float().mean(0).to(rows.dtype)
    kept = rows[used].clone()
    rows[:] = common
    rows[used] = kept
    save_file(tensors, model / SD1.text_encoders[0].file, metadata={"format": "pt"})
    return len(used)


class Log(SilentEvents):
    """Print each line of metrics."""

    def measured(self, record: Any) -> None:
        """Print at once, so that a log file can be followed."""
        print(record, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("vae", type=Path)
    parser.add_argument("out", type=Path, help="run directory; the model is in its export folder")
    parser.add_argument("--steps", type=int, default=1250)
    parser.add_argument("--batch-size", type=int, default=24, help="per process")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--from-model", type=Path, help="second stage: the first stage's model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = options.from_model or options.out.with_name(options.out.name + "-start")
    timesteps = stratified_timesteps if options.from_model else leaning_timesteps
    ingredients = Overrides(
        timesteps=timesteps,
        loss_weight=velocity_weight,
        build_optimizer=build_muon,
        lr_schedule=level_then_cosine,
    )
    if options.resume:
        run = resume(options.out, Log(), ingredients)
    else:
        if int(os.environ.get("RANK", 0)) == 0 and not start.exists():
            write_start(options.vae, start)
        config = build_run_config(
            {
                "output_dir": str(options.out),
                "seed": 1 if options.from_model else 0,
                "model": {"path": str(start)},
                "dataset": {
                    "image_dir": str(options.pictures),
                    "resolution": 136,
                    "min_bucket_reso": 64,
                    "max_bucket_reso": 256,
                    "bucket_reso_steps": 32,
                    "caption_dropout_rate": 0.1,
                    "vae_batch_size": 16,
                    "cache_dir": str(options.out.parent / "base-cache"),
                },
                "method": {"train_text_encoder": True},
                "optimizer": {"lr": options.lr},
                "training": {
                    "max_steps": options.steps,
                    "batch_size": options.batch_size,
                    "max_grad_norm": 2.0,
                    "ema_decay": 0.995,
                    "channels_last": True,
                },
                "previews": {
                    "prompts": list(PREVIEWS),
                    "width": 128,
                    "height": 128,
                    "guidance_scale": 2.0,
                    "every_steps": 200,
                },
                "saving": {
                    "state_every_steps": 100,
                    "keep_states": 1,
                    "export_dtype": "fp16",
                    "vae_dtype": "fp16",
                    "format": "diffusers",
                },
                "logging": {"every_steps": 20},
            },
            source="train_base.py",
        )
        run = train(config, Log(), ingredients)
    if int(os.environ.get("RANK", 0)) == 0:
        words = [record.caption_text for record in scan_folder(options.pictures).records]
        model = run.export / options.out.name
        print("token rows in use:", merge_unused_tokens(model, words))


if __name__ == "__main__":
    main()
