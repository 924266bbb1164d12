"""Write one file of each kind that Impasto writes for other programs, with its own commands."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import save_file

import impasto
from impasto.checkpoints.hypernetwork_writing import write_hypernetwork
from impasto.checkpoints.hypernetworks import HypernetworkContents, Structure, halves_of
from impasto.data.caching.text_npz import write_text_npz
from impasto.models.networks.hypernetwork import Hypernetwork, initialize, load_hypernetworks
from impasto.models.networks.loading import load_base_model
from impasto.models.writing.architectures import ARCHITECTURES, write_random_model

DEMO = Path(impasto.__file__).parent / "demo"
WIDTHS = {"": (320, 640, 768, 1280), "sdxl-": (640, 1280, 2048)}
"""Prefix of file names -> the hypernetwork's widths: those of SD 1 and of SDXL."""
COUNT = 4
SMALL_SDXL = {
    "unet": {
        "block_out_channels": [32, 64, 64],
        "layers_per_block": 1,
        "cross_attention_dim": 16 + 24,
        "attention_head_dim": [1, 2, 2],
        "transformer_layers_per_block": [1, 1, 2],
        "projection_class_embeddings_input_dim": 24 + 6 * 256,
    },
    "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
    "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
                     "num_attention_heads": 2, "projection_dim": 16},
    "text_encoder_2": {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
                       "num_attention_heads": 2, "projection_dim": 24},
}  # fmt: skip
"""The configuration values in which a small SDXL differs from SDXL."""


def main() -> None:
    folder = Path(sys.argv[1])
    write_hypernetworks(folder)
    write_models(folder, full="--full" in sys.argv)
    write_dataset(folder)
    write_small_sdxl(folder)
    write_texts(folder)
    (folder / "done").touch()


def write_hypernetworks(folder: Path) -> None:
    """Write a hypernetwork in each dialect, with an input and the expected outputs."""
    cases = {
        "a1111": Structure(),
        "a1111-deep": Structure((1, 2, 2, 1), "mish", layer_norm=True, dropout=(0, 0.1, 0.1, 0)),
        "portable": Structure((1, 2, 1), "relu", dropout=(0, 0.3, 0)),
        "novelai": Structure(),
    }
    expected: dict[str, torch.Tensor] = {}
    for start, case in itertools.product(WIDTHS, cases):
        name, structure, widths = start + case, cases[case], WIDTHS[start]
        network = Hypernetwork(widths, structure).eval()
        initialize(network, "XavierNormal", 1)
        tensors = {n.removeprefix("pairs."): t for n, t in network.state_dict().items()}
        contents = HypernetworkContents(halves_of(tensors), structure, name, step=7)
        contents = replace(contents, base_name="base", base_hash="0123456789", info="for a check")
        write_hypernetwork(contents, folder / f"{name}.pt", case.partition("-")[0])
        for width in widths:
            given = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))
            with torch.no_grad():
                changed = network(given, given)
            expected |= {f"{name}.{width}.given": given}
            expected |= {f"{name}.{width}.{i}": t for i, t in enumerate(changed)}
    save_file({n: t.contiguous() for n, t in expected.items()}, folder / "expected.safetensors")


def write_models(folder: Path, *, full: bool) -> None:
    impasto_does("convert", DEMO / "base", folder / "tiny.safetensors", "--dtype", "fp16")
    impasto_does("convert", DEMO / "base", folder / "tiny.ckpt", "--dtype", "fp16")
    impasto_does("convert", DEMO / "base", folder / "tiny-bf16.ckpt", "--dtype", "bf16")
    impasto_does("convert", folder / "tiny.ckpt", folder / "tiny-folder")
    if full:
        impasto_does("init", "sd1", folder / "sd1", "--dtype", "fp16")
        impasto_does("convert", folder / "sd1", folder / "full.safetensors")
        shutil.rmtree(folder / "sd1")


