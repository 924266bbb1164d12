"""Compare supermerger's train difference and its block names with Impasto's."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from stubs import stub_always, stub_missing
from write_merges import RATIOS

from impasto.models.merging.blocks import mbw_blocks
from impasto.models.writing.architectures import ARCHITECTURES, meta_model_of_architecture

PREFIX = "model.diffusion_model."


def main() -> None:
    folder, checkout = map(Path, sys.argv[1:])
    sys.path.insert(0, str(checkout))
    stub_always("modules", "launch", "gradio")
    stub_missing("tqdm", "scipy", "diffusers", "ldm", "matplotlib", "sklearn")
    from scripts.mergers import mergers as theirs  # type: ignore[import-not-found]

    a, b, c = (load_file(folder / f"{n}.safetensors") for n in ("base", "other", "third"))
    made = load_file(folder / "trained.safetensors")
    for name, tensor in made.items():
        if not torch.equal(b[name], c[name]):
            theirs.traindiff(name, RATIOS["trained"], a, b, c)
        torch.testing.assert_close(tensor, a[name], rtol=1e-5, atol=1e-6)
    print(f"ok: trained.safetensors, {len(made)} tensors equal to those of train difference")
    for name in ("sd1", "sd2", "sdxl"):
        blocks(name, theirs)


def blocks(name: str, theirs: object) -> None:
    """Require that each tensor of a full-size U-Net is in the same block as in supermerger."""
    contents = meta_model_of_architecture(ARCHITECTURES[name]).contents
    component = contents.identity.family.unet
    part_map = component.naming.map_of_ours(contents.components[component.name].keys())
    own = mbw_blocks(contents)
    for tensor, block in own.items():
        found = theirs.blockfromkey(part_map.to_ldm(tensor), name == "sdxl")[1]  # type: ignore[attr-defined]
        assert found == block, (tensor, found, block)  # noqa: S101
    print(f"ok: all {len(own)} tensors of the U-Net of {name} are in the same blocks")


if __name__ == "__main__":
    main()
