"""ComfyUI's own loaders on what Impasto wrote: files, hypernetworks, and what a model is."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from stubs import stub_always, stub_missing


def main() -> None:
    folder, checkout = map(Path, sys.argv[1:])
    sys.argv = sys.argv[:1]  # ComfyUI reads the command line of whoever imports it
    sys.path.insert(0, str(checkout))
    stub_always("comfy_api", "folder_paths", "comfy_aimdo")
    stub_missing(
        "comfy_kitchen", "torchsde", "torchaudio", "torchvision", "sentencepiece", "av", "yaml",
        "aiohttp", "scipy", "einops", "kornia", "spandrel", "alembic", "sqlalchemy", "psutil",
    )  # fmt: skip
    import comfy.utils  # type: ignore[import-not-found]

    wanted = load_file(folder / "tiny.safetensors")
    for name in ("tiny.safetensors", "tiny.ckpt"):
        tensors = comfy.utils.load_torch_file(str(folder / name), safe_load=True)
        assert tensors.keys() == wanted.keys()  # noqa: S101
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)  # noqa: S101
        print(f"ok: {name}, {len(tensors)} tensors equal")
    hypernetworks(folder)
    if (folder / "full.safetensors").is_file():
        identify(folder / "full.safetensors")


def hypernetworks(folder: Path) -> None:
    """Their patch changes keys and values as ours do."""
    from comfy_extras.nodes_hypernetwork import (  # type: ignore[import-not-found]
        load_hypernetwork_patch,
    )

    expected = load_file(folder / "expected.safetensors")
    for name in ("a1111", "portable", "novelai"):
        patch = load_hypernetwork_patch(str(folder / f"{name}.pt"), 1.0)
        assert patch is not None  # noqa: S101
        for width in (320, 640, 768, 1280):
            given = expected[f"{name}.{width}.given"]
            with torch.no_grad():
                _, keys, values = patch(given, given, given, {})
            torch.testing.assert_close(keys, expected[f"{name}.{width}.0"])
            torch.testing.assert_close(values, expected[f"{name}.{width}.1"])
        print(f"ok: {name}.pt, outputs equal")


def identify(file: Path) -> None:
    """Build the networks that a checkpoint node builds."""
    import comfy.sd  # type: ignore[import-not-found]

    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(file), output_clip=True)
    kind = type(model.model.model_config).__name__
    assert kind == "SD15" and clip is not None and vae is not None, kind  # noqa: PT018, S101
    print(f"ok: {file.name}, a {kind} with text encoder and VAE")


if __name__ == "__main__":
    main()
