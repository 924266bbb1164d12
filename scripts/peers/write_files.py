"""Writes one of everything that Impasto writes for other programs, by its own commands."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

import impasto
from impasto.checkpoints.hypernetwork_writing import write_hypernetwork
from impasto.checkpoints.hypernetworks import HypernetworkContents, Structure, halves_of
from impasto.data.text_npz import write_text_npz
from impasto.models.hypernetwork import Hypernetwork, initialize

DEMO = Path(impasto.__file__).parent / "demo"
WIDTHS = (320, 640, 768, 1280)
COUNT = 4


def main() -> None:
    folder = Path(sys.argv[1])
    write_hypernetworks(folder)
    write_models(folder, full="--full" in sys.argv)
    write_dataset(folder)
    write_texts(folder)
    (folder / "done").touch()


def write_hypernetworks(folder: Path) -> None:
    """Each dialect, and what goes in and has to come out of it."""
    cases = {
        "a1111": Structure(),
        "a1111-deep": Structure((1, 2, 2, 1), "mish", layer_norm=True, dropout=(0, 0.1, 0.1, 0)),
        "portable": Structure((1, 2, 1), "relu", dropout=(0, 0.3, 0)),
        "novelai": Structure(),
    }
    expected: dict[str, torch.Tensor] = {}
    for name, structure in cases.items():
        network = Hypernetwork(WIDTHS, structure).eval()
        initialize(network, "XavierNormal", 1)
        tensors = {n.removeprefix("pairs."): t for n, t in network.state_dict().items()}
        contents = HypernetworkContents(halves_of(tensors), structure, name, step=7)
        contents = replace(contents, base_name="base", base_hash="0123456789", info="for a check")
        write_hypernetwork(contents, folder / f"{name}.pt", name.partition("-")[0])
        for width in WIDTHS:
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
    """Images with sidecars, latents for sd-scripts beside them, and metadata of both."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for picture in sorted((DEMO / "pictures").glob("*.webp"))[:COUNT]:
        shutil.copy(picture, pictures)
        shutil.copy(picture.with_suffix(".txt"), pictures)
    size = ("--resolution", "128", "--min-side", "64", "--max-side", "256", "--selection", "kohya")
    impasto_does("dataset", "cache", "encode", pictures, DEMO / "base", "--export-npz", *size)
    impasto_does("dataset", "merge", pictures, folder / "meta.json")
    impasto_does("dataset", "merge", pictures, folder / "meta.jsonl")


def write_texts(folder: Path) -> None:
    """Texts of SDXL at its widths, and what has to be read of them."""
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
