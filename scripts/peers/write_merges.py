"""Write the results of `impasto merge` and `extract-lora` for small models with real structure."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.models.writing.architectures import ARCHITECTURES, Architecture, write_random_model

SD1_BLOCKS = (12, 1, 12)
INPUT, MIDDLE, OUTPUT = 0.2, 0.5, 0.8
RATIOS = {"weighted": 0.3, "added": 0.7, "trained": 0.6, "lora": 0.7}
OF_LORAS = (
    "transformer_blocks.", "proj_in.", "proj_out.", "in_layers.2.", "out_layers.3.",
    "emb_layers.1.", "skip_connection.", ".op.", "output_blocks.2.1.conv", "output_blocks.2.2.conv",
    "output_blocks.5.2.conv", "output_blocks.8.2.conv", "_proj.weight", "mlp.fc",
    "attn.in_proj_weight", "mlp.c_",
)  # fmt: skip
"""Parts of tensor names that mark the layers of a LoRA, in the naming of single files."""


def main() -> None:
    folder = Path(sys.argv[1])
    files = {}
    for name, seed in (("base", 0), ("other", 1), ("third", 2)):
        files[name] = model(small_sd1(), folder / name, seed)
    # the third is near the second, as if trained from it
    near(files["other"], files["third"])
    merge(folder, "weighted", ["base", "other"])
    merge(folder, "added", ["base", "other", "third"], "--formula", "add-difference")
    merge(folder, "trained", ["base", "other", "third"], "--formula", "train-difference")
    numbers = (INPUT,) * SD1_BLOCKS[0] + (MIDDLE,) * SD1_BLOCKS[1] + (OUTPUT,) * SD1_BLOCKS[2]
    blocks = ",".join(map(str, (0, *numbers)))
    sources = [folder / "base.safetensors", folder / "other.safetensors"]
    impasto_does("merge", *sources, "--blocks", blocks, "--out", folder / "blocks.safetensors")
    for start, architecture in (("", small_sd1()), ("xl-", small_sdxl())):
        base = model(architecture, folder / f"{start}base", 0) if start else files["base"]
        tuned = moved(base, folder / f"{start}tuned.safetensors")
        lora = ("extract-lora", base, tuned, "--dtype", "fp32", "--out")
        impasto_does(*lora, folder / f"{start}full-lora.safetensors", "--full-rank")
        impasto_does(*lora, folder / f"{start}lora.safetensors", "--rank", 8, "--conv-rank", 4)
        added = f"{folder / f'{start}lora.safetensors'}:{RATIOS['lora']}"
        target = folder / f"{start}with-lora.safetensors"
        impasto_does("merge", base, "--lora", added, "--out", target)
    (folder / "done").touch()


def small_sd1() -> Architecture:
    """Return an architecture with all blocks of Stable Diffusion 1, of small width."""
    unet, vae, text = ARCHITECTURES["sd1"].configs
    return replace(
        ARCHITECTURES["sd1"],
        configs=(
            {**unet, "block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 64},
            {**vae, "block_out_channels": [32, 32, 32, 32]},
            {**text, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
             "projection_dim": 64, "num_attention_heads": 4},
        ),
    )  # fmt: skip


def small_sdxl() -> Architecture:
    """Return an architecture with all blocks of SDXL, of small width."""
    unet, vae, *texts = ARCHITECTURES["sdxl"].configs
    small = (
        {**text, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
         "projection_dim": 64, "num_attention_heads": 4}
        for text in texts
    )  # fmt: skip
    return replace(
        ARCHITECTURES["sdxl"],
        configs=(
            {**unet, "block_out_channels": [32, 64, 64], "cross_attention_dim": 128,
             "attention_head_dim": [2, 4, 4], "projection_class_embeddings_input_dim": 64 + 1536},
            {**vae, "block_out_channels": [32, 32, 32, 32]},
            *small,
        ),
    )  # fmt: skip


def model(architecture: Architecture, folder: Path, seed: int) -> Path:
    write_random_model(architecture, folder, seed=seed, dtype=torch.float32)
    impasto_does("convert", folder, folder.with_suffix(".safetensors"))
    return folder.with_suffix(".safetensors")


def near(file: Path, target: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    tensors = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, target, dict(open_tensor_file(file).metadata))


def moved(base: Path, target: Path) -> Path:
    """Write the same model with every layer of a LoRA changed, and no other."""
    generator = torch.Generator().manual_seed(8)
    tensors = load_file(base)
    for name, tensor in tensors.items():
        is_of_lora = any(mark in name for mark in OF_LORAS) and "first_stage" not in name
        if tensor.dim() > 1 and is_of_lora:
            tensors[name] = tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, target, dict(open_tensor_file(base).metadata))
    return target


def merge(folder: Path, name: str, models: list[str], *options: object) -> None:
    sources = [folder / f"{model}.safetensors" for model in models]
    target = folder / f"{name}.safetensors"
    impasto_does("merge", *sources, *options, "--ratio", RATIOS[name], "--out", target)


def impasto_does(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "impasto", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
