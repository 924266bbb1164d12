"""A training step on tensors with device `cuda:0` and no values, by CUDA's own rules.

CUDA's autocast decides the dtype of each operation, and attention is that of CUDA's kernels, whose
outputs have other shapes than the CPU's. This runs as a separate process, since it makes PyTorch
assume a GPU: it reads cases as JSON from standard input, and prints the bytes of each.
"""

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

SOURCE = Path(__file__).with_name("cuda_guard.cpp")


def build_guard(folder):
    """Compile the device guard into a folder, unless it is already there.

    Return the library and None, or None and the reason why it cannot be built here.
    """
    import torch

    name = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    target = folder / f"cuda_guard-{name}.so"
    if target.is_file():
        return target, ""
    compiler = shutil.which("g++")
    if compiler is None or os.name != "posix":
        return None, "g++, which builds the device guard, is missing"
    home = Path(torch.__file__).parent
    partial = target.with_suffix(f".{os.getpid()}")
    includes = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    links = [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"]
    command = [compiler, "-std=c++20", "-O0", "-fPIC", "-shared", *includes, str(SOURCE)]
    done = subprocess.run(
        [*command, "-o", str(partial), *links], capture_output=True, text=True, check=False
    )
    return (partial.rename(target), "") if done.returncode == 0 else (None, done.stderr[-500:])


def believe_in_cuda():
    import torch

    properties = types.SimpleNamespace(
        major=9, minor=0, total_memory=24 << 30, multi_processor_count=100
    )
    torch.cuda.is_available = lambda: True
    torch.cuda._lazy_init = lambda: None
    torch.cuda.is_initialized = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda _=None: properties
    torch.cuda.get_rng_state = lambda _=None: torch.default_generator.get_state()
    torch.cuda.set_rng_state = lambda *_: None


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
              enable_gqa=False):  # fmt: skip
    """Compute attention as PyTorch chooses on a GPU: flash in 16 bits, else memory-efficient."""
    import torch

    aten = torch.ops.aten
    if query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256:
        return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False)[0]
    learns = query.requires_grad or key.requires_grad
    return aten._scaled_dot_product_efficient_attention(query, key, value, None, learns)[0]


def add_kernels():
    """Register operators that are one kernel in CUDA and several in a CPU build.

    Returns:
        The libraries, which must stay alive as long as the operators are used.
    """
    import torch

    library = torch.library.Library("aten", "IMPL")
    library.impl("silu_backward", lambda gradient, x: torch.empty_like(x), "CUDA")
    return library


def architecture_of(name):
    """Return an architecture of the program, or `small`: the tiny one with fewer layers."""
    from dataclasses import replace

    from impasto.models.writing.architectures import find_architecture

    if name != "small":
        return find_architecture(name)
    tiny = find_architecture("tiny")
    unet, *others = tiny.configs
    fewer = {
        "block_out_channels": [32, 96],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
    }
    return replace(tiny, configs=({**unet, **fewer}, *others))


def step_bytes(network, case):
    """Return a step's peak bytes beside the weights, and the gradients' bytes at that moment."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    from impasto.training.planning.fake_step import LiveMemory, _replace, gradient_hooks

    mode, device = FakeTensorMode(), torch.device("cuda:0")

    def fake(tensor):
        return FakeTensor(mode, torch.empty_like(tensor, device="meta"), device)

    _replace(network, fake)
    batch, side, tokens, width = case["batch"], case["side"] // 8, 77, case["text_width"]
    latents = fake(torch.empty(batch, 4, side, side, device="meta"))
    t = fake(torch.empty(batch, dtype=torch.int64, device="meta"))
    states = fake(torch.empty(batch, tokens, width, device="meta"))
    live = LiveMemory()
    live.leave_out([*network.parameters(), *network.buffers(), latents, t, states])
    learning = [p for p in network.parameters() if p.requires_grad]
    autocast = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[case["computes"]]
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attention

    def complete(parameter):
        if case["frees"]:
            parameter.grad = None
        elif parameter.grad is not None:
            live.gradients += parameter.grad.untyped_storage().nbytes()

    try:
        with mode, live, gradient_hooks(learning, complete):
            with torch.autocast(
                "cuda",
                dtype=autocast or torch.bfloat16,
                enabled=autocast is not None,
                cache_enabled=case["caches_casts"],
            ):
                output = network(latents, t, encoder_hidden_states=states).sample
            loss = (output.float() - latents.float()).square().mean()
            if case["twice"]:
                torch.autograd.backward(loss, retain_graph=True)
            torch.autograd.backward(loss)
    finally:
        F.scaled_dot_product_attention = plain
    return live.peak, live.gradients_at_peak


def main():
    cases = json.loads(sys.stdin.read())
    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # before PyTorch, which checks only once
    from impasto.cli.imports import leave_out_quantizers

    leave_out_quantizers()
    from impasto.models.trainable import FullFineTune
    from impasto.models.writing.architectures import meta_model_of_architecture
    from impasto.models.writing.saving import DTYPES

    kernels = add_kernels()
    meta_model_of_architecture(
        architecture_of("tiny")
    )  # libraries look for a GPU when they are imported
    believe_in_cuda()
    found = []
    for case in cases:
        trainable = FullFineTune(
            meta_model_of_architecture(architecture_of(case["architecture"])),
            lr=1e-4,
            gradient_checkpointing=case["checkpoints"],
            checkpointed_levels=case["levels"],
        )
        trainable.unet.to(DTYPES[case["weights"]])
        found.append(step_bytes(trainable.network, case))
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    del kernels
    os._exit(0)  # autograd's thread for the fake device might not end otherwise


if __name__ == "__main__":
    main()
