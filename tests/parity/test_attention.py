"""Attention that overflows float16 unless it is computed in float32, as in SD 2.1."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from impasto.models.networks.attention import FusedAttention
from impasto.models.networks.loading import load_base_model


def attention(processor, *, upcast=False, scale=1.0):
    torch.manual_seed(0)
    module = Attention(
        64, cross_attention_dim=32, heads=2, dim_head=32, upcast_attention=upcast,
        processor=processor,
    ).eval()  # fmt: skip
    with torch.no_grad():
        module.to_q.weight *= scale
        module.to_k.weight *= scale
    return module


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 9, 64, generator=generator), torch.randn(2, 5, 32, generator=generator)


def test_it_equals_diffusers_in_float32():
    x, context = inputs()
    expected = attention(AttnProcessor2_0())(x, context)
    torch.testing.assert_close(attention(FusedAttention(upcast=True))(x, context), expected)
    own = Attention(64, heads=2, dim_head=32, processor=AttnProcessor2_0()).eval()
    expected = own(x)
    own.set_processor(FusedAttention(upcast=True))
    torch.testing.assert_close(own(x), expected)


def test_it_stays_finite_where_float16_overflows():
    """Products of queries and keys of about 300 are far beyond 65,504."""
    x, context = inputs()
    exact = attention(AttnProcessor(), scale=500.0)(x, context)
    half = attention(AttnProcessor(), scale=500.0).half()
    assert not half(x.half(), context.half()).isfinite().all(), "this no longer overflows"
    upcast = attention(FusedAttention(upcast=True), scale=500.0).half()(x.half(), context.half())
    assert upcast.dtype == torch.float16
    assert upcast.isfinite().all()
    torch.testing.assert_close(upcast.float(), exact, atol=0.02, rtol=0.05)


def test_it_holds_under_autocast():
    x, context = inputs()
    upcast, plain = (
        attention(FusedAttention(upcast=True), scale=500.0),
        attention(AttnProcessor(), scale=500),
    )
    with torch.autocast("cpu", torch.float16):
        assert not plain(x, context).isfinite().all()
        assert upcast(x, context).isfinite().all()


@pytest.mark.parametrize(("model", "expected"), [("nano_model", 0), ("nano_sd2_model", 1)])
def test_the_family_row_decides_where_the_config_is_silent(request, model, expected):
    unet = load_base_model(request.getfixturevalue(model)).unet
    found = {isinstance(p, FusedAttention) for p in unet.attn_processors.values()}
    assert found == {bool(expected)}


def test_the_sources_config_comes_first(nano_sd2_model, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(nano_sd2_model, tmp_path / "model")
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "upcast_attention": False}), encoding="utf-8")
    processors = load_base_model(folder).unet.attn_processors.values()
    assert not any(isinstance(p, FusedAttention) for p in processors)
