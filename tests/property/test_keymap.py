"""The key map is one table for both directions: a bijection, on recorded lists and any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from two_encoders import TWO

from impasto.checkpoints.key_rows import UNetLayout, VaeLayout
from impasto.checkpoints.keymap import ComponentMap, ema_name, layout_of
from impasto.checkpoints.ldm import merge_ldm, split_ldm
from impasto.checkpoints.tensors import LazyTensor
from impasto.models.families import FAMILIES, SD1, SD2_BASE, SDXL, file_layouts

EVERY = (*FAMILIES, TWO)
"""All families of the table, and one that is only a row."""


def lazy(shape) -> LazyTensor:
    return LazyTensor(tuple(shape), torch.float32, lambda: torch.zeros(shape))


@pytest.mark.parametrize(
    ("file", "family"),
    [("sd15_map.json", SD1), ("sd21_map.json", SD2_BASE), ("sdxl_map.json", SDXL)],
)
def test_full_key_lists_go_there_and_back(golden, file, family):
    """Every key of the original layout maps to the one that sd-scripts' converters give, and
    back."""
    recorded = golden(file)
    layout = layout_of(recorded, file_layouts())
    assert layout == family.layout
    taken = split_ldm({name: lazy(row["shape"]) for name, row in recorded.items()}, layout)
    assert taken.foreign == taken.stale == ()
    seen = set()
    for name, row in recorded.items():
        if row["to"] is None:
            assert name in taken.ldm_only, name
            continue
        for target in [row["to"]] if isinstance(row["to"], str) else row["to"]:
            part, _, ours = target.partition(".")
            assert ours.removeprefix("text_model.") in taken.components[part], name
            seen.add(target.replace(".text_model.", "."))
    assert seen == {f"{part}.{name}" for part, names in taken.components.items() for name in names}
    for rest in (taken.ldm_only, {}):  # if others are missing, it is generated
        back = merge_ldm(taken.components, rest, layout)
        assert {n: t.shape for n, t in back.items()} == {
            n: tuple(row["shape"]) for n, row in recorded.items()
        }


@st.composite
def unet_layouts(draw):
    levels = draw(st.integers(1, 5))
    attention = draw(st.lists(st.booleans(), min_size=levels, max_size=levels))
    return UNetLayout(tuple(attention), draw(st.integers(1, 4)))


RESNET = ("norm1.weight", "conv1.bias", "time_emb_proj.weight", "conv_shortcut.weight")


def unet_names(layout: UNetLayout, family) -> set[str]:
    """Return diffusers' names of a U-Net of this layout, a few per module."""
    names = {"conv_in.weight", "conv_out.bias", "time_embedding.linear_1.weight"}
    if family.takes_pooled:
        names |= {"add_embedding.linear_1.weight", "add_embedding.linear_2.bias"}
    names |= {f"mid_block.resnets.{n}.{name}" for n in (0, 1) for name in RESNET}
    levels = len(layout.attention)
    for half, layers in (("down", layout.layers), ("up", layout.layers + 1)):
        for level in range(levels):
            block = f"{half}_blocks.{level}"
            has = layout.attention[level if half == "down" else levels - 1 - level]
            for n in range(layers):
                names |= {f"{block}.resnets.{n}.{name}" for name in RESNET}
                if has:
                    names |= {f"{block}.attentions.{n}.{x}.weight" for x in ("norm", "proj_in")}
            if level < levels - 1:
                names.add(f"{block}.{half}samplers.0.conv.weight")
    return names


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.key)
@given(layout=unet_layouts())
def test_any_unet_goes_there_and_back(family, layout):
    names, naming = unet_names(layout, family), family.unet.naming
    there = naming.map_of_ours(names)
    ldm = {name: there.to_ldm(name) for name in names}
    assert len(set(ldm.values())) == len(names)
    assert UNetLayout.of_diffusers(names) == layout
    inner = {name.removeprefix(there.prefix) for name in ldm.values()}
    found = UNetLayout.of_ldm(inner)
    assert found == layout
    back = naming.map_of_file(ldm.values())
    assert all(back.to_diffusers(ldm[name]) == (name,) for name in names)
    pooled = [name for name in inner if name.startswith("label_emb.0.")]
    assert len(pooled) == (2 if family.takes_pooled else 0)


