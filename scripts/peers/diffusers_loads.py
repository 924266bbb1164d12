"""Test a model folder that Impasto wrote with the installed diffusers."""

import sys
from pathlib import Path

import diffusers
import torch


def main() -> None:
    folder = Path(sys.argv[1])
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder / "tiny-folder", local_files_only=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a sun", num_inference_steps=1, height=64, width=64, output_type="np")
    print(
        f"ok: tiny-folder, an image of {made.images[0].shape} by diffusers {diffusers.__version__}"
    )


if __name__ == "__main__":
    main()
