"""DeepDanbooru v3 in torch, from the file `model-resnet_custom_v3.pt` that A1111 downloads.

KichangKim/DeepDanbooru, `resnet_custom_v3`, ported by AUTOMATIC1111/TorchDeepDanbooru with batch
norms folded into convolutions, which are numbered `n_Conv_0` to `n_Conv_178` in order of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from impasto.annotate.profiles import DEEPDANBOORU
from impasto.annotate.tag_tables import of_names
from impasto.checkpoints.pickles import load_pickle
from impasto.errors import ModelError

STAGES = ((256, 2), (512, 7), (1024, 19), (1024, 19), (2048, 2), (4096, 2))
"""(output channels, further blocks after the first) of each stage."""

SHORTCUT_LAST = 3  # in this stage the graph has the shortcut after the block's other convolutions


class DeepDanbooruTagger:
    """A DeepDanbooru tagger, loaded from its file.

    Args:
        file: `model-resnet_custom_v3.pt`.
        device: The device on which it computes.

    Raises:
        ModelError: The file is another model, damaged, or refused as unsafe.
    """

    profile = DEEPDANBOORU

    def __init__(self, file: Path, device: torch.device) -> None:
        if file.suffix.lower() in (".h5", ".keras"):
            raise ModelError(
                f"{file} is a Keras model, which needs TensorFlow. Use the same model as "
                f"model-resnet_custom_v3.pt (A1111's, in models/torch_deepdanbooru) or as "
                f"deepdanbooru.onnx with its tags.txt."
            )
        content = load_pickle(file)
        names = content.get("tags") if isinstance(content, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ModelError(f"{file} has no list of tags: it is not DeepDanbooru for torch.")
        tensors = {k: v.float() for k, v in content.items() if isinstance(v, Tensor)}
        network = ResNetCustomV3(len(names), _widths_of(tensors, file))
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(f"{file} is not DeepDanbooru's resnet_custom_v3: {reason}") from error
        self.table = of_names(names)
        self._device = device
        self._network = network.to(device).eval()

    @torch.no_grad()
    def scores(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return [N, rows] probabilities for uint8 RGB squares."""
        batch = torch.from_numpy(self.profile.batch(pixels)).to(self._device)
        found: np.ndarray = self._network(batch.permute(0, 3, 1, 2)).cpu().numpy()
        return found


class ResNetCustomV3(nn.Module):
    """The network: a stem, six stages of bottleneck blocks, a convolution, the mean, a sigmoid.

    Args:
        tags: The number of tags.
        widths: Channels of the stem and of each stage; 64 and those in `STAGES`.
    """

    def __init__(self, tags: int, widths: Sequence[int]) -> None:
        super().__init__()
        shapes = [*_convolutions(widths), (widths[-1], tags, 1, 1)]
        for number, (inner, outer, kernel, stride) in enumerate(shapes):
            bias = number < len(shapes) - 1
            layer = nn.Conv2d(inner, outer, kernel, stride, bias=bias)
            self.add_module(f"n_Conv_{number}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, tags] probabilities for [N, 3, 512, 512] images in [0, 1]."""
        layers: Iterator[Any] = iter(self.children())
        x = functional.relu(_same(next(layers), x))
        x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, 2)
        for stage, (_, more) in enumerate(STAGES):
            x = _first_block(layers, x, shortcut_last=stage == SHORTCUT_LAST)
            for _ in range(more):
                x = functional.relu(x + _branch(layers, x))
        return next(layers)(x).mean((2, 3)).sigmoid()  # type: ignore[no-any-return]


def _convolutions(widths: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield (in, out, kernel, stride) of all convolutions but the last, in order of the graph."""
    yield 3, widths[0], 7, 2
    inner = widths[0]
    for stage, (_, more) in enumerate(STAGES):
        outer, stride = widths[stage + 1], 1 if stage == 0 else 2
        shortcut = (inner, outer, 1, stride)
        narrow = outer // 4
        branch = [(inner, narrow, 1, 1), (narrow, narrow, 3, stride), (narrow, outer, 1, 1)]
        yield from [*branch, shortcut] if stage == SHORTCUT_LAST else [shortcut, *branch]
        for _ in range(more):
            yield outer, outer // 4, 1, 1
            yield outer // 4, outer // 4, 3, 1
            yield outer // 4, outer, 1, 1
        inner = outer


def _first_block(layers: Iterator[Any], x: Tensor, *, shortcut_last: bool) -> Tensor:
    if shortcut_last:
        changed = _branch(layers, x)
        return functional.relu(next(layers)(x) + changed)
    shortcut = next(layers)(x)
    return functional.relu(shortcut + _branch(layers, x))


def _branch(layers: Iterator[Any], x: Tensor) -> Tensor:
    x = functional.relu(next(layers)(x))
    x = functional.relu(_same(next(layers), x))
    return next(layers)(x)  # type: ignore[no-any-return]


def _same(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a layer with TensorFlow's SAME padding, which pads more on the right and the bottom."""
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    total = kernel - stride if x.shape[-1] % stride == 0 else kernel - x.shape[-1] % stride
    before = total // 2
    padded: Tensor = layer(functional.pad(x, (before, total - before, before, total - before)))
    return padded


def _widths_of(tensors: dict[str, Tensor], file: Path) -> list[int]:
    """Return the channels of the stem and the stages in a file; tests use smaller ones."""
    try:
        widths = [tensors["n_Conv_0.weight"].shape[0]]
        number = 1
        for stage, (_, more) in enumerate(STAGES):
            first = number + 3 if stage == SHORTCUT_LAST else number
            widths.append(tensors[f"n_Conv_{first}.weight"].shape[0])
            number += 4 + 3 * more
    except KeyError as error:
        raise ModelError(
            f"{file} is not DeepDanbooru's resnet_custom_v3: {error} is missing."
        ) from error
    except IndexError as error:
        raise ModelError(
            f"{file} is not DeepDanbooru's resnet_custom_v3: a weight in it is a single number."
        ) from error
    return widths
