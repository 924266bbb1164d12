"""The key map is one table for both directions: a bijection, on the recorded lists and any size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impasto.checkpoints.key_rows import UNetLayout, VaeLayout
from impasto.checkpoints.keymap import ComponentMap, ema_name, layout_of
from impasto.checkpoints.ldm import merge_ldm, split_ldm
from impasto.checkpoints.tensors import LazyTensor
from impasto.models.families import SD1, SD2_BASE, SDXL, file_layouts


def lazy(shape) -> LazyTensor:
    return LazyTensor(tuple(shape), torch.float32, lambda: torch.zeros(shape))


@pytest.mark.parametrize(
    ("file", "family"),
    [("sd15_map.json", SD1), ("sd21_map.json", SD2_BASE), ("sdxl_map.json", SDXL)],
)
def test_full_key_lists_go_there_and_back(golden, file, family):
    """Every key of the original layout has the counterpart that sd-scripts' converters give it."""
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
    for rest in (taken.ldm_only, {}):  # without the rest, it is made anew
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


def unet_names(layout: UNetLayout) -> set[str]:
    """diffusers' names of a U-Net of this layout, a few of each module."""
    names = {"conv_in.weight", "conv_out.bias", "time_embedding.linear_1.weight"}
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


@given(unet_layouts())
def test_any_unet_goes_there_and_back(layout):
    names, naming = unet_names(layout), SD1.unet.naming
    there = naming.map_of_ours(names)
    ldm = {name: there.to_ldm(name) for name in names}
    assert len(set(ldm.values())) == len(names)
    assert UNetLayout.of_diffusers(names) == layout
    inner = {name.removeprefix(there.prefix) for name in ldm.values()}
    found = UNetLayout.of_ldm(inner)
    assert found == layout
    back = naming.map_of_file(ldm.values())
    assert all(back.to_diffusers(ldm[name]) == (name,) for name in names)


@given(st.integers(1, 5), st.integers(1, 4))
def test_any_vae_goes_there_and_back(levels, layers):
    names = {
        f"{half}_blocks.{level}.resnets.{n}.{name}"
        for half, count in (("encoder.down", layers), ("decoder.up", layers + 1))
        for level in range(levels)
        for n in range(count)
        for name in ("norm1.weight", "conv_shortcut.bias")
    } | {"encoder.mid_block.attentions.0.to_q.weight", "decoder.conv_norm_out.bias"}
    assert VaeLayout.of_diffusers(names) == VaeLayout(levels, layers)
    require_both_ways(SD1.vae.naming.map_of_ours(names), names)


def require_both_ways(table: ComponentMap, names: set[str]) -> None:
    ldm = {name: table.to_ldm(name) for name in names}
    assert len(set(ldm.values())) == len(names)
    assert all(table.to_diffusers(ldm[name]) == (name,) for name in names)


@given(st.integers(1, 40))
def test_any_text_encoder_goes_there_and_back(layers):
    names = {f"encoder.layers.{n}.{x}" for n in range(layers) for x in (
        "layer_norm1.weight", "mlp.fc2.bias", "self_attn.out_proj.weight"
    )} | {"final_layer_norm.bias", "embeddings.position_embedding.weight"}  # fmt: skip
    for family in (SD1, SD2_BASE):
        require_both_ways(family.text_encoders[0].naming.map_of_ours(names), names)


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
