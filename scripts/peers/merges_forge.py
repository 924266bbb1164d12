"""Test Impasto's LoRAs with Forge's own loader: it must find every name, for full-size models."""

import sys
import types
from pathlib import Path

import torch
from merges_comfyui import OWN, PREFIX, Model, is_of_lora, unet_config
from safetensors.torch import load_file

from impasto.models.merging.lora_names import kohya_names
from impasto.models.writing.architectures import ARCHITECTURES, meta_model_of_architecture


def main() -> None:
    folder, checkout = map(Path, sys.argv[1:])
    sys.path.insert(0, str(checkout))
    from packages.comfyui_lora_collection import lora  # type: ignore[import-not-found]

    for name in ("sd1", "sd2", "sdxl"):
        known = key_map(lora, name)
        places = kohya_names(meta_model_of_architecture(ARCHITECTURES[name]).contents)
        wanted = {key for place, key in places.items() if is_of_lora(place.tensor)}
        missing = sorted(wanted - known.keys())
        assert not missing, missing[:5]  # noqa: S101
        print(f"ok: all {len(wanted)} names of a LoRA for a full-size {name} are known")
        file = {"sd1": "lora.safetensors", "sdxl": "xl-lora.safetensors"}.get(name)
        if file is not None:
            patches, left = lora.load_lora(load_file(folder / file), known)
            assert not left, sorted(left)[:5]  # noqa: S101
            print(f"ok: {file}, {len(patches)} layers, no key left over")


def key_map(lora: types.ModuleType, name: str) -> dict[str, str]:
    """Return their names of the layers of U-Net and text encoders."""
    contents = meta_model_of_architecture(ARCHITECTURES[name]).contents
    texts = contents.identity.family.text_encoders
    ldm = {
        OWN + key.removeprefix(PREFIX): torch.empty(0)
        for key in contents.ldm_tensors()
        if key.startswith(PREFIX)
    }
    unet = types.SimpleNamespace(
        state_dict=lambda: ldm,
        diffusion_model=types.SimpleNamespace(config=unet_config(name)),
        config=types.SimpleNamespace(huggingface_repo=""),
    )
    roots = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}[name]
    encoders = {
        f"{root}.transformer.text_model.{key}": torch.empty(0)
        for root, part in zip(roots, texts, strict=True)
        for key in contents.components[part.name]
    }
    found: dict[str, str] = {}
    lora.model_lora_keys_unet(unet, found)
    lora.model_lora_keys_clip(Model(encoders), found)
    return found


if __name__ == "__main__":
    main()
