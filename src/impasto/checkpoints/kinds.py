"""Identifies a file of tensors by the names in it: a base model, or another kind of file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from impasto.checkpoints.hypernetworks import is_hypernetwork
from impasto.checkpoints.keymap import ComponentKind, FileLayout, NamedComponent
from impasto.checkpoints.reading import TensorFile

INPUT_CHANNELS = {
    4: "plain",
    5: "depth-guided",
    7: "an upscaler",
    8: "image-editing (InstructPix2Pix)",
    9: "inpainting",
}
EMBEDDING_WIDTHS = (768, 1024, 1280, 2048)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: Description that completes "this is".
        starts: One name with one of these prefixes is enough.
        contains: One name that contains one of these is enough.
        is_named: One name that equals one of these is enough, even if it is not a tensor's.
        groups: Groups of prefixes; the kind fits if each group has a matching name.
        advice: Sentences of advice on a file that should have been a base model.
    """

    name: str
    starts: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    is_named: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    advice: str = "Give the base model that it belongs to, or another file."

    def fits(self, names: tuple[str, ...], claimed: tuple[str, ...] = ()) -> bool:
        """Return whether the names are of this kind.

        Names that start with one of `claimed` do not count in `starts`; if there are any, groups do
        not count either: a model of a known family is complete in the file.
        """
        return (
            any(n.startswith(self.starts) and not n.startswith(claimed) for n in names)
            or any(mark in n for n in names for mark in self.contains)
            or any(n in self.is_named for n in names)
            or (not claimed and self._has_each_group(names))
        )

    def _has_each_group(self, names: tuple[str, ...]) -> bool:
        found = [any(name.startswith(group) for name in names) for group in self.groups]
        return bool(found) and all(found)


BASE_MODEL = Kind("a Stable Diffusion checkpoint")
UNET_ALONE = Kind("a U-Net alone, without text encoder and VAE")
UNET_AND_VAE = Kind("a U-Net and a VAE, without text encoder")
VAE_ALONE = Kind("a VAE alone")
TEXT_ENCODER_ALONE = Kind("a text encoder alone, by the names of single files")
HYPERNETWORK = Kind("a hypernetwork")
EMBEDDING = Kind(
    "a textual-inversion embedding",
    ("<",),
    is_named=("emb_params", "string_to_param", "string_to_token", "clip_l", "clip_g"),
)
UNKNOWN = Kind("of no kind that Impasto knows")

