"""Test Impasto's LoRAs with diffusers' own LoRA loader (with PEFT, from --packages)."""

import sys
from pathlib import Path
from typing import Any

import torch
from write_merges import impasto_does

from impasto.models.networks.loading import load_base_model


def main() -> None:
    folder = Path(sys.argv[1])
    try:
        import peft
    except ImportError:
        print("merges_diffusers.py: not tried, because PEFT is not in --packages")
        return
    import diffusers

    for start, name in (("", "StableDiffusionPipeline"), ("xl-", "StableDiffusionXLPipeline")):
        kind = getattr(diffusers, name)
        pipeline = kind.from_pretrained(folder / f"{start}base", local_files_only=True)
        before = answers(pipeline.unet)
        pipeline.load_lora_weights(folder, weight_name=f"{start}full-lora.safetensors")
        wanted = load_base_model(folder / f"{start}tuned.safetensors")
        found, expected = answers(pipeline.unet), answers(wanted.unet)
        moved = float((expected - before).abs().max())
        off = float((found - expected).abs().max())
        assert off < 1e-4 * moved, (off, moved)  # noqa: S101
        encoders = [pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
        ids = torch.arange(77)[None]
        for theirs, ours in zip(encoders, wanted.text_encoders.values(), strict=False):
            with torch.no_grad():
                states = [model(ids).last_hidden_state for model in (theirs, ours)]
            torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
        print(
            f"ok: {start}full-lora.safetensors in diffusers {diffusers.__version__} with PEFT "
            f"{peft.__version__}: the U-Net answers as the model's does, off by {off:.1e} of "
            f"{moved:.1e}; text encoders too"
        )
        saved(folder, start, kind)


def saved(folder: Path, start: str, kind: Any) -> None:
    """Save a LoRA with diffusers, alpha in its metadata, and compare both programs' merges."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    base = folder / f"{start}base"
    file = folder / f"{start}saved" / "pytorch_lora_weights.safetensors"
    pipeline = kind.from_pretrained(base, local_files_only=True)
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    layers = (["to_q", "to_out.0", "conv1", "proj_in"], ["q_proj", "fc1"])
    for network, names, alpha in zip(parts.values(), layers, (8, 2), strict=True):
        network.add_adapter(
            LoraConfig(r=4, lora_alpha=alpha, target_modules=names, init_lora_weights=False)
        )
    tensors = {f"{n}_lora_layers": get_peft_model_state_dict(p) for n, p in parts.items()}
    kind.save_lora_weights(file.parent, **tensors, **_collate_lora_metadata(parts))
    target = folder / f"{start}saved.safetensors"
    impasto_does("merge", base, "--lora", file, "--out", target, "--overwrite")
    theirs = kind.from_pretrained(base, local_files_only=True)
    theirs.load_lora_weights(file.parent)
    theirs.fuse_lora()
    ours = load_base_model(target)
    torch.testing.assert_close(answers(ours.unet), answers(theirs.unet), rtol=1e-5, atol=1e-5)
    ids = torch.arange(77)[None]
    with torch.no_grad():
        encoders = (theirs.text_encoder, next(iter(ours.text_encoders.values())))
        states = [encoder(ids).last_hidden_state for encoder in encoders]
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)
    print(f"ok: {start}saved.safetensors, a LoRA of diffusers merged as its fuse_lora does it")


def answers(unet: torch.nn.Module) -> torch.Tensor:
    """Return the U-Net's output for fixed noise and text states."""
    generator = torch.Generator().manual_seed(3)
    width = unet.config.cross_attention_dim
    x = torch.randn(2, 4, 16, 16, generator=generator)
    states = torch.randn(2, 77, width, generator=generator)
    pooled = {"text_embeds": torch.randn(2, 64, generator=generator), "time_ids": torch.ones(2, 6)}
    with torch.no_grad():
        return unet(  # type: ignore[no-any-return]
            x, torch.tensor([7, 700]), encoder_hidden_states=states, added_cond_kwargs=pooled
        ).sample


if __name__ == "__main__":
    main()
