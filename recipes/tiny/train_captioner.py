"""Train the tiny BLIP captioner from random weights, with the words of its captions as vocabulary.

pip install -e .[recipes]
python recipes/tiny/train_captioner.py WORK/node_modules/@iconify-json WORK/captioner
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from annotation_set import Studio
from pictures import NAMES, article
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

SIDE, WIDTH, BATCH, LENGTH = 112, 128, 32, 14
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("icons", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=4, help="of the images")
    parser.add_argument("--start-from", type=Path, help="a captioner to continue training")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    studio = Studio(options.icons, seed=options.seed)
    examples = [studio.example() for _ in range(options.pictures)]
    pixels = torch.from_numpy(np.stack([e.pixels for e in examples])).permute(0, 3, 1, 2)
    processor = build_processor()
    texts = processor.tokenizer(
        [f"[DEC] {e.caption}" for e in examples],
        add_special_tokens=False, padding="max_length", max_length=LENGTH, return_tensors="pt",
    )  # fmt: skip
    ids = with_end(texts.input_ids, processor)
    model = build_model(processor)
    if options.start_from is not None:
        model = BlipForConditionalGeneration.from_pretrained(options.start_from).float()
    train(model, pixels, ids, options.minutes, options.lr)
    model.eval().half().save_pretrained(options.out)
    processor.save_pretrained(options.out)


def build_processor() -> BlipProcessor:
    """Build a processor whose vocabulary is the whole words of the captions."""
    words = {w for name in NAMES for w in article(name).split()} | {"and"}
    vocabulary = {word: n for n, word in enumerate((*SPECIAL, *sorted(words)))}
    tokenizer = BertTokenizerFast(
        vocab=vocabulary, additional_special_tokens=["[DEC]", "[ENC]"], model_max_length=64
    )
    images = BlipImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=DEVIATION
    )
    return BlipProcessor(images, tokenizer)


def with_end(ids: Tensor, processor: BlipProcessor) -> Tensor:
    """Return token ids with [SEP] in place of the first padding token."""
    ids = ids.clone()
    ends = (ids != processor.tokenizer.pad_token_id).sum(1).clamp(max=ids.shape[1] - 1)
    ids[torch.arange(len(ids)), ends] = processor.tokenizer.sep_token_id
    return ids


def build_model(processor: BlipProcessor) -> BlipForConditionalGeneration:
    """Build a BLIP of 2 million parameters."""
    tokenizer = processor.tokenizer
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    config = BlipConfig(
        text_config={
            **shared,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": WIDTH,
            "num_hidden_layers": 3,
            "max_position_embeddings": 64,
            "projection_dim": WIDTH,
            "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "label_smoothing": 0.0,
        },
        vision_config={
            **shared, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 16,
            "projection_dim": WIDTH,
        },
        projection_dim=WIDTH,
    )  # fmt: skip
    model = BlipForConditionalGeneration(config)
    for module in model.modules():  # with the vision tower's default of 1e-10 or so it never learns
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            nn.init.normal_(module.weight, std=0.03)
    return model


def train(
    model: BlipForConditionalGeneration, pixels: Tensor, ids: Tensor, minutes: float, lr: float
) -> None:
    """Train with AdamW, whose learning rate falls with the elapsed time."""
    model.train()
    pad = model.config.text_config.pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    began, step = time.perf_counter(), 0
    while (passed := (time.perf_counter() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 - passed) ** 1.2)
        chosen = torch.randint(len(pixels), (BATCH,))
        x = (lighted(pixels[chosen]) - mean) / deviation
        tokens = ids[chosen]
        attention = (tokens != pad).long()
        images = model.vision_model(pixel_values=x).last_hidden_state
        logits = model.text_decoder(
            input_ids=tokens, attention_mask=attention, encoder_hidden_states=images
        ).logits
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=pad
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            rate = step / (time.perf_counter() - began)
            print(f"step {step}: loss {float(loss.detach()):.4f}, {rate:.2f} steps/s", flush=True)


def lighted(pixels: Tensor) -> Tensor:
    """Return random crops of 112 of 128 pixels, in 0 to 1, with slightly changed light."""
    x = pixels.float() / 255
    if torch.rand(()) < 0.5:
        x = functional.interpolate(x, size=(SIDE, SIDE), mode="area")
    else:
        left, top = (int(torch.randint(0, 17, ())) for _ in range(2))
        x = x[..., top : top + SIDE, left : left + SIDE]
    return (x * (1 + 0.1 * torch.randn(len(x), 1, 1, 1)) + 0.01 * torch.randn_like(x)).clamp(0, 1)


if __name__ == "__main__":
    main()