REFINER = Kind(
    "the SDXL refiner, which finishes the images that another model has started",
    ("conditioner.embedders.0.model.",),
)
PLAYGROUND = Kind(
    "Playground 2.5, whose noise is scaled differently from Stable Diffusion's",
    is_named=("edm_mean", "edm_std"),
)
EDM_VELOCITY = Kind(
    "an SDXL checkpoint of EDM's velocity, which no program for Stable Diffusion trains",
    is_named=("edm_vpred.sigma_max", "edm_vpred.sigma_min"),
)
FLOW = Kind(
    "a model of rectified flow (flow matching), which adds noise differently from Stable Diffusion"
)
COMPONENT_OF_SDXL = Kind(
    "part of an SDXL checkpoint",
    ("conditioner.embedders.", "model.diffusion_model.label_emb."),
)
_SAVED_AGAIN = (
    "Open it in the program that wrote it, and save it there as a checkpoint: ComfyUI does that "
    "with the node Save Checkpoint."
)
_LABELS = "model.diffusion_model.label_emb."
_SECOND_IN_MEMORY = ("clip_g.", "cond_stage_model.clip_g.", "conditioner.embedders.1.wrapped.")
SDXL_IN_MEMORY = Kind(
    "an SDXL checkpoint as a program has it in memory, whose text encoders are called clip_l and "
    "clip_g or are wrapped, as in no model file that programs read",
    groups=(
        ("clip_l.", "cond_stage_model.clip_l.", "conditioner.embedders.0.wrapped."),
        _SECOND_IN_MEMORY,
        (_LABELS,),
    ),
    advice=_SAVED_AGAIN,
)
SD_IN_MEMORY = Kind(
    "a Stable Diffusion checkpoint as ComfyUI has it in memory, whose text encoder is called "
    "clip_l or clip_h, as in no model file that programs read",
    groups=(
        ("clip_l.", "clip_h.", "cond_stage_model.clip_l.", "cond_stage_model.clip_h."),
        ("model.diffusion_model.input_blocks.",),
    ),
    advice=_SAVED_AGAIN,
)
REFINER_IN_MEMORY = Kind(
    "the SDXL refiner, or SDXL without its first text encoder, as a program has it in memory",
    groups=(_SECOND_IN_MEMORY, (_LABELS,)),
)
LORA = Kind(
    "a LoRA or LyCORIS, which is added to a base model",
    ("lora_unet_", "lora_te", "lora_prior_", "lycoris_", "base_model.model."),
    (
        ".lora_down.",
        ".lora_up.",
        ".lora_A.",
        ".lora_B.",
        ".lora.down.",
        ".lora.up.",
        "_lora.down.",
        "_lora.up.",
        ".lora_linear_layer.",
        ".lora_mid.",
        ".hada_w1_",
        ".lokr_w1",
        ".lokr_w2",
        ".oft_",
        ".boft_",
        ".dora_scale",
        ".lora_magnitude_vector",
    ),
)
OTHERS = (
    LORA,
    Kind("an IP-Adapter", ("image_proj.", "ip_adapter."), (".to_k_ip.",), ("image_proj",)),
    Kind("a PhotoMaker adapter", ("id_encoder.",), is_named=("id_encoder",)),
    Kind("an AnimateDiff motion module", contains=("motion_modules.", "temporal_transformer.")),
    Kind(
        "a T2I-Adapter",
        ("adapter.body.", "adapter.conv_in.", "body.0.in_conv.", "body.0.resnets."),
        ("transformer_layes.",),
        ("body.0.block1.weight", "body.0.block1.bias"),
    ),
    Kind(
        "a ControlNet",
        ("control_model.", "controlnet_", "input_hint_block.", "control_add_embedding."),
        is_named=("lora_controlnet",),
    ),
    Kind("a GLIGEN model", ("position_net.",), (".fuser.",)),
    Kind(
        "an upscaler or face restorer, which works on images",
        ("conv_first.", "model.1.sub.", "m_head.", "stylegan_decoder."),
        (".RDB1.", ".rdb1.", ".residual_group.", ".upsampler_conv."),
        ("params_ema", "params", "params-ema"),
    ),
    Kind("a Stable Video Diffusion checkpoint", contains=(".time_stack.", ".time_mixer.")),
    Kind("an SD 2 unCLIP checkpoint", ("noise_augmentor.", "embedder.model.visual.")),
    REFINER,
    PLAYGROUND,
    EDM_VELOCITY,
    Kind("an SD 3 checkpoint", contains=("joint_blocks.",)),
    Kind("a Flux checkpoint", contains=("double_blocks.", "single_transformer_blocks.")),
    Kind("a Stable Cascade model", ("clip_txt_mapper.", "clip_txt_pooled_mapper.", "effnet_")),
    SDXL_IN_MEMORY,
    REFINER_IN_MEMORY,
    COMPONENT_OF_SDXL,
    SD_IN_MEMORY,
    Kind(
        "a diffusion transformer (SD 3, PixArt, Hunyuan, Lumina, Qwen, Wan or the like)",
        ("cap_embedder.", "mlp_t5.", "cond_seq_linear.", "patchify_proj.", "x_embedder."),
        (".add_q_proj.", "scale_shift_table", "txt_in.", ".adaLN_modulation.", ".adaln_single."),
    ),
    Kind("a T5 text encoder", contains=(".layer.0.SelfAttention.",)),
    Kind("a language model", ("model.layers.", "language_model.", "lm_head."), ("h.0.attn.c_",)),
    Kind("a captioning model (BLIP or the like)", ("visual_encoder.", "text_decoder.")),
    Kind(
        "a CLIP vision model",
        ("vision_model.", "visual.", "visual_projection."),
        ("clip.vision_model.",),
    ),
    Kind("an aesthetic predictor or another small classifier", is_named=("layers.0.weight",)),
    EMBEDDING,
    Kind(
        "an optimizer's state",
        is_named=("optimizer_state_dict", "optimizer_name", "param_groups"),
    ),
)
DIFFUSERS_VAE = Kind("the VAE of a Diffusers folder", ("encoder.down_blocks.",))
DIFFUSERS_COMPONENTS = (
    Kind("the U-Net of a Diffusers folder of SDXL", ("add_embedding.linear_",)),
    Kind("the U-Net of a Diffusers folder", ("down_blocks.0.resnets",)),
    DIFFUSERS_VAE,
    Kind(
        "the text encoder of a Diffusers folder",
        ("text_model.encoder.", "encoder.layers.0.self_attn."),
    ),
    Kind("a tiny VAE for previews (TAESD)", ("encoder.layers.", "decoder.layers.", "taesd_")),
)


