"""Settings of the training loop: its length, batches, precision, memory and speed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from impasto.config.base import Section

Positive = Annotated[int, Field(ge=1)]


class TrainingConfig(Section):
    """The training loop: its length, batches, precision, memory and speed."""

    max_steps: Positive | None = None
    """Number of optimizer steps to train for. Set this or `max_epochs`."""

    max_epochs: Positive | None = None
    """Number of epochs, or passes over the dataset, to train for. Set this or `max_steps`."""

    memory: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Memory limit of the run in whole GiB, of VRAM or, without a GPU, of RAM; `auto` means all
    that is free. Settings that you leave unset are chosen so that the run fits, the cheapest first;
    each choice is printed and recorded with its reason. Off changes no setting."""

    fit_check: bool = True
    """Predict the memory of a run before it starts, and refuse one that will not fit."""

    batch_size: Positive | Literal["auto"] = 1
    """Images per forward pass and process; memory for activations grows in proportion. `auto` finds
    the largest that fits into `memory`, or into the free memory, and enables `batch_by_pixels`."""

    batch_by_pixels: bool = False
    """Size batches by pixels: `batch_size` is then the number of images of the full area of the
    resolution, and batches of smaller images have more images, those of larger images fewer, so
    that all have about the same number of pixels."""

    gradient_accumulation_steps: Positive = 1
    """Micro-steps (forward and backward passes) per optimizer step: a larger effective batch
    without more memory."""

    mixed_precision: Literal["no", "fp16", "bf16", "auto"] = "no"
    """Precision of computation: `bf16` is faster on GPUs from 2020 on; `fp16` is for older ones,
    and skips steps whose gradient overflows; `no` is float32. `auto` chooses by the device: `bf16`
    if it has instructions for it, else `fp16` on a GPU and `no` on a CPU; a resumed run keeps the
    choice."""

    weight_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision in which the trained weights are stored. 16 bits halve the memory for weights and
    gradients, and need `mixed_precision` of the same kind; how well such weights learn depends on
    `rounding`."""

    weight_copies: bool = False
    """Make the 16-bit copies of float32 weights, with which `mixed_precision` computes, all at once
    per step instead of one by one in every forward pass: the same numbers with fewer kernel
    launches, for small batches on fast GPUs. Takes 2 bytes per weight."""

    rounding: Literal["stochastic", "kahan", "nearest"] | None = None
    """How small updates are rounded into 16-bit weights: `stochastic`, which off means, rounds up
    or down at random, correctly on average; `kahan` stores the rounding error, in 2 bytes per
    weight; `nearest` loses updates that are small compared with the weight, as `full_bf16` of
    sd-scripts does."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: far less memory, about a
    quarter slower."""

    checkpointed_levels: Annotated[int, Field(ge=1, le=4)] | None = None
    """Number of the U-Net's four resolutions to checkpoint, starting with the highest, where
    activations are largest; off means all. Needs `gradient_checkpointing`."""

    compile: Literal["off", "blocks", "full"] = "off"
    """Compile the U-Net with torch.compile, for each image size when it first occurs: its `blocks`
    one by one, or `full`, which takes minutes and gains more. The compiled code is cached for later
    runs. Needs Triton on a GPU, a C++ compiler on a CPU."""

    float8: bool = False
    """Multiply in float8 in the U-Net's large linear layers during training, with torchao (extra
    `float8`): faster where these are most of the work, as in SDXL. Weights are stored, averaged and
    saved as without it; validation and previews compute in bf16. Needs an NVIDIA GPU of compute
    capability 8.9 (RTX 40xx) or later, `mixed_precision` bf16 and `compile`."""

    cuda_graphs: Literal["off", "network", "step"] = "off"
    """Record the kernels of each image size as a CUDA graph once and replay them together, for
    small batches on fast GPUs, which otherwise wait for kernel launches. `network` records the
    compiled U-Net, and needs `compile`; `step` records the whole step with its backward pass,
    clipping and the optimizer, compiled or not. `step` needs `optimizer.kind` adamw and weights in
    fp32, and takes about as much extra memory as gradients and activations."""

    attention: Literal["sdpa", "xformers"] = "sdpa"
    """Implementation of attention: PyTorch's `sdpa`, which uses flash attention if the GPU has it,
    or `xformers`, if it is installed."""

    tf32: bool = True
    """Compute float32 matrix products and convolutions in TF32, with 10 bits of mantissa, on GPUs
    from 2020 on: several times as fast with `mixed_precision` no. Off uses all 23 bits."""

    deterministic: bool = False
    """Use only deterministic operations on a GPU, so that the same run, or a resumed one, gives the
    same weights to the last bit; slower, by how much depends on the GPU. Off, they differ in the
    last digits. A CPU is always deterministic."""

    channels_last: bool = False
    """Store the U-Net's convolutions in channels-last memory order: for GPUs, together with
    `compile`; without it, group norms undo the order at every block. Slower for a full-size U-Net
    on a CPU."""

    optimizer_in_backward: Literal["off", "exact", "last_norm"] = "off"
    """Update each weight during the backward pass and free its gradient at once, which saves as
    much memory as the weights take. `exact` gives the same weights bit for bit; if `max_grad_norm`
    limits the gradient, an extra backward pass measures it first, which makes a step half as long
    again. `last_norm` clips by the norm of the previous step, at no cost in time, so that a single
    sudden large gradient is not clipped."""

    offload_optimizer: bool = False
    """Offload the optimizer's state to RAM and copy it to the GPU piece by piece: saves 8 bytes of
    VRAM per weight with AdamW in float32, and is slower by the transfers."""

    stream_weights: bool = False
    """Keep the U-Net's blocks in pinned RAM and copy each to the GPU when it is needed, the next
    one while the current one computes: 3 to 12 per cent of the weights and three blocks are in
    VRAM. Needs `gradient_checkpointing` of all levels and `optimizer_in_backward`. Per step, the
    weights cross PCIe to the GPU two or three times and back once; `--plan` predicts how long that
    takes. The resulting weights are the same, bit for bit."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Maximum norm of the whole gradient; a larger gradient is scaled down to it (gradient
    clipping). 0 means no limit."""

    text_cache_mib: Annotated[int, Field(ge=0)] = 256
    """Size of the cache for outputs of frozen text encoders, in MiB on the U-Net's device; on a GPU
    twice that, since training has one and validation and previews another. 75 tokens take 0.23 (SD
    1.x), 0.30 (SD 2.x) or 0.61 (SDXL)."""

    cache_text_to_disk: bool = False
    """Encode all captions before training, store the outputs beside the latents, and take the text
    encoder off the device, which saves 0.2 (SD 1.x) to 1.5 GiB (SDXL) there if it is stored in 16
    bits, and twice that in float32. If captions change each time they are shown, the text encoder
    stays on the device and encodes them during training."""

    text_from_npz: bool = False
    """Use the text encoder outputs that sd-scripts' `--cache_text_encoder_outputs_to_disk` stored
    beside the images for SDXL (`..._te_outputs.npz`) instead of encoding captions, where they fit.
    Such a file does not record its caption: it must not be older than the caption file, and some
    are checked against the text encoders' own output. The encoders stay in VRAM unless
    `cache_text_to_disk` is set too."""

    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of a running average (EMA) of the weights, which is then exported; takes one
    copy of the weights. Off means no average."""

    ema_power: Annotated[float, Field(gt=0, le=1)] | None = None
    """Exponent of an EMA warm-up: the decay rises to `ema_decay` as 1 - (1 + steps)^-power, so that
    early weights are forgotten; 2/3 for runs of over a million steps, 3/4 for shorter ones. Off
    means that it rises fast, as (1 + steps) / (10 + steps)."""

    ema_on_cpu: bool = False
    """Keep all averages in RAM instead of VRAM; slower, since the trained weights cross PCIe at
    each update (3.2 GiB for SD 1.x in float32) and are averaged on the CPU."""

    ema_every: Annotated[int, Field(ge=1)] = 1
    """Steps between updates of the average, each with the decay of all steps since the last one:
    nearly the same average at a fraction of the cost; 10 is plenty with `ema_on_cpu`."""

    posthoc_ema: bool = False
    """Keep two averages of the weights, a shorter and a longer one, and store them at intervals
    (`saving.posthoc_every_steps`), so that `impasto ema` can compute an average of any length after
    training (arXiv:2312.02696, section 3). Takes two copies of the weights, and disk space. It
    changes neither what is trained nor what is exported; `ema_decay` can be set as well."""

    @property
    def averages(self) -> int:
        """The number of running averages of the weights."""
        return (self.ema_decay is not None) + 2 * self.posthoc_ema

    @field_validator("cuda_graphs", mode="before")
    @classmethod
    def _as_it_was(cls, value: object) -> object:
        """Accept true and false, the values from before `network` and `step` could be chosen."""
        before = {"true": "network", "false": "off"}
        return before.get(str(value).lower(), value) if isinstance(value, (bool, str)) else value

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.max_steps is None) == (self.max_epochs is None):
            raise ValueError("set exactly one of max_steps and max_epochs")
        return self
