"""The table of model families: what differs between them is a column here, not a branch elsewhere.

Facts: CompVis/stable-diffusion `configs/stable-diffusion/v1-inference.yaml`, Stability-AI
stablediffusion `configs/stable-diffusion/v2-inference*.yaml`, and the configurations of their
Diffusers folders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from impasto.diffusion.prediction import EPSILON, VELOCITY, Prediction


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        key: How settings name it.
        name: What it is called in reports.
        prediction: What the U-Net predicts.
        text_activation: The text encoder's activation: OpenAI's CLIP has quick_gelu, OpenCLIP gelu.
        open_clip: Whether LDM files name the text encoder as open_clip does.
        linear_projection: Whether attention is entered by a linear layer, not a 1x1 convolution.
        context_width: Width of the text encoder's states at full size.
        head_count: Attention heads of the U-Net, where their number is fixed, else None.
        pad_token: What the tokenizer fills a text up with.
        pad_id: Its id.
        upcast_attention: Whether attention overflows float16 (SD 2.1 does, and its files cannot be
            told from 2.0's).
        architecture: Its name in `modelspec.architecture`.
        resolution: Pixels per side that the original was trained at.
        scaling_factor: Scaled latents = this times the VAE's.
    """

    key: str
    name: str
    prediction: Prediction
    text_activation: str
    open_clip: bool
    linear_projection: bool
    context_width: int
    head_count: int | None
    pad_token: str
    pad_id: int
    upcast_attention: bool
    architecture: str
    resolution: int
    scaling_factor: float = 0.18215

    def heads(self, channels: list[int]) -> int | list[int]:
        """For `attention_head_dim`, which in these models counts heads: 8, or one per 64."""
        return self.head_count or [width // 64 for width in channels]


SD1 = Family(
    key="sd1",
    name="SD 1.x",
    prediction=EPSILON,
    text_activation="quick_gelu",
    open_clip=False,
    linear_projection=False,
    context_width=768,
    head_count=8,
    pad_token="<|endoftext|>",
    pad_id=49407,
    upcast_attention=False,
    architecture="stable-diffusion-v1",
    resolution=512,
)
SD2_BASE = Family(
    key="sd2-base",
    name="SD 2.x base",
    prediction=EPSILON,
    text_activation="gelu",
    open_clip=True,
    linear_projection=True,
    context_width=1024,
    head_count=None,
    pad_token="!",
    pad_id=0,
    upcast_attention=True,
    architecture="stable-diffusion-v2-512",
    resolution=512,
)
SD2_V = replace(
    SD2_BASE,
    key="sd2-v",
    name="SD 2.x 768-v",
    prediction=VELOCITY,
    architecture="stable-diffusion-v2-768-v",
    resolution=768,
)
FAMILIES = (SD1, SD2_BASE, SD2_V)
