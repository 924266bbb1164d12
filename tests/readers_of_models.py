"""Model files, read with damage; see `readers.py`."""

from __future__ import annotations

import contextlib

import torch
from damaged_formats import damaged_pickle, damaged_tensors, saved
from mutations import damaged_tree
from safetensors.torch import save

from impasto.errors import ImpastoError


class Ckpts:
    """Pickled checkpoints, as `inspect`, `convert` and `train` read them."""

    def __init__(self, folder):
        self.content = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4).half()}

    def read(self, rng, folder):
        file = folder / rng.choice(["m.ckpt", "m.pt", "m.bin", "m.safetensors"])
        file.write_bytes(damaged_pickle(rng, self.content, folder))
        read_model_file(file)


class Safetensors:
    """Checkpoints without pickles, some with the tensor names of whole models."""

    def __init__(self, folder):
        names = ["model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_in.bias", "x"]
        tensors = {name: torch.arange(6.0).reshape(2, 3) for name in names}
        self.whole = save(tensors, {"modelspec.title": "t", "impasto.configs": "{}"})

    def read(self, rng, folder):
        file = folder / "m.safetensors"
        file.write_bytes(damaged_tensors(rng, self.whole))
        read_model_file(file)


class Loras:
    """LoRA files, as `merge --lora` reads them."""

    def __init__(self, folder):
        name = "lora_unet_mid_block_attentions_0_proj_in"
        tensors = {
            f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.alpha": torch.tensor(2.0),
            f"{name}.lora_up.weight": torch.ones(4, 2), "unet.x.lora_A.weight": torch.ones(2, 4),
            "unet.x.lora_B.weight": torch.ones(4, 2),
        }  # fmt: skip
        said = '{"unet.lora_alpha": 4, "unet.alpha_pattern": {"x": 2}}'
        self.whole = save(tensors, {"lora_adapter_metadata": said})

    def read(self, rng, folder):
        from impasto.checkpoints.lora import read_lora
        from impasto.models.families import file_layouts

        file = folder / "l.safetensors"
        file.write_bytes(damaged_tensors(rng, self.whole))
        with contextlib.suppress(ImpastoError):
            for layer in read_lora(file, file_layouts()).layers.values():
                if layer.fits((4, 4)):
                    layer.delta((4, 4))


def read_model_file(file):
    from impasto.checkpoints.kinds import kind_of
    from impasto.checkpoints.reading import open_tensor_file
    from impasto.models.families import file_layouts
    from impasto.models.reading.opening import OpenOptions, contents_of
    from impasto.models.writing.inspection import inspect_model
    from impasto.progress import SilentProgress

    with contextlib.suppress(ImpastoError):
        opened = open_tensor_file(file)
        kind_of(opened, file_layouts())
        for tensor in opened.tensors.values():
            if tensor.size_bytes < 1 << 24:
                tensor.read()
        contents_of(opened, str(file), OpenOptions())
    with contextlib.suppress(ImpastoError):
        inspect_model(str(file), OpenOptions(), progress=SilentProgress())


class HypernetworkFiles:
    """Hypernetworks of A1111 and in safetensors."""

    def __init__(self, folder):
        from impasto.checkpoints.hypernetwork_writing import write_hypernetwork
        from impasto.checkpoints.hypernetworks import HypernetworkContents, Structure
        from impasto.models.networks.hypernetwork import Hypernetwork

        made = Hypernetwork((8,), Structure())
        contents = HypernetworkContents(made.halves(), made.structure, "mine")
        write_hypernetwork(contents, folder / "n.safetensors", "safetensors")
        self.tensors = (folder / "n.safetensors").read_bytes()
        half = {"linear.0.weight": torch.ones(16, 8), "linear.0.bias": torch.ones(16),
                "linear.1.weight": torch.ones(8, 16), "linear.1.bias": torch.ones(8)}  # fmt: skip
        self.pickled = {
            8: [half, half], "step": 5, "name": "n", "layer_structure": [1, 2, 1],
            "activation_func": "linear", "is_layer_norm": False, "activate_output": True,
            "weight_initialization": "Normal", "use_dropout": False, "optional_info": "i",
            "dropout_structure": [0, 0, 0], "sd_checkpoint": "abc", "sd_checkpoint_name": "b",
        }  # fmt: skip

    def read(self, rng, folder):
        from impasto.checkpoints.hypernetworks import read_hypernetwork
        from impasto.models.networks.hypernetwork import load_hypernetworks

        how = rng.random()
        if how < 0.35:
            file, content = folder / "n.safetensors", damaged_tensors(rng, self.tensors)
        elif how < 0.75:
            tree = damaged_tree(rng, self.pickled, [*ODD_STRUCTURES, torch.ones(2), "relu", 3])
            if isinstance(tree, dict) and isinstance(tree.get(8), list):
                tree[8] = tuple(tree[8])
            file, content = folder / "n.pt", saved(tree, zipped=rng.random() < 0.5)
        else:
            file, content = folder / "n.pt", damaged_pickle(rng, self.pickled, folder)
        file.write_bytes(content)
        with contextlib.suppress(ImpastoError):
            read_hypernetwork(file).tensors()
        load_hypernetworks([str(file)])


ODD_STRUCTURES = [
    None, [], {}, "", [1], [1, 2, 2, 1], [1, float("nan"), 1], [1, -2, 1], [1, 1e12, 1],
    [1, "2", 1], [1] * 100_000, [0, 0.3, 0], [0, 2, 0], True, 10**30, -1,
    "__class__", (1, 2), {"a": 1},
]  # fmt: skip
