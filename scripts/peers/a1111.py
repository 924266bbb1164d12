"""Test Impasto's files with A1111's own file check and hypernetwork class.

modules/safe.py and modules/hypernetworks/hypernetwork.py run unchanged; the rest of A1111 (its web
page, its samplers) is replaced by stubs.
"""

import itertools
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file
from stubs import Nothing, Stub, stub_always, stub_missing


def main() -> None:
    folder, checkout = map(Path, sys.argv[1:])
    sys.path.insert(0, str(checkout))
    real = (
        "modules",
        "modules.safe",
        "modules.hypernetworks",
        "modules.hypernetworks.hypernetwork",
    )
    stub_always("modules", "ldm", "backend", "gradio", but=real)
    stub_missing("einops", "tqdm", "numpy.core")
    shared = types.ModuleType("modules.shared")
    shared.cmd_opts = types.SimpleNamespace(disable_safe_unpickle=False)  # type: ignore[attr-defined]
    shared.opts = types.SimpleNamespace(print_hypernet_extra=False)  # type: ignore[attr-defined]
    devices = Stub("modules.devices")
    devices.device = devices.cpu = torch.device("cpu")  # type: ignore[attr-defined]
    devices.cond_cast_unet = devices.cond_cast_float = lambda x: x  # type: ignore[attr-defined]
    import modules  # type: ignore[import-not-found]

    for name, module in (("shared", shared), ("devices", devices)):
        sys.modules[f"modules.{name}"] = module
        setattr(modules, name, module)
    from modules import safe  # type: ignore[import-not-found]
    from modules.hypernetworks import hypernetwork as theirs  # type: ignore[import-not-found]

    torch.load = safe.load  # as A1111 does at start-up
    hypernetworks(folder, theirs)
    checkpoints(folder, safe)


def hypernetworks(folder: Path, theirs: types.ModuleType) -> None:
    """Load each hypernetwork with their class, and compare its outputs for a context with ours."""
    expected = load_file(folder / "expected.safetensors")
    widths = {"": [320, 640, 768, 1280], "sdxl-": [640, 1280, 2048]}
    for start, case in itertools.product(widths, ("a1111", "a1111-deep", "portable", "novelai")):
        name = start + case
        network = load_hypernetwork(folder / f"{name}.pt", theirs)
        for width, pair in network.layers.items():
            for index, module in enumerate(pair):
                with torch.no_grad():
                    made = module.eval()(expected[f"{name}.{width}.given"])
                torch.testing.assert_close(made, expected[f"{name}.{width}.{index}"])
        assert sorted(network.layers) == widths[start]  # noqa: S101
        print(f"ok: {name}.pt, {len(network.layers)} widths, outputs equal, step {network.step}")


def load_hypernetwork(file: Path, theirs: types.ModuleType) -> Nothing:
    network = theirs.Hypernetwork()
    network.shorthash = lambda: None
    network.load(str(file))
    return network


def checkpoints(folder: Path, safe: types.ModuleType) -> None:
    """Require that their check accepts the checkpoint; it returns None for a refused file."""
    wanted = load_file(folder / "tiny.safetensors")
    loaded = safe.load(str(folder / "tiny.ckpt"), map_location="cpu")
    if loaded is None:
        sys.exit("refused: tiny.ckpt")
    tensors = loaded["state_dict"]
    assert tensors.keys() == wanted.keys()  # noqa: S101
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)  # noqa: S101
    print(f"ok: tiny.ckpt, {len(tensors)} tensors equal")
    passed = safe.load(str(folder / "tiny-bf16.ckpt"), map_location="cpu") is not None
    print(f"{'ok' if passed else 'refused (before version 1.4 bf16 is)'}: tiny-bf16.ckpt")


if __name__ == "__main__":
    main()