def vae_names(levels: int, layers: int) -> set[str]:
    """Return diffusers' names of a VAE with these levels and layers, a few per module."""
    return {
        f"{half}_blocks.{level}.resnets.{n}.{name}"
        for half, count in (("encoder.down", layers), ("decoder.up", layers + 1))
        for level in range(levels)
        for n in range(count)
        for name in ("norm1.weight", "conv_shortcut.bias")
    } | {"encoder.mid_block.attentions.0.to_q.weight", "decoder.conv_norm_out.bias"}


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.key)
@given(levels=st.integers(1, 5), layers=st.integers(1, 4))
def test_any_vae_goes_there_and_back(family, levels, layers):
    names = vae_names(levels, layers)
    assert VaeLayout.of_diffusers(names) == VaeLayout(levels, layers)
    require_both_ways(family.vae.naming.map_of_ours(names), names)


def require_both_ways(table: ComponentMap, names: set[str]) -> None:
    ldm = {name: table.to_ldm(name) for name in names}
    assert len(set(ldm.values())) == len(names)
    assert all(table.to_diffusers(ldm[name]) == (name,) for name in names)


def text_names(encoder, layers: int) -> set[str]:
    """Return transformers' names of a text encoder with this many layers, a few per module."""
    of_layers = {f"encoder.layers.{n}.{x}" for n in range(layers) for x in (
        "layer_norm1.weight", "mlp.fc2.bias", "self_attn.out_proj.weight"
    )}  # fmt: skip
    whole = {f"final_layer_norm.{x}" for x in ("weight", "bias")}
    whole |= {"embeddings.position_embedding.weight"}
    return of_layers | whole | ({"text_projection.weight"} if encoder.text.pooled else set())


ENCODERS = [
    pytest.param(encoder, id=f"{family.key} {encoder.name}")
    for family in EVERY
    for encoder in family.text_encoders
]


@pytest.mark.parametrize("encoder", ENCODERS)
@given(layers=st.integers(1, 40))
def test_any_text_encoder_goes_there_and_back(encoder, layers):
    names = text_names(encoder, layers)
    require_both_ways(encoder.naming.map_of_ours(names), names)


SQUARE = ("_proj.weight", ".to_q.weight")


def tensors_of(names: set[str]) -> dict[str, LazyTensor]:
    """Return distinct tensors; those that files fuse, transpose or convolve are matrices."""
    shapes = {name: (3, 3) if name.endswith(SQUARE) else (2,) for name in sorted(names)}
    shapes |= {name: (3, 2) for name in shapes if name == "text_projection.weight"}
    return {
        name: LazyTensor.of(torch.full(shape, float(number)).tril() + number)
        if len(shape) > 1
        else LazyTensor.of(torch.full(shape, float(number)))
        for number, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.key)
@settings(max_examples=20)
@given(unet=unet_layouts(), levels=st.integers(1, 3), layers=st.integers(1, 4))
def test_any_model_goes_into_one_file_and_back(family, unet, levels, layers):
    """With all networks in one file, none takes another's tensors, and values are preserved."""
    queries = {f"encoder.layers.{n}.self_attn.{letter}_proj.{x}"
               for n in range(layers) for letter in "qkv" for x in ("weight", "bias")}  # fmt: skip
    components = {
        family.unet.name: tensors_of(unet_names(unet, family)),
        family.vae.name: tensors_of(vae_names(levels, layers)),
        **{e.name: tensors_of(text_names(e, layers) | queries) for e in family.text_encoders},
    }
    one_file = merge_ldm(components, {}, family.layout)
    counts = {encoder.name: layers for encoder in family.text_encoders}
    found = split_ldm(one_file, family.layout, counts)
    assert found.components.keys() == components.keys()
    for name, tensors in components.items():
        assert found.components[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(found.components[name][key].read(), tensor.read()), key


def test_fused_attention_is_taken_apart_in_order():
    fused = torch.arange(12.0).reshape(12, 1)
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    parts = split_ldm({name: LazyTensor.of(fused)}, SD2_BASE.layout).components["text_encoder"]
    layer = "encoder.layers.0.self_attn"
    for letter, rows in zip("qkv", fused.chunk(3), strict=True):
        assert torch.equal(parts[f"{layer}.{letter}_proj.weight"].read(), rows)
    back = SD2_BASE.text_encoders[0].naming.map_of_ours(parts)
    assert back.to_ldm(f"{layer}.k_proj.weight") == name


def test_averaged_names_are_the_originals():
    assert (
        ema_name("model.diffusion_model.input_blocks.0.0.weight")
        == "model_ema.diffusion_modelinput_blocks00weight"
    )