def write_dataset(folder: Path) -> None:
    """Write images with sidecars, latents for sd-scripts beside them, and metadata of both."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for picture in sorted((DEMO / "pictures").glob("*.webp"))[:COUNT]:
        shutil.copy(picture, pictures)
        shutil.copy(picture.with_suffix(".txt"), pictures)
    size = ("--resolution", "128", "--min-side", "64", "--max-side", "256", "--selection", "kohya")
    impasto_does("dataset", "cache", "encode", pictures, DEMO / "base", "--export-npz", *size)
    impasto_does("dataset", "merge", pictures, folder / "meta.json")
    impasto_does("dataset", "merge", pictures, folder / "meta.jsonl")


def write_small_sdxl(folder: Path) -> None:
    """Write a small SDXL, a hypernetwork trained on it, and its U-Net's output with that."""
    full = ARCHITECTURES["sdxl"]
    small = replace(
        full, configs=tuple({**full.by_name[name], **own} for name, own in SMALL_SDXL.items())
    )
    base, file = folder / "small-sdxl", folder / "small-sdxl.safetensors"
    write_random_model(small, base, seed=0, dtype=torch.float32)
    arguments = comfyui_arguments(small.by_name["unet"])
    text = json.dumps(arguments, indent=1)
    (folder / "small-sdxl-unet.json").write_text(text, encoding="utf-8")
    impasto_does("convert", base, file)
    settings = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(base)},
        "method": {"kind": "hypernetwork"},
        "optimizer": {"lr": 0.01},
        "dataset": {"image_dir": str(folder / "pictures"), "resolution": 64,
                    "bucket_reso_steps": 32, "min_bucket_reso": 32, "max_bucket_reso": 96},
        "training": {"max_steps": 4, "batch_size": 2, "mixed_precision": "no"},
        "saving": {"format": "portable", "name": "trained"},
    }  # fmt: skip
    (folder / "run.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    impasto_does("train", folder / "run.toml")
    trained = folder / "sdxl-trained.pt"
    shutil.copy(folder / "run" / "export" / "trained.pt", trained)

    unet: Any = load_base_model(base).unet.eval()
    draw = torch.Generator().manual_seed(3)
    latents, times = torch.randn(2, 4, 16, 16, generator=draw), torch.tensor([10, 900])
    text = torch.randn(2, 77, unet.config.cross_attention_dim, generator=draw)
    pooled = torch.randn(2, SMALL_SDXL["text_encoder_2"]["projection_dim"], generator=draw)
    sizes = torch.tensor([[768, 512, 8, 16, 512, 512]] * 2)
    numbers = unet.add_time_proj(sizes.flatten()).reshape(2, -1)
    given = {"latents": latents, "times": times, "text": text}
    asked = {"encoder_hidden_states": text,
             "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}  # fmt: skip
    with torch.no_grad():
        plain = unet(latents, times, **asked).sample
        with load_hypernetworks([f"{trained}:0.8"]).attached(unet):
            changed = unet(latents, times, **asked).sample
    assert not torch.allclose(plain, changed, atol=1e-3)  # noqa: S101
    pooled_and_sizes = torch.cat([pooled, numbers], 1)
    save_file(
        {**given, "pooled_and_sizes": pooled_and_sizes, "plain": plain, "changed": changed},
        folder / "small-sdxl-expected.safetensors",
    )


def comfyui_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ComfyUI's `UNetModel` for a diffusers configuration of a U-Net."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    (head_width,) = {n // h for n, h in zip(channels, config["attention_head_dim"], strict=True)}
    depths = [
        depth if kind.startswith("CrossAttn") else 0
        for kind, depth in zip(
            config["down_block_types"], config["transformer_layers_per_block"], strict=True
        )
    ]
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": channels[0],
        "channel_mult": [n // channels[0] for n in channels],
        "num_res_blocks": [layers] * len(channels),
        "transformer_depth": [depth for depth in depths for _ in range(layers)],
        "transformer_depth_middle": depths[-1],
        "transformer_depth_output": [depth for depth in depths for _ in range(layers + 1)],
        "context_dim": config["cross_attention_dim"],
        "num_head_channels": head_width,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config["use_linear_projection"],
        "num_classes": "sequential",
        "adm_in_channels": config["projection_class_embeddings_input_dim"],
        "legacy": False,
    }


def write_texts(folder: Path) -> None:
    """Write SDXL's text encodings at its real widths, and the expected values."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden_state1": (77, 768), "hidden_state2": (77, 1280), "pool2": (1280,)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    first, second, pooled = (tensor.numpy() for tensor in made.values())
    write_text_npz(folder / "cat_te_outputs.npz", [first, second], pooled, (49406,) * 154)
    save_file(made, folder / "texts.safetensors")


def impasto_does(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "impasto", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
