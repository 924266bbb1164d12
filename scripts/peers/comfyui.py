"""Test Impasto's files with ComfyUI's own loaders: tensors, hypernetworks, and model detection."""

import itertools
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from stubs import stub_always, stub_missing


def main() -> None:
    folder, checkout = map(Path, sys.argv[1:])
    sys.argv = sys.argv[:1]  # ComfyUI parses the importing program's arguments
    sys.path.insert(0, str(checkout))
    stub_always("comfy_api", "folder_paths", "comfy_aimdo")
    stub_missing(
        "comfy_kitchen", "torchsde", "torchaudio", "torchvision", "sentencepiece", "av", "yaml",
        "aiohttp", "scipy", "einops", "kornia", "spandrel", "alembic", "sqlalchemy", "psutil",
    )  # fmt: skip
    from comfy.cli_args import args  # type: ignore[import-not-found]

    args.cpu = not torch.cuda.is_available()
    import comfy.utils  # type: ignore[import-not-found]

    wanted = load_file(folder / "tiny.safetensors")
    for name in ("tiny.safetensors", "tiny.ckpt"):
        tensors = comfy.utils.load_torch_file(str(folder / name), safe_load=True)
        assert tensors.keys() == wanted.keys()  # noqa: S101
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)  # noqa: S101
        print(f"ok: {name}, {len(tensors)} tensors equal")
    hypernetworks(folder)
    drawn_with_sdxl(folder)
    if (folder / "full.safetensors").is_file():
        identify(folder / "full.safetensors")


def hypernetworks(folder: Path) -> None:
    """Require that their patch changes keys and values as ours does."""
    from comfy_extras.nodes_hypernetwork import (  # type: ignore[import-not-found]
        load_hypernetwork_patch,
    )

    expected = load_file(folder / "expected.safetensors")
    widths = {"": (320, 640, 768, 1280), "sdxl-": (640, 1280, 2048)}
    for start, case in itertools.product(widths, ("a1111", "portable", "novelai")):
        name = start + case
        patch = load_hypernetwork_patch(str(folder / f"{name}.pt"), 1.0)
        assert patch is not None  # noqa: S101
        assert sorted(patch.hypernet) == list(widths[start])  # noqa: S101
        for width in widths[start]:
            given = expected[f"{name}.{width}.given"]
            with torch.no_grad():
                _, keys, values = patch(given, given, given, {})
            torch.testing.assert_close(keys, expected[f"{name}.{width}.0"])
            torch.testing.assert_close(values, expected[f"{name}.{width}.1"])
        print(f"ok: {name}.pt, outputs equal")


def drawn_with_sdxl(folder: Path) -> None:
    """Compare their U-Net with their patch and ours, both with a trained hypernetwork."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import (  # type: ignore[import-not-found]
        UNetModel,
    )
    from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch

    tensors = load_file(folder / "small-sdxl.safetensors")
    given = load_file(folder / "small-sdxl-expected.safetensors")
    arguments = (folder / "small-sdxl-unet.json").read_text(encoding="utf-8")
    unet = UNetModel(**json.loads(arguments))
    start = "model.diffusion_model."
    own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
    unet.load_state_dict(own)
    patch = load_hypernetwork_patch(str(folder / "sdxl-trained.pt"), 0.8)
    for name, patches in (
        ("plain", {}),
        ("changed", {"attn1_patch": [patch], "attn2_patch": [patch]}),
    ):
        with torch.no_grad():
            made = unet.eval()(
                given["latents"], given["times"], context=given["text"],
                y=given["pooled_and_sizes"], transformer_options={"patches": patches},
            )  # fmt: skip
        torch.testing.assert_close(made, given[name], rtol=1e-4, atol=1e-4)
    print("ok: sdxl-trained.pt in ComfyUI's U-Net, outputs equal with it and without")


def identify(file: Path) -> None:
    """Build the networks that a checkpoint node builds."""
    import comfy.sd  # type: ignore[import-not-found]

    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(file), output_clip=True)
    kind = type(model.model.model_config).__name__
    assert kind == "SD15" and clip is not None and vae is not None, kind  # noqa: PT018, S101
    print(f"ok: {file.name}, a {kind} with text encoder and VAE")


if __name__ == "__main__":
    main()