def kind_of(file: TensorFile, layouts: Collection[FileLayout]) -> Kind:
    """Return the kind of a file.

    Args:
        file: The file.
        layouts: How single files name the networks of the known families.
    """
    names = tuple(file.tensors)
    if is_hypernetwork(file):
        return HYPERNETWORK
    if not names and any(type(key) is int for key in file.other_keys):
        return HYPERNETWORK
    claimed = _claimed(names, layouts)
    for kind in OTHERS:
        if kind.fits((*names, *file.text_keys), claimed):
            return kind
    return _model_components(names, layouts) or _by_shape(file)


def lacking(file: TensorFile, layouts: Collection[FileLayout]) -> tuple[str, ...]:
    """Return the names of the networks that a file lacks of the family nearest to it.

    Empty if it has no tensor of any family under single-file names.
    """
    names = tuple(file.tensors)

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in names)

    def nearness(layout: FileLayout) -> tuple[int, int]:
        namings = [component.naming for component in layout.components]
        claims = [naming.prefix + claim for naming in namings for claim in naming.claims]
        return sum(map(has, claims)), sum(has(naming.root) for naming in namings)

    nearest = max(layouts, key=nearness)
    if nearness(nearest) == (0, 0):
        return ()
    return tuple(
        component.name for component in nearest.components if not has(component.naming.root)
    )


def _claimed(names: tuple[str, ...], layouts: Collection[FileLayout]) -> tuple[str, ...]:
    """Return prefixes that indicate another kind, but belong to a family complete in the file."""
    claimed: set[str] = set()
    for layout in layouts:
        modern = [layout.modern(name) for name in names]
        namings = [p.naming for p in layout.components if p.kind is not ComponentKind.VAE]
        special = {naming.prefix + claim for naming in namings for claim in naming.claims}
        needed = special | {naming.prefix for naming in namings}
        if all(any(name.startswith(start) for name in modern) for start in needed):
            claimed |= special | {p.naming.root for p in layout.of_kind(ComponentKind.TEXT)}
    return tuple(claimed)


def _model_components(names: tuple[str, ...], layouts: Collection[FileLayout]) -> Kind | None:
    """Return the kind of a base model or of one or two of its components, or None."""
    components = [component for layout in layouts for component in layout.components]
    texts = tuple(
        component.naming.root for component in components if component.kind is ComponentKind.TEXT
    )
    has_text = any(name.startswith(texts) for name in names)
    has_vae = _has(names, components, ComponentKind.VAE, bare=True)
    if _has(names, components, ComponentKind.UNET, bare=False):
        if has_text:
            return BASE_MODEL
        return UNET_AND_VAE if has_vae else UNET_ALONE
    if _has(names, components, ComponentKind.UNET, bare=True):
        return UNET_ALONE
    if has_vae:
        return DIFFUSERS_VAE if DIFFUSERS_VAE.fits(names) else VAE_ALONE
    if has_text:
        return TEXT_ENCODER_ALONE
    return next((kind for kind in DIFFUSERS_COMPONENTS if kind.fits(names)), None)


def _has(
    names: tuple[str, ...],
    components: Collection[NamedComponent],
    kind: ComponentKind,
    *,
    bare: bool,
) -> bool:
    """Return whether a network is in the file, under its prefix or, if `bare`, without one."""
    namings = [component.naming for component in components if component.kind is kind]
    entries = {naming.prefix + naming.entry for naming in namings}
    entries |= {naming.entry for naming in namings} if bare else set()
    return not entries.isdisjoint(names)


def _by_shape(file: TensorFile) -> Kind:
    """Return EMBEDDING for one tensor of an embedding's shape (diffusers' files); else UNKNOWN."""
    shapes = [tensor.shape for tensor in file.tensors.values()]
    is_embedding = len(shapes) == 1 and len(shapes[0]) in (1, 2)
    if is_embedding and shapes[0][-1] in EMBEDDING_WIDTHS:
        return EMBEDDING
    return UNKNOWN
