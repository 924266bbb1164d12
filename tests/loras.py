"""LoRAs extracted from two models and merged into one, for tests."""

import torch
from safetensors.torch import load_file, save_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.models.merging.extraction import ExtractionRules
from impasto.models.merging.lora_extraction import extract_file
from impasto.models.merging.merging import Mixture, Output, merge_models
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.conversion import convert_model
from impasto.models.writing.targets import form_of

FULL = ExtractionRules(None, None, dtype=torch.float32)
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def as_file(folder, file):
    convert_model(str(folder), file, "safetensors", {}, OpenOptions())
    return file


def tuned(base, target, seed=5, of=lambda name: True, size=0.02):
    """Write a copy of a model with random changes in the layers that a LoRA has."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(base)
    for name, tensor in tensors.items():
        if tensor.dim() > 1 and of(name):
            tensors[name] = tensor + size * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, target, dict(open_tensor_file(base).metadata))
    return target


def of_a_lora(name):
    """Return whether sd-scripts' LoRA has this weight, named as in single files."""
    return any(
        mark in name
        for mark in (
            "transformer_blocks.", "proj_in.", "proj_out.", "in_layers.2.", "out_layers.3.",
            "emb_layers.1.", "skip_connection.", ".op.", "_proj.weight", "mlp.fc",
            "attn.in_proj_weight", "attn.out_proj", "mlp.c_",
        )
    ) and not name.startswith("first_stage_model.")  # fmt: skip


def extracted(base, model, target, rules=FULL, **options):
    return extract_file(str(base), str(model), target, rules, OpenOptions(), **options)


def merge(base, loras, target):
    mixture = Mixture([str(base)], loras=[str(lora) for lora in loras])
    return merge_models(mixture, Output(target, form_of(target, None)), OpenOptions())
