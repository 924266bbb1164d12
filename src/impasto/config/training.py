"""Settings of the training loop: its length, batches, precision, memory and speed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from impasto.config.base import Section

Positive = Annotated[int, Field(ge=1)]


class TrainingConfig(Section):
    """The training loop: its length, batches, precision, memory and speed."""

    max_steps: Positive | None = None
    """Optimizer steps to train for. Give this or `max_epochs`."""

    max_epochs: Positive | None = None
    """Passes over the data to train for. Give this or `max_steps`."""

    memory: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """GiB that the run may take, on the GPU or else in RAM, as a whole number; `auto` is what is
    free. Settings that are not set are chosen so that the run fits, the cheapest first; what is
    chosen, and why, is printed and recorded. Off changes no setting."""

    fit_check: bool = True
    """Predict the memory of a run before it begins, and do not begin what will not fit."""

    batch_size: Positive | Literal["auto"] = 1
    """Images per forward pass and process; more takes memory by the same factor. `auto` finds the
    largest that fits into `memory`, or into what is free, and sets `batch_by_pixels`."""

    batch_by_pixels: bool = False
    """`batch_size` is the number of images of the full area of the resolution: batches of smaller
    images have more of them, and batches of larger images fewer, so that all have about as many
    pixels."""

    gradient_accumulation_steps: Positive = 1
    """Forward passes per step: a larger effective batch at no cost in memory."""

    mixed_precision: Literal["no", "fp16", "bf16", "auto"] = "no"
    """`bf16` computes in bfloat16: faster on GPUs from 2020 on. `fp16` does in float16, for older
    ones; steps whose gradient overflows are skipped. `auto` chooses by the device: `bf16`
    where it has instructions for it, else `fp16` on a GPU and `no` on a CPU; the run keeps what was
    chosen."""

    weight_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the weights that learn are kept in. 16 bits need half the memory for weights and
    gradients, and `mixed_precision` of the same kind; how well they learn depends on `rounding`."""

    weight_copies: bool = False
    """Make the 16-bit copies of float32 weights, with which `mixed_precision` computes, once a step
    and all at once instead of one by one in every forward pass: the same numbers, and fewer kernels
    to launch, for small batches on fast GPUs. Takes 2 bytes a weight."""

    rounding: Literal["stochastic", "kahan", "nearest"] | None = None
    """How 16-bit weights take in small changes: `stochastic`, which off means, rounds up or down by
    chance, right on average; `kahan` remembers what rounding took away, for 2 bytes a weight;
    `nearest` loses changes that are small against a weight, as `full_bf16` of sd-scripts does."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: far less memory, about a quarter slower."""

    checkpointed_levels: Annotated[int, Field(ge=1, le=4)] | None = None
    """Checkpoint only the blocks of this many of the U-Net's four resolutions, the highest first,
    where activations are largest; off means all. Needs `gradient_checkpointing`."""

    compile: Literal["off", "blocks", "full"] = "off"
    """Compile the U-Net with torch.compile for each size of images when it first comes: its
    `blocks` one by one, or `full`, which takes minutes and saves more. What is compiled is kept for
    later runs. Needs Triton on a GPU, a C++ compiler on a CPU."""

    float8: bool = False
    """Multiply in float8 in the U-Net's large linear layers while training, by torchao (extra
    `float8`): faster where these are most of the work, as in SDXL. Weights are kept, averaged and
    saved as without it, and validation and previews compute in bf16. Needs an NVIDIA card of
    compute capability 8.9 (RTX 40xx) or later, `mixed_precision` bf16 and `compile`."""

    cuda_graphs: Literal["off", "network", "step"] = "off"
    """Record the kernels of each size of images once and launch them together after that, for small
    batches on fast GPUs, which wait for kernels to be launched. `network` records what `compile`
    made of the U-Net, which it needs; `step` records the whole step with its backward pass,
    clipping and the optimizer, compiled or not. `step` is for `optimizer.kind` adamw with weights
    in fp32, and takes about as much extra memory as gradients and activations."""

    attention: Literal["sdpa", "xformers"] = "sdpa"
    """What computes attention: PyTorch's `sdpa`, flash attention where the GPU has it, or
    `xformers`, if it is installed."""

    tf32: bool = True
    """On GPUs from 2020 on, compute float32 matrix products and convolutions with 10 bits of
    fraction (TF32): several times as fast with `mixed_precision` no. Off uses all 23 bits."""

    deterministic: bool = False
    """On a GPU, compute only in ways that give the same bits each time, so that the same run, or a
    resumed one, ends in the same weights to the last bit; slower, by how much depends on the GPU.
    Without it they differ in the last digits there. A CPU always gives the same bits."""

    channels_last: bool = False
    """Keep the U-Net's convolutions in channels-last memory order: for GPUs together with
    `compile`; without it group norms undo the order at every block. Slower for a full-size U-Net on
    a CPU."""

    optimizer_in_backward: Literal["off", "exact", "last_norm"] = "off"
    """Change each weight in the backward pass and free its gradient at once, which saves as much
    memory as the weights take. `exact` gives the same weights bit for bit; where `max_grad_norm`
    limits the gradient, a backward pass goes ahead to measure it, which takes half as long again.
    `last_norm` limits by the norm of the step before, at no cost in time: one sudden large
    gradient passes."""

    offload_optimizer: bool = False
    """Keep the optimizer's state in RAM and bring it to the GPU piece by piece:
    saves 8 bytes per weight there with AdamW in float32, slower by the transfers."""

    stream_weights: bool = False
    """Keep the U-Net's blocks in pinned RAM and bring each to the GPU for its work, the next one
    while it computes: of the weights 3 to 12 per cent and three blocks are in VRAM. Needs
    `gradient_checkpointing` of all levels and `optimizer_in_backward`. The weights go over PCIe two
    or three times a step, and back once; `--plan` says how long that takes. The weights are the
    same, bit for bit."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the whole gradient; longer ones are scaled down to it. 0 means no limit."""

    text_cache_mib: Annotated[int, Field(ge=0)] = 256
    """Memory for remembered outputs of a text encoder that is not trained, in MiB on the U-Net's
    device; on a GPU twice that, as the steps and what is measured and drawn between them have one
    each. 75 tokens take 0.23 (SD 1.x), 0.30 (SD 2.x) or 0.61 (SDXL)."""

    cache_text_to_disk: bool = False
    """Encode all captions before training, keep them beside the latents, and take the text encoder
    off the device, which saves 0.2 (SD 1.x) to 1.5 GiB (SDXL) there where it is stored in 16 bits,
    and twice that in float32. Where captions change as they are shown, it stays on the device and
    encodes them when they are met."""

    text_from_npz: bool = False
    """Use what sd-scripts' `--cache_text_encoder_outputs_to_disk` left beside the images for SDXL
    (`..._te_outputs.npz`) in the place of encoding captions, where it fits. Such a file does not
    say which caption it was made from: it must not be older than the caption file, and some are
    compared with what the text encoders give. The encoders stay in VRAM unless
    `cache_text_to_disk` is set too."""

    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a running average of the weights with this decay per step, and export it; costs one
    copy of the weights. Off means none."""

    ema_power: Annotated[float, Field(gt=0, le=1)] | None = None
    """Let the decay rise to `ema_decay` as 1 - (1 + steps)^-power, so that early weights are
    forgotten: 2/3 for runs of over a million steps, 3/4 for shorter ones. Off means that it rises
    fast, as (1 + steps) / (10 + steps)."""

    ema_on_cpu: bool = False
    """Keep all averages in RAM instead of VRAM; slower, since what learns goes over PCIe each time
    (3.2 GiB for SD 1.x in float32) and is averaged in RAM."""

    ema_every: Annotated[int, Field(ge=1)] = 1
    """Update the average once every this many steps, with the decay of all of them at once: nearly
    the same average, at a part of the cost; 10 is plenty with `ema_on_cpu`."""

    posthoc_ema: bool = False
    """Keep two averages of the weights, a shorter and a longer one, and store them now and then
    (`saving.posthoc_every_steps`), so that `impasto ema` makes an average of any length after
    training (arXiv:2312.02696, section 3). Costs two copies of the weights, and disk space. It
    changes neither what is trained nor what is exported; `ema_decay` may be set beside it."""

    @property
    def averages(self) -> int:
        """How many running averages of the weights are kept."""
        return (self.ema_decay is not None) + 2 * self.posthoc_ema

    @field_validator("cuda_graphs", mode="before")
    @classmethod
    def _as_it_was(cls, value: object) -> object:
        """True and false, as settings and forms had it when `network` was the only kind."""
        before = {"true": "network", "false": "off"}
        return before.get(str(value).lower(), value) if isinstance(value, (bool, str)) else value

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.max_steps is None) == (self.max_epochs is None):
            raise ValueError("give exactly one of max_steps and max_epochs")
        return self
