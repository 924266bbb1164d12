"""torch.compile on a U-Net of the real structure: the number of graphs, no break, no limit."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from impasto.errors import RunError
from impasto.training.compute import compile as compiling

# dynamo inspects gradients of traced tensors (torch 2.13)
pytestmark = pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute of a Tensor that is not a leaf"
)

LEVELS = {
    "sd1": {"attention_head_dim": 8, "widths": (8, 16, 32, 32)},
    "sd2": {"attention_head_dim": (1, 2, 4, 4), "widths": (8, 16, 32, 32),
            "use_linear_projection": True},
    "sdxl": {"attention_head_dim": (1, 2, 4), "widths": (8, 16, 32), "use_linear_projection": True,
             "transformer_layers_per_block": (1, 2, 2)},
}  # fmt: skip
SHAPES = [(2, 8, 8), (2, 8, 16), (2, 16, 8), (1, 8, 8)]  # three buckets, and a short batch


def network(family, layers=2, attentive=3):
    """Build the structure at small widths; with fewer layers and levels with attention."""
    options = dict(LEVELS[family])
    widths = options.pop("widths")
    down = ("CrossAttnDownBlock2D",) * attentive + ("DownBlock2D",) * (4 - attentive)
    up = ("UpBlock2D",) * (4 - attentive) + ("CrossAttnUpBlock2D",) * attentive
    if family == "sdxl":
        down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
        up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=layers,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=8,
        norm_num_groups=4,
        **options,
    ).train()


@pytest.fixture
def dynamo(monkeypatch):
    """torch.compile without code generation: graphs are traced and run eagerly.

    Its settings are restored by hand: monkeypatch would delete them, since no `__dict__` has them.
    """
    found = torch._dynamo
    kept = {
        name: getattr(found.config, name)
        for name in (
            "recompile_limit",
            "accumulated_recompile_limit",
            "fail_on_recompile_limit_hit",
        )
    }
    real = nn.Module.compile

    def traced(self, *args, **options):
        return real(self, *args, **{**options, "backend": "eager", "options": None})

    monkeypatch.setattr(nn.Module, "compile", traced)
    monkeypatch.setattr(compiling, "require_compiler", lambda device: None)
    found.reset()
    found.utils.counters.clear()
    yield found
    found.reset()
    for name, value in kept.items():
        setattr(found.config, name, value)


def step(unet, shapes, lengths=(77,)):
    for batch, height, width in shapes:
        for length in lengths:
            latents = torch.randn(batch, 4, height, width)
            states = torch.randn(batch, length, 8)
            t = torch.randint(0, 1000, (batch,))
            with compiling.within_limit():
                unet(latents, t, encoder_hidden_states=states).sample.square().mean().backward()


def compiled(unet, kind, sizes, tmp_path):
    compiling.compile_unet(
        unet, kind, sizes=sizes, cuda_graphs=False, cache=tmp_path, device=torch.device("cpu")
    )


def test_blocks_of_one_size_are_all_compiled(dynamo, tmp_path):
    """Residual blocks, and half of their layers, have more kinds in SD 1.5 than any usual limit.

    So have half of its layers.
    """
    unet = network("sd1", layers=1, attentive=1)
    compiled(unet, "blocks", 1, tmp_path)
    step(unet, SHAPES[:1])
    counters = dynamo.utils.counters
    assert not counters["graph_break"]
    assert not counters["unimplemented"]
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    assert counters["stats"]["unique_graphs"] > 14


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blocks", "full"])
def test_all_shapes_of_a_run_stay_within_the_limit(kind, dynamo, tmp_path):
    unet = network("sd1")
    compiled(unet, kind, 3 * 2, tmp_path)
    step(unet, SHAPES, lengths=(77, 154))
    counters = dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    if kind == "full":
        assert counters["stats"]["unique_graphs"] == len(SHAPES) * 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_are_one_graph_for_each_shape(family, dynamo, tmp_path):
    unet = network(family)
    compiled(unet, "full", 1, tmp_path)
    step(unet, SHAPES[::3])
    counters = dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2


class Doubling(nn.Module):
    """A custom block: PyTorch does not trace its built-in ones when they are called alone."""

    def forward(self, x):
        return x * 2 + x.shape[0]


def test_more_graphs_than_were_foreseen_end_the_run_in_words(dynamo):
    """Beyond its limit torch.compile would silently continue uncompiled."""
    dynamo.config.recompile_limit = 2
    dynamo.config.fail_on_recompile_limit_hit = True
    block = Doubling()
    block.compile(dynamic=False)
    for size in (1, 2):
        with compiling.within_limit():
            block(torch.zeros(size, 3))
    with pytest.raises(RunError, match="has compiled 2 graphs"), compiling.within_limit():
        block(torch.zeros(3, 3))
