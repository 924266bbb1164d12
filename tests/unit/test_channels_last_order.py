"""8-bit optimizers leave weights in their order in memory, and in their place."""

import pytest
import torch
from torch import nn

from impasto.training.channels_last import keep_order
from impasto.training.optim.chunked import ChunkedOptimizer, ChunkRules

bitsandbytes = pytest.importorskip("bitsandbytes")


def adam(groups):
    return bitsandbytes.optim.AdamW8bit(groups, lr=0.1, min_8bit_size=0)


def chunked(groups):
    return ChunkedOptimizer([{**group, "lr": 0.1} for group in groups], adam, ChunkRules())


def stepped(build, memory_format):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3).to(memory_format=memory_format)
    optimizer = build([{"params": [conv.weight]}])
    keep_order(optimizer)
    place = conv.weight.data_ptr()
    for _ in range(3):
        conv(torch.ones(1, 8, 4, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert conv.weight.data_ptr() == place
    assert conv.weight.is_contiguous(memory_format=memory_format)
    return conv.weight.detach()


@pytest.mark.parametrize("build", [adam, chunked])
def test_the_order_stays_and_so_do_the_numbers(build):
    last, usual = (
        stepped(build, order) for order in (torch.channels_last, torch.contiguous_format)
    )
    torch.testing.assert_close(last, usual)
