"""Compare LoRAs extracted and merged by sd-scripts with Impasto's, on the same models.

`networks/extract_lora_from_models.py` and `networks/merge_lora.py` run unchanged on diffusers'
networks, whose classes have the names that they look for.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sdscripts import require_real_transformers
from stubs import stub_always, stub_missing
from write_merges import RATIOS

from impasto.models.merging.lora_names import kohya_names
from impasto.models.networks.loading import load_base_model
from impasto.models.writing.architectures import ARCHITECTURES, meta_model_of_architecture

RANK, CONV_RANK = 8, 4


def main() -> None:
    folder, checkout = map(Path, sys.argv[1:])
    sys.argv = sys.argv[:1]
    sys.path[:0] = [str(checkout), str(checkout / "networks")]
    require_real_transformers()
    stub_always("library.lpw_stable_diffusion", "library.sdxl_lpw_stable_diffusion")
    stub_missing("torchvision", "cv2", "xformers", "pillow_avif", "jxlpy", "pillow_jxl")
    extracted(folder)
    merged(folder)
    sdxl_names()


def networks_of(file: Path) -> tuple[Any, Any]:
    model = load_base_model(file)
    (text,) = model.text_encoders.values()
    return Prefixed(text), model.unet


class Prefixed(torch.nn.Module):
    """A text encoder with transformers 4's module names, which begin with `text_model`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.text_model = getattr(network, "text_model", network)


def extracted(folder: Path) -> None:
    """Compare keys, shapes and products of their LoRA file with ours.

    Theirs clips large values at a quantile, by default 99 %; ours does not, so clipping is turned
    off.
    """
    import extract_lora_from_models as theirs  # type: ignore[import-not-found]

    def load(_: object, file: str) -> tuple[Any, None, Any]:
        text, unet = networks_of(Path(file))
        return text, None, unet

    theirs.model_util = types.SimpleNamespace(
        load_models_from_stable_diffusion_checkpoint=load,
        get_model_version_str_for_sd1_sd2=theirs.model_util.get_model_version_str_for_sd1_sd2,
    )
    theirs.args = types.SimpleNamespace(device=None)
    target = folder / "theirs-lora.safetensors"
    torch.quantile = lambda *_: torch.tensor(torch.inf)
    theirs.svd(
        model_org=str(folder / "base.safetensors"), model_tuned=str(folder / "tuned.safetensors"),
        save_to=str(target), dim=RANK, conv_dim=CONV_RANK, v2=False, sdxl=False,
        min_diff=1e-6, save_precision="float",
    )  # fmt: skip
    own, other = load_file(folder / "lora.safetensors"), load_file(target)
    assert own.keys() == other.keys(), sorted(own.keys() ^ other.keys())[:6]  # noqa: S101
    worst = 0.0
    for name in own:
        assert own[name].shape == other[name].shape or name.endswith("alpha"), name  # noqa: S101
        if name.endswith(".lora_up.weight"):
            a, b = (
                delta(tensors, name.removesuffix(".lora_up.weight")) for tensors in (own, other)
            )
            worst = max(worst, float((a - b).norm() / b.norm()))
    assert worst < 1e-4, worst  # noqa: S101
    print(f"ok: lora.safetensors, {len(own)} keys as theirs; products differ by {worst:.1e}")
    texts = [metadata(folder / f"{n}.safetensors") for n in ("lora", "theirs-lora")]
    for key in ("ss_v2", "ss_base_model_version", "ss_network_module", "modelspec.architecture"):
        assert texts[0][key] == texts[1][key], (key, texts[0][key], texts[1][key])  # noqa: S101
    ranks = [(t["ss_network_dim"], json.loads(t["ss_network_args"])["conv_dim"]) for t in texts]
    assert ranks[0] == ranks[1]  # noqa: S101
    print("ok: its ss_ texts as theirs")


def delta(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    """Return what a layer adds: Impasto has one alpha for all layers, theirs is the rank."""
    up, down = (tensors[f"{layer}.lora_{half}.weight"].flatten(1) for half in ("up", "down"))
    return up @ down * (float(tensors[f"{layer}.alpha"]) / len(down))


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        found: dict[str, str] = opened.metadata()
    return found


def merged(folder: Path) -> None:
    """Merge our LoRA into the model with their code, and compare weight by weight with ours."""
    import merge_lora as theirs  # type: ignore[import-not-found]

    text, unet = networks_of(folder / "base.safetensors")
    lora = str(folder / "lora.safetensors")
    theirs.merge_to_sd_model(text, unet, [lora], [RATIOS["lora"]], torch.float32)
    own_text, own_unet = networks_of(folder / "with-lora.safetensors")
    count = 0
    for made, wanted in ((own_text, text), (own_unet, unet)):
        tensors = wanted.state_dict()
        for name, tensor in made.state_dict().items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-6)
            count += 1
    print(f"ok: with-lora.safetensors, {count} tensors as their merge has them")


def sdxl_names() -> None:
    """Compare all layer names of a LoRA for full-size SDXL, from their network and from ours."""
    import lora as theirs
    from library.sdxl_original_unet import (  # type: ignore[import-not-found]
        SdxlUNet2DConditionModel,
    )

    with torch.device("meta"):
        unet = SdxlUNet2DConditionModel()
    network = theirs.create_network(1.0, 4, 4, None, [], unet, conv_dim=4)
    wanted = {module.lora_name for module in network.unet_loras}
    contents = meta_model_of_architecture(ARCHITECTURES["sdxl"]).contents
    marks = (".attentions.", ".resnets.", "samplers.")
    own = {
        key
        for place, key in kohya_names(contents).items()
        if key.startswith("lora_unet_") and any(mark in f".{place.tensor}" for mark in marks)
    }
    assert own == wanted, sorted(own ^ wanted)[:6]  # noqa: S101
    print(f"ok: all {len(own)} names of the U-Net of SDXL")


if __name__ == "__main__":
    main()
