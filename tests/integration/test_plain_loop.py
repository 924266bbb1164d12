"""The trainer against a plain loop over diffusers and transformers, step by step.

The loop shares only the random numbers and the order of the data with the trainer: images are read
by Pillow, encoded by diffusers' VAE and noised by its scheduler, and captions are encoded by
transformers' tokenizer and text encoder.
"""

import functools

import numpy as np
import pytest
import torch
from conftest import draw_images
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from impasto.config.load import build_run_config
from impasto.datasets.batching import build_epoch_sampler
from impasto.datasets.build import survey
from impasto.diffusion.randomness import PerSampleRandomness
from impasto.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
STEPS = 4


def moments(vae, path):
    """Return mean and log variance in the half precision of the cache."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
    with torch.no_grad():
        found = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    return found.mean.half().float()[0], found.logvar.half().float()[0]


def words_of(path):
    return path.with_suffix(".txt").read_text(encoding="utf-8")


def plain_losses(config, model, prediction_type, words_of=words_of, weight_of=lambda _: 1.0):
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet").train()
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae").eval()
    encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.optimizer.lr)
    plan = survey(config).plan
    sampler = build_epoch_sampler(config, plan, num_processes=1)
    moments_of = functools.cache(functools.partial(moments, vae))
    losses = []
    for step in range(STEPS):
        optimizer_step = sampler.optimizer_step(step)
        total = 0.0
        for batch in optimizer_step.micro_batches:
            records = [plan.images[sample.image].record for sample in batch.samples]
            randomness = PerSampleRandomness(
                config.seed, step, batch.positions, optimizer_step.size
            )
            means, logvars = zip(*(moments_of(r.path) for r in records), strict=True)
            spread = torch.exp(0.5 * torch.stack(logvars))
            sample = randomness.normal(tuple(means[0].shape), "posterior")
            latents = (torch.stack(means) + spread * sample) * vae.config.scaling_factor
            noise = randomness.normal(tuple(latents.shape[1:]), "noise")
            t = (randomness.uniform("timestep") * 1000).long()
            ids = tokenizer(
                [words_of(r.path) for r in records],
                padding="max_length",
                max_length=77,
                return_tensors="pt",
            ).input_ids
            with torch.no_grad():
                states = encoder(ids).last_hidden_state
            output = unet(scheduler.add_noise(latents, noise, t), t, states).sample
            targets = {
                "epsilon": lambda: noise,  # noqa: B023 - called at once
                "v_prediction": lambda: scheduler.get_velocity(latents, noise, t),  # noqa: B023
            }
            error = torch.nn.functional.mse_loss(
                output, targets[prediction_type](), reduction="none"
            )
            weights = torch.tensor([weight_of(record.path) for record in records])
            loss = (error.mean(dim=(1, 2, 3)) * weights).sum() / optimizer_step.size
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def trained_losses(run_values, accumulation, **changes):
    """Train with settings; return them and the losses."""
    training = {
        "max_steps": STEPS, "batch_size": 4, "gradient_accumulation_steps": accumulation,
    }  # fmt: skip
    config = build_run_config({**run_values, "training": training, **changes}, source="test")
    run = train(config)
    return config, [record["loss"] for record in run.read_metrics() if "loss" in record]


def assert_agree(ours, plain):
    assert ours[0] == pytest.approx(plain[0], rel=1e-5)
    assert ours == pytest.approx(plain, rel=1e-4)  # Adam's first steps magnify rounding


def test_losses_equal_a_plain_loop_step_by_step(run_values, nano_model):
    config, ours = trained_losses(run_values, 1)
    assert_agree(ours, plain_losses(config, nano_model, "epsilon"))


def test_velocities_and_regularisation_images_count_as_the_plain_loop_weighs_them(
    run_values, nano_model, pictures, tmp_path
):
    """As in train_db.py, each loss is weighted, and then averaged over all images of the step.

    Seven batches are an epoch: its steps have three, three and one. Regularisation images have no
    caption files: their caption is the name of their class.
    """
    regularisation = draw_images(tmp_path / "balls", 5, seed=3, captions=False)
    subsets = [
        {"image_dir": str(pictures)},
        {"image_dir": str(regularisation), "is_reg": True, "class_tokens": "a ball"},
    ]
    sizes = {k: v for k, v in run_values["dataset"].items() if k != "image_dir"}
    dataset = {**sizes, "prior_loss_weight": 0.3, "datasets": [{"subsets": subsets}]}
    model = {"path": str(nano_model), "prediction_type": "v_prediction"}
    config, ours = trained_losses(run_values, 3, dataset=dataset, model=model)
    plain = plain_losses(
        config,
        nano_model,
        "v_prediction",
        words_of=lambda path: "a ball" if path.parent == regularisation else words_of(path),
        weight_of=lambda path: 0.3 if path.parent == regularisation else 1.0,
    )
    assert_agree(ours, plain)
