"""Images drawn with SDXL, against diffusers' StableDiffusionXLPipeline on Impasto's files."""

import json
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg
from two_encoders import write_model

from impasto.models.families import SDXL, SDXL_V
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.opening import OpenOptions
from impasto.models.reading.pipeline_files import ZERO_TERMINAL_SNR
from impasto.models.writing.conversion import convert_model
from impasto.models.writing.saving import About
from impasto.models.writing.saving import write_model as write_contents
from impasto.sampler_table import SAMPLERS
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler, rescale_advice, rescaled

PROMPT = Prompt("a red ball", "grey", 3, 64, 96, 2, 5.0, "ddim")
KINDS = {"epsilon": (SDXL, {}), "velocity": (SDXL_V, ZERO_TERMINAL_SNR)}
CLOSE = {"atol": 5e-5, "rtol": 1e-5}
"""The tolerance: latents are about 10 in size, and diffusers orders a batch's two samples
otherwise."""


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory, nano_architecture):
    """A file that Impasto wrote, and a folder that it wrote from that file."""
    family, schedule = KINDS[request.param]
    base = tmp_path_factory.mktemp(request.param)
    write_model(nano_architecture, base / "source", family)
    scheduler = base / "source" / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text(encoding="utf-8"))
    scheduler.write_text(json.dumps({**config, **schedule}), encoding="utf-8")
    file, folder = base / "model.safetensors", base / "folder"
    convert_model(str(base / "source"), file, "safetensors", {}, OpenOptions())
    convert_model(str(file), folder, "diffusers", {}, OpenOptions())
    return file, folder


def pipeline_of(file, folder, form):
    """Build the pipeline; for `file` the folder gives only configurations, as the Hub would."""
    if form == "folder":
        found = StableDiffusionXLPipeline.from_pretrained(folder)
    else:
        found = StableDiffusionXLPipeline.from_single_file(
            file, config=str(folder), local_files_only=True
        )
    found.set_progress_bar_config(disable=True)
    # as ours: PyTorch multiplies matrices differently if weights require gradients, which on some
    # CPUs changes the last bit
    for network in (found.unet, found.vae, found.text_encoder, found.text_encoder_2):
        network.requires_grad_(requires_grad=False)
    return found


def noise_of(prompt):
    shape = (1, 4, prompt.height // 8, prompt.width // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(prompt.seed))


def latents_of(pipeline, prompt, negative):
    pipeline.scheduler = getattr(diffusers, SAMPLERS[prompt.sampler]).from_config(
        pipeline.scheduler.config
    )
    return pipeline(
        **texts_of(pipeline, prompt.text, negative), latents=noise_of(prompt), width=prompt.width,
        height=prompt.height, num_inference_steps=prompt.steps, output_type="latent",
        guidance_scale=prompt.guidance_scale, guidance_rescale=prompt.guidance_rescale,
    ).images  # fmt: skip


def texts_of(pipeline, text, negative):
    """Return both texts as diffusers encodes them, in one batch like ours: rounding depends on
    it."""
    if negative is None:
        return {"prompt": text}
    states, _, pooled, _ = pipeline.encode_prompt(
        [text, negative], do_classifier_free_guidance=False
    )
    return {
        "prompt_embeds": states[:1],
        "negative_prompt_embeds": states[1:],
        "pooled_prompt_embeds": pooled[:1],
        "negative_pooled_prompt_embeds": pooled[1:],
    }


@pytest.mark.parametrize("form", ["file", "folder"])
def test_diffusers_computes_the_same_with_what_is_written(written, form):
    file, folder = written
    pipeline = pipeline_of(file, folder, form)
    model = load_base_model(file if form == "file" else folder)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 4, 8, 8, generator=generator)
    added = {
        "text_embeds": torch.randn(2, 20, generator=generator),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64], [80, 60, 4, 2, 64, 64]]),
    }
    states = torch.randn(2, 77, 40, generator=generator)
    call = {"encoder_hidden_states": states, "added_cond_kwargs": added}
    with torch.no_grad():
        ours, theirs = (
            unet(inputs, torch.tensor(500), **call).sample for unet in (model.unet, pipeline.unet)
        )
    assert torch.equal(ours, theirs)
    drawer = Sampler.of(model)
    for sampler in ("ddim", "euler"):
        prompt = replace(PROMPT, sampler=sampler)
        with torch.no_grad():
            found = drawer._latents(prompt)
        torch.testing.assert_close(found, latents_of(pipeline, prompt, "grey"), **CLOSE)


@pytest.mark.parametrize("written", ["epsilon"], indirect=True)
@pytest.mark.parametrize("zeros", [False, True])
def test_an_empty_negative_prompt_is_what_the_folder_says(written, zeros, tmp_path):
    """diffusers uses zeros if no negative prompt is given; in Impasto it is then empty."""
    _, folder = written
    model = load_base_model(folder)
    model = replace(model, contents=replace(model.contents, zeroes_empty_text=zeros))
    write_contents(model.contents, tmp_path / "again", "diffusers", About("again"))
    write_contents(model.contents, tmp_path / "file.safetensors", "safetensors", About("file"))
    pipeline = pipeline_of(None, tmp_path / "again", "folder")
    assert pipeline.config.force_zeros_for_empty_prompt is zeros
    prompt = replace(PROMPT, negative="", guidance_rescale=0.0)
    expected = latents_of(pipeline, prompt, None)
    for path in ("again", "file.safetensors"):  # each has its own option for it
        drawer = Sampler.of(load_base_model(tmp_path / path))
        with torch.no_grad():
            torch.testing.assert_close(drawer._latents(prompt), expected, **CLOSE)
            other = replace(drawer, zeroes_empty_text=not zeros)._latents(prompt)
        assert not torch.allclose(other, expected, atol=1e-3)


def test_guidance_is_rescaled_as_diffusers_does():
    guided, wanted = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = 7 * guided + 1
    for share in (0.0, 0.3, 0.7, 1.0):
        expected = rescale_noise_cfg(guided, wanted, guidance_rescale=share)
        torch.testing.assert_close(rescaled(guided, wanted, share), expected)
    whole = rescaled(guided, wanted, 1.0)
    torch.testing.assert_close(whole.std((1, 2, 3)), wanted.std((1, 2, 3)))


def test_a_rescale_is_advised_where_the_schedule_ends_in_noise_and_never_set(written):
    config = load_base_model(written[1]).scheduler_config
    ends_in_noise = config.get("rescale_betas_zero_snr", False)
    plain = replace(PROMPT, guidance_rescale=0.0)
    assert Prompt("a").guidance_rescale == 0
    found = rescale_advice(config, [plain], "--guidance-rescale 0.7")
    assert ("set --guidance-rescale 0.7: 0.7 is the" in found) == ends_in_noise
    for other in ({"guidance_rescale": 0.2}, {"guidance_scale": 1.0}):
        assert rescale_advice(config, [replace(plain, **other)], "") == ""
    assert "CFG rescale" not in plain.parameters()
    given = replace(PROMPT, guidance_rescale=0.2)
    assert "CFG rescale: 0.2" in given.parameters()
    assert "CFG rescale" not in replace(given, guidance_scale=1.0).parameters()
