"""Train the tiny tagger, and write it as the files of a WD14 tagger: model.onnx, selected_tags.csv.

pip install -e .[recipes,tagging]
python recipes/tiny/train_tagger.py WORK/node_modules/@iconify-json WORK/tagger

The graph has WD14's input, float32 [N, 448, 448, 3], BGR, 0 to 255, and returns probabilities;
averaging down to 112 pixels and scaling are part of it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import time
from pathlib import Path

import numpy as np
import torch
from annotation_set import CHARACTERS, GENERAL, RATINGS, SIDE, Studio
from torch import Tensor, nn
from torch.nn import functional

CATEGORIES = {
    **dict.fromkeys(RATINGS, 9),
    **dict.fromkeys(GENERAL, 0),
    **dict.fromkeys(CHARACTERS, 4),
}
TAGS = tuple(CATEGORIES)
WIDTHS, BATCH = (24, 48, 96, 160, 224), 64


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution, as in MobileNet (arXiv:1704.04861)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.Hardswish(),
        )


class Tagger(nn.Module):
    """A network from images [N, 3, 112, 112] in -1 to 1 to logits of all tags."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 3, 2, 1), nn.Hardswish()]
        for inner, outer in itertools.pairwise(WIDTHS):
            layers += [Separable(inner, outer, 2), Separable(outer, outer, 1)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * WIDTHS[-1], len(TAGS))

    def forward(self, x: Tensor) -> Tensor:
        """Pool mean and maximum over positions: a thing can be anywhere, and there may be two."""
        found = self.features(x)
        return self.head(torch.cat([found.mean((2, 3)), found.amax((2, 3))], dim=1))


class AsWd14(nn.Module):
    """The tagger with WD14's input and output."""

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.tagger = tagger

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities for [N, 448, 448, 3] BGR images in 0 to 255."""
        x = pixels.permute(0, 3, 1, 2).flip(1)
        return self.tagger(functional.avg_pool2d(x, 4) / 127.5 - 1).sigmoid()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("icons", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    torch.manual_seed(0)
    studio = Studio(options.icons, seed=3)
    examples = [studio.example() for _ in range(options.pictures)]
    pixels = torch.from_numpy(np.stack([e.pixels for e in examples])).permute(0, 3, 1, 2)
    truth = torch.tensor([[tag in e.tags for tag in TAGS] for e in examples]).float()
    tagger = train(pixels, truth, options.steps)
    write(tagger, options.out, [int(n) for n in truth.sum(0)])


def train(pixels: Tensor, truth: Tensor, steps: int) -> Tagger:
    """Train with AdamW and a cosine schedule; binary cross-entropy, rare positives weighted up."""
    tagger = Tagger()
    optimizer = torch.optim.AdamW(tagger.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    weight = ((1 - truth.mean(0)) / truth.mean(0).clamp(min=1e-3)).sqrt().clamp(max=6)
    began = time.perf_counter()
    for step in range(steps):
        chosen = torch.randint(len(pixels), (BATCH,))
        logits = tagger(augmented(pixels[chosen]))
        loss = functional.binary_cross_entropy_with_logits(logits, truth[chosen], pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tagger.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            rate = (step + 1) / (time.perf_counter() - began)
            print(
                f"step {step + 1}: loss {float(loss.detach()):.4f}, {rate:.1f} steps/s", flush=True
            )
    return tagger.eval()


def augmented(pixels: Tensor) -> Tensor:
    """Crop 112 of 128 pixels at random or shrink the whole image, and change the light slightly."""
    x = pixels.float() / 127.5 - 1
    if torch.rand(()) < 0.5:
        x = functional.interpolate(x, size=(112, 112), mode="area")
    else:
        left, top = (int(torch.randint(0, SIDE - 112 + 1, ())) for _ in range(2))
        x = x[..., top : top + 112, left : left + 112]
    gain = 1 + 0.15 * torch.randn(len(x), 1, 1, 1)
    shift = 0.08 * torch.randn(len(x), 3, 1, 1)
    return (x * gain + shift + 0.02 * torch.randn_like(x)).clamp(-1, 1)


def write(tagger: Tagger, out: Path, counts: list[int]) -> None:
    """Write the two files of a WD14 tagger."""
    out.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        AsWd14(tagger),
        (torch.zeros(1, 448, 448, 3),),
        str(out / "model.onnx"),
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "N"}, "output": {0: "N"}},
        dynamo=False,
    )
    with (out / "selected_tags.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tag_id", "name", "category", "count"])
        for number, (name, category) in enumerate(CATEGORIES.items()):
            writer.writerow([number, name.replace(" ", "_"), category, counts[number]])
    size = sum(p.numel() for p in tagger.parameters())
    print(f"{len(TAGS)} tags, {size / 1e6:.2f} M, log2 of chance {math.log2(len(TAGS)):.1f}")


if __name__ == "__main__":
    main()
