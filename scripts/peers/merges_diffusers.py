"""diffusers' own LoRA loader (with PEFT, from --packages) on what Impasto extracted."""

import sys
from pathlib import Path

import torch

from impasto.models.loading import load_base_model


def main() -> None:
    folder = Path(sys.argv[1])
    try:
        import peft
    except ImportError:
        print("merges_diffusers.py: not tried, as PEFT is not in --packages")
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


def answers(unet: torch.nn.Module) -> torch.Tensor:
    """What a U-Net says to fixed noise and words."""
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
