"""Test Impasto's merged models and extracted LoRAs with A1111's extras tab and LoRA loader.

modules/extras.py and extensions-builtin/Lora run unchanged; the rest is replaced by stubs.
"""

import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file
from stubs import Nothing, stub_always, stub_missing
from write_merges import RATIOS

UNET, CLIP = "model.diffusion_model.", "cond_stage_model."
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


def main() -> None:
    folder, checkout = map(Path, sys.argv[1:])
    sys.path[:0] = [str(checkout), str(checkout / "extensions-builtin" / "Lora")]
    real = ("modules", "modules.extras")
    stub_always("modules", "gradio", but=real)
    stub_missing("tqdm", "scripts")
    from modules import extras, sd_models, shared  # type: ignore[import-not-found]

    sd_models.read_state_dict = lambda file, map_location=None: load_file(file)  # noqa: ARG005
    merges(folder, extras, sd_models, shared)
    for start in ("", "xl-"):
        loras(folder, start, shared)


def merges(folder: Path, extras: types.ModuleType, models: Nothing, shared: Nothing) -> None:
    """Merge with each of their formulas into a new file, and compare it with ours."""
    names = ("base", "other", "third")
    infos = {n: Nothing() for n in names}
    for name, info in infos.items():
        info.filename, info.model_name = str(folder / f"{name}.safetensors"), name
    models.checkpoints_list = infos
    shared.cmd_opts = types.SimpleNamespace(
        ckpt_dir=str(folder), lora_dir=str(folder), lyco_dir_backcompat=str(folder)
    )
    shared.state = Nothing()
    shared.state.sampling_step = shared.state.job_count = 0
    extras.tqdm = types.SimpleNamespace(tqdm=lambda keys: keys)
    extras.create_config = lambda *_: None
    extras.sd_vae = types.SimpleNamespace(vae_dict={})
    for ours, method in (("weighted", "Weighted sum"), ("added", "Add difference")):
        half = metadata = recipe = copied = False
        extras.run_modelmerger(
            "task", *names, method, RATIOS[ours], half, f"theirs-{ours}", "safetensors", 3,
            "None", "", metadata, recipe, copied, "{}",
        )  # fmt: skip
        made, wanted = (load_file(folder / f"{n}{ours}.safetensors") for n in ("", "theirs-"))
        assert made.keys() == wanted.keys()  # noqa: S101
        for name, tensor in made.items():
            torch.testing.assert_close(tensor, wanted[name], **CLOSE)
        print(f"ok: {ours}.safetensors, {len(made)} tensors equal to those of {method!r}")


def loras(folder: Path, start: str, shared: Nothing) -> None:
    """Require that their loader finds every layer, and would add the difference of the models."""
    import modules.models.sd3.mmdit as sd3  # type: ignore[import-not-found]

    sd3.QkvLinear = type("QkvLinear", (torch.nn.Module,), {})
    import networks  # type: ignore[import-not-found]

    before = load_file(folder / f"{start}base.safetensors")
    after = load_file(folder / f"{start}tuned.safetensors")
    layers = layers_of(before, is_sdxl=bool(start))
    model = Nothing()
    model.network_layer_mapping = {name: module for name, (module, _) in layers.items()}
    for name in ("diffusers_weight_map", "diffusers_weight_mapping"):
        assert name not in vars(model)  # noqa: S101
    shared.sd_model = types.SimpleNamespace(network_layer_mapping=model.network_layer_mapping)
    networks.devices.cpu = networks.devices.device = torch.device("cpu")
    networks.devices.dtype = torch.float32
    for file in (f"{start}full-lora.safetensors", f"{start}lora.safetensors"):
        on_disk = types.SimpleNamespace(filename=str(folder / file))
        network = networks.load_network("ours", on_disk)
        count = len(load_file(folder / file)) // 3
        worst = 0.0
        for key, module in network.modules.items():
            _, weights = layers[key]
            for name, rows in weights:
                added, _ = module.calc_updown(before[name][rows])
                change = after[name][rows] - before[name][rows]
                worst = max(worst, float((added.reshape(change.shape) - change).abs().max()))
        assert len(network.modules) == count, (len(network.modules), count)  # noqa: S101
        assert worst < 1e-6 or "full" not in file, worst  # noqa: S101
        print(f"ok: {file}, all {count} layers found; added is off by at most {worst:.1e}")


Layers = dict[str, tuple[torch.nn.Module, list[tuple[str, slice]]]]


def layers_of(tensors: dict[str, torch.Tensor], *, is_sdxl: bool) -> Layers:
    """Return modules and their tensors under A1111's names."""
    roots = {UNET: "diffusion_model."}
    if is_sdxl:
        roots |= {"conditioner.embedders.0.": "0_", "conditioner.embedders.1.": "1_"}
    else:
        roots |= {CLIP: ""}
    found: Layers = {}
    for name, tensor in tensors.items():
        root = next((root for root in roots if name.startswith(root)), None)
        module = name.removesuffix(".weight")
        if root is None or tensor.dim() not in (2, 4):
            continue
        own = roots[root] + module.removeprefix(root)
        if own.endswith("attn.in_proj_weight"):
            width = len(tensor) // 3
            for number, letter in enumerate("qkv"):
                rows = slice(number * width, (number + 1) * width)
                key = own.replace("in_proj_weight", f"{letter}_proj").replace(".", "_")
                found[key] = (linear(tensor[rows]), [(name, rows)])
        elif name.endswith(".weight"):
            found[own.replace(".", "_")] = (linear(tensor), [(name, slice(None))])
    return found


def linear(weight: torch.Tensor) -> torch.nn.Module:
    """Return a linear or convolution module with the shape of a weight."""
    if weight.dim() == 2:
        return torch.nn.Linear(weight.shape[1], weight.shape[0])
    size = tuple(weight.shape[2:])
    return torch.nn.Conv2d(weight.shape[1], weight.shape[0], size, padding=size[0] // 2)


if __name__ == "__main__":
    main()
