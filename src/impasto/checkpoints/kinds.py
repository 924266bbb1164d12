"""What a file of tensors is, told by the names in it: a base model, or something else by name."""

from __future__ import annotations

from dataclasses import dataclass

from impasto.checkpoints.hypernetworks import is_hypernetwork
from impasto.checkpoints.keymap import UNET_PREFIX, VAE_PREFIX
from impasto.checkpoints.reading import TensorFile

INPUT_CHANNELS = {
    4: "plain",
    5: "depth-guided",
    7: "an upscaler",
    8: "image-editing (InstructPix2Pix)",
    9: "inpainting",
}
INPUT_WEIGHT = UNET_PREFIX + "input_blocks.0.0.weight"


@dataclass(frozen=True)
class Kind:
    """A sort of file.

    Attributes:
        name: What it is, after "this is".
        starts: One name with one of these beginnings is enough.
        contains: One name with one of these inside is enough.
    """

    name: str
    starts: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()

    def fits(self, names: tuple[str, ...]) -> bool:
        """Whether the names are of this kind."""
        return any(n.startswith(self.starts) for n in names if self.starts) or any(
            mark in n for n in names for mark in self.contains
        )


BASE_MODEL = Kind("a Stable Diffusion 1.x or 2.x checkpoint")
UNET_ALONE = Kind("a U-Net alone, without text encoder and VAE")
VAE_ALONE = Kind("a VAE alone")
HYPERNETWORK = Kind("a hypernetwork")
UNKNOWN = Kind("of no kind that Impasto knows")
OTHERS = (
    Kind("an SDXL checkpoint", ("conditioner.embedders.", UNET_PREFIX + "label_emb.")),
    Kind("an SD 3 checkpoint", contains=("joint_blocks.",)),
    Kind("a Flux checkpoint", contains=("double_blocks.",)),
    Kind(
        "a LoRA or LyCORIS, which is added to a base model",
        ("lora_unet_", "lora_te"),
        (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1_a", ".lokr_w1", ".oft_"),
    ),
    Kind("a ControlNet", ("control_model.", "controlnet_")),
    Kind("a textual-inversion embedding", ("emb_params", "string_to_param", "clip_l", "<")),
)
PARTS_OF_DIFFUSERS = (
    Kind("the U-Net of a Diffusers folder", ("down_blocks.0.resnets",)),
    Kind("the VAE of a Diffusers folder", ("encoder.down_blocks.",)),
    Kind("the text encoder of a Diffusers folder", ("text_model.encoder.", "encoder.layers.0.")),
)


def kind_of(file: TensorFile) -> Kind:
    """Name what a file is."""
    names = tuple(file.tensors)
    if is_hypernetwork(file):
        return HYPERNETWORK
    if not names:
        widths = [key for key in file.other_keys if type(key) is int]
        return HYPERNETWORK if widths else UNKNOWN
    for kind in OTHERS:
        if kind.fits(names):
            return kind
    if INPUT_WEIGHT in file.tensors:
        has_rest = any(n.startswith("cond_stage_model.") for n in names)
        return BASE_MODEL if has_rest else UNET_ALONE
    if any(n.removeprefix(VAE_PREFIX) == "encoder.conv_in.weight" for n in names):
        named_as_diffusers = PARTS_OF_DIFFUSERS[1].fits(names)
        return PARTS_OF_DIFFUSERS[1] if named_as_diffusers else VAE_ALONE
    return next((kind for kind in PARTS_OF_DIFFUSERS if kind.fits(names)), UNKNOWN)
