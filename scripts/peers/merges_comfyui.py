"""Test Impasto's merged models and extracted LoRAs with ComfyUI's merge nodes and LoRA loader."""

import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sdscripts import require_real_transformers
from stubs import stub_always, stub_missing
from write_merges import INPUT, MIDDLE, OUTPUT, RATIOS

from impasto.models.merging.lora_names import kohya_names
from impasto.models.writing.architectures import ARCHITECTURES, meta_model_of_architecture

PREFIX, OWN = "model.diffusion_model.", "diffusion_model."
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


def main() -> None:
    folder, checkout = map(Path, sys.argv[1:])
    sys.argv = sys.argv[:1]  # ComfyUI parses the importing program's arguments
    sys.path.insert(0, str(checkout))
    require_real_transformers()
    stub_always("comfy_api", "folder_paths", "comfy_aimdo")
    stub_missing(
        "comfy_kitchen", "torchsde", "torchaudio", "torchvision", "sentencepiece", "av", "yaml",
        "aiohttp", "scipy", "einops", "kornia", "spandrel", "alembic", "sqlalchemy", "psutil",
    )  # fmt: skip
    import comfy.cli_args  # type: ignore[import-not-found]

    comfy.cli_args.args.cpu = True
    merges(folder)
    added(folder)
    for name in ("sd1", "sd2", "sdxl"):
        keys(name)


class Model(torch.nn.Module):
    """A model that consists of tensors only, under ComfyUI's names."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        """Return the tensors."""
        return dict(self.tensors)


def patcher(file: Path) -> Any:
    from comfy.model_patcher import ModelPatcher  # type: ignore[import-not-found]

    tensors = {
        OWN + name.removeprefix(PREFIX): tensor
        for name, tensor in load_file(file).items()
        if name.startswith(PREFIX)
    }
    return ModelPatcher(Model(tensors), torch.device("cpu"), torch.device("cpu"), size=1)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights that their patcher computes."""
    own = model.model.state_dict()
    return {k: model.calculate_weight(p, own[k].clone(), k) for k, p in model.patches.items()}


def merges(folder: Path) -> None:
    from comfy_extras import nodes_model_merging as nodes  # type: ignore[import-not-found]

    a, b, c = (patcher(folder / f"{n}.safetensors") for n in ("base", "other", "third"))
    for model in (a, b, c):
        model.model_keys = set(model.model.state_dict())
    ratio = 1 - RATIOS["weighted"]
    compare(folder, "weighted", nodes.ModelMergeSimple().merge(a, b, ratio)[0])
    (difference,) = nodes.ModelSubtract().merge(b, c, RATIOS["added"])
    compare(folder, "added", nodes.ModelAdd().merge(a, difference)[0])
    shares = {"input": 1 - INPUT, "middle": 1 - MIDDLE, "out": 1 - OUTPUT}
    # their node assigns the time embeddings to the first name, as A1111's lists do to IN00
    compare(folder, "blocks", nodes.ModelMergeBlocks().merge(a, b, **shares)[0])


def compare(folder: Path, name: str, model: Any) -> None:
    made = load_file(folder / f"{name}.safetensors")
    wanted = weights(model)
    for key, tensor in wanted.items():
        torch.testing.assert_close(made[PREFIX + key.removeprefix(OWN)], tensor, **CLOSE)
    print(f"ok: {name}.safetensors, {len(wanted)} tensors of the U-Net equal")


def added(folder: Path) -> None:
    """Load our LoRA with their loader, and compare what it adds to the U-Net at a strength."""
    from comfy.lora import load_lora  # type: ignore[import-not-found]

    for start, name in (("", "sd1"), ("xl-", "sdxl")):
        file = load_file(folder / f"{start}lora.safetensors")
        lora = {key: tensor for key, tensor in file.items() if key.startswith("lora_unet_")}
        model = patcher(folder / f"{start}base.safetensors")
        model.model_keys = set(model.model.state_dict())
        model.add_patches(load_lora(lora, key_map(model.model, name)), RATIOS["lora"])
        made = load_file(folder / f"{start}with-lora.safetensors")
        wanted = weights(model)
        count = len(lora) // 3
        assert len(wanted) == count, (len(wanted), count)  # noqa: S101
        for key, tensor in wanted.items():
            own = made[PREFIX + key.removeprefix(OWN)]
            torch.testing.assert_close(own, tensor, rtol=1e-5, atol=1e-6)
        print(f"ok: {start}lora.safetensors, {count} layers of the U-Net, weights equal")


def key_map(model: Any, name: str) -> dict[str, str]:
    """Return their names of the U-Net's layers."""
    from comfy import lora, supported_models  # type: ignore[import-not-found]

    kind = {"sd1": "SD15", "sd2": "SD20", "sdxl": "SDXL"}[name]
    config = {**getattr(supported_models, kind).unet_config, **unet_config(name)}
    holder = types.SimpleNamespace(
        state_dict=model.state_dict, model_config=types.SimpleNamespace(unet_config=config)
    )
    found: dict[str, str] = lora.model_lora_keys_unet(holder, {})
    return found


def unet_config(name: str) -> dict[str, Any]:
    """Return the structure of a U-Net, as comfy/model_detection.py finds it in a file."""
    depths = {
        "sd1": ([1] * 6 + [0] * 2, [1] * 9 + [0] * 3, 1, (1, 2, 4, 4)),
        "sdxl": ([0, 0, 2, 2, 10, 10], [0] * 3 + [2] * 3 + [10] * 3, 10, (1, 2, 4)),
    }
    down, up, middle, widths = depths.get(name, depths["sd1"])
    return {
        "num_res_blocks": [2] * len(widths), "channel_mult": widths, "transformer_depth": down,
        "transformer_depth_output": up, "transformer_depth_middle": middle,
    }  # fmt: skip


def keys(name: str) -> None:
    """Require that their maps have every layer name of a LoRA for a full-size model."""
    from comfy import lora

    contents = meta_model_of_architecture(ARCHITECTURES[name]).contents
    texts = contents.identity.family.text_encoders
    ldm = {
        OWN + key.removeprefix(PREFIX): torch.empty(0)
        for key in contents.ldm_tensors()
        if key.startswith(PREFIX)
    }
    known = key_map(Model(ldm), name)
    roots = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}[name]
    encoders = {
        f"{root}.transformer.text_model.{key}": torch.empty(0)
        for root, part in zip(roots, texts, strict=True)
        for key in contents.components[part.name]
    }
    known |= lora.model_lora_keys_clip(Model(encoders), {})
    places = kohya_names(contents)
    wanted = {key for place, key in places.items() if is_of_lora(place.tensor)}
    missing = sorted(wanted - known.keys())
    assert not missing, missing[:5]  # noqa: S101
    print(f"ok: all {len(wanted)} names of a LoRA for a full-size {name} are known")


def is_of_lora(tensor: str) -> bool:
    marks = (".attentions.", ".resnets.", "samplers.", ".self_attn.", ".mlp.")
    return any(mark in f".{tensor}" for mark in marks)


if __name__ == "__main__":
    main()
