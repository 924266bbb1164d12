"""Train the tiny AutoencoderKL (factor 8, 4 latent channels) on the images; 26 CPU minutes.

Impasto's trainer does not train pixel autoencoders, so this loop stands alone: read the images into
memory, train on crops with Muon, and fold the latents' mean and standard deviation into
`quant_conv` and `post_quant_conv`, so that SD's scale factor of 0.18215 gives unit latents.

    python recipes/tiny/train_vae.py WORK/pictures WORK/vae --minutes 26
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from pytorch_optimizer import Muon

SCALING_FACTOR = 0.18215
SIZE = 128
CHROMA = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])


def read_pictures(folders: list[Path]) -> torch.Tensor:
    """Read all images, cropped or padded with their corner colour: [N, 3, 128, 128] uint8."""
    tiles = []
    for folder in folders:
        for path in sorted(p for p in folder.iterdir() if p.suffix in {".png", ".webp"}):
            image = Image.open(path).convert("RGB")
            scale = max(1.0, max(image.size) / 192)
            image = image.resize((round(image.width / scale), round(image.height / scale)))
            tile = Image.new("RGB", (SIZE, SIZE), image.getpixel((0, 0)))
            tile.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
            tiles.append(np.asarray(tile))
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()


def batch_of(pictures: torch.Tensor, count: int, crop: int, rng: torch.Generator) -> torch.Tensor:
    """Return random crops, half of them mirrored, in [-1, 1]: [count, 3, crop, crop]."""
    rows = torch.randint(len(pictures), (count,), generator=rng)
    spots = torch.randint(SIZE - crop + 1, (count, 2), generator=rng)
    crops = [
        pictures[row, :, y : y + crop, x : x + crop]
        for row, (y, x) in zip(rows.tolist(), spots.tolist(), strict=True)
    ]
    batch = torch.stack(crops).float() / 127.5 - 1
    return batch.flip(-1) if torch.rand((), generator=rng) < 0.5 else batch


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return squared and absolute error, plus errors of colour, of smaller sizes, and of edges."""
    error = output - target
    chroma = torch.einsum("ij,bjhw->bihw", CHROMA, error)[:, 1:]
    loss = error.square().mean() + 0.3 * error.abs().mean() + 0.5 * chroma.square().mean()
    for factor in (2, 4):
        loss = loss + 0.5 * F.avg_pool2d(error, factor).square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return loss + 0.3 * edges


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=SCALING_FACTOR,
    )


def build_optimizer(vae: AutoencoderKL, lr: float) -> Muon:
    matrices = [p for p in vae.parameters() if p.ndim >= 2]
    vectors = [p for p in vae.parameters() if p.ndim < 2]
    return Muon(
        [
            {"params": matrices, "lr": lr, "use_muon": True, "use_adjusted_lr": True},
            {"params": vectors, "lr": lr, "betas": (0.9, 0.98), "use_muon": False},
        ]
    )


@torch.no_grad()
def fold_statistics(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Make the scaled latents' mean 0 and standard deviation 1, channel by channel.

    z' = (z - mean) / (std * scaling_factor) goes into the last encoder convolution and its inverse
    into the first of the decoder. The log-variance rows become a constant: exp(-6), a small noise.
    """
    latents = torch.cat([encode_mean(vae, chunk) for chunk in pictures.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = 1 / (std * SCALING_FACTOR)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= gain[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    quant.weight[4:] = 0
    quant.bias[4:] = -6.0
    post.bias += torch.einsum("oi,i->o", post.weight[:, :, 0, 0], mean)
    post.weight /= gain[None, :, None, None]


def encode_mean(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    return vae.quant_conv(vae.encoder(pictures.float() / 127.5 - 1))[:, :4]


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of the round trip through the latents."""
    errors = []
    for chunk in pictures.split(32):
        target = chunk.float() / 127.5 - 1
        output = vae.decoder(vae.post_quant_conv(encode_mean(vae, chunk))).clamp(-1, 1)
        errors.append((output - target).square().mean((1, 2, 3)))
    return -10 * math.log10(torch.cat(errors).mean().item() / 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    pictures = read_pictures([options.pictures / name for name in ("base", "demo", "heldout")])
    styled = read_pictures([options.pictures / name for name in ("demo", "heldout")])
    pool = torch.cat([pictures, styled.repeat(6, 1, 1, 1)])  # a quarter of the pool is the style
    vae = build_vae().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(vae, options.lr)
    options.out.mkdir(parents=True, exist_ok=True)
    began, step, budget_s = time.perf_counter(), 0, options.minutes * 60
    with (options.out / "loss.csv").open("w", newline="", encoding="utf-8") as file:
        log = csv.writer(file)
        log.writerow(["step", "minutes", "loss"])
        while (elapsed := time.perf_counter() - began) < budget_s:
            progress = elapsed / budget_s
            decay = min(1.0, step / 50) * min(1.0, max(0.02, 2 * (1 - progress)))
            for group in optimizer.param_groups:
                group["lr"] = options.lr * decay
            crop, count = (64, 16) if progress < 0.75 else (128, 5)
            target = batch_of(pool, count, crop, rng).to(memory_format=torch.channels_last)
            z = vae.quant_conv(vae.encoder(target))[:, :4]
            noise = torch.randn(z.shape, generator=rng) * 0.05
            output = vae.decoder(vae.post_quant_conv(z + noise))
            loss = reconstruction_loss(output, target) + 2e-3 * z.square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 25 == 0:
                log.writerow([step, f"{elapsed / 60:.2f}", f"{loss.item():.5f}"])
                file.flush()
    fold_statistics(vae, pictures[::3])
    print(
        f"{step} steps; PSNR base {psnr(vae, pictures[:684]):.2f} dB, style {psnr(vae, styled):.2f}"
    )
    vae.to(memory_format=torch.contiguous_format).save_pretrained(options.out)


if __name__ == "__main__":
    main()
