"""Reading and writing Diffusers folders: strict in, faithful out, read by diffusers."""

import json
import shutil

import numpy as np
import pytest
import torch
from component_files import TEXT_ENCODER_FILE, UNET_FILE, VAE_FILE
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from impasto.checkpoints.keymap import ComponentKind
from impasto.errors import ConfigError, ModelError
from impasto.models.merging.merging import Mixture, Output, merge_models
from impasto.models.merging.mixing import FORMULAS
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.architectures import find_architecture
from impasto.models.writing.saving import About, MergedWithBase, trained_contents, write_model
from impasto.sampler_table import SAMPLERS
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler, make_grid, save_png


@pytest.fixture
def copy(nano_model, tmp_path):
    return shutil.copytree(nano_model, tmp_path / "copy")


def rewrite(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_an_unused_model_is_identified(nano_model):
    model = load_base_model(nano_model)
    assert model.identity.family.name == "SD 1.x"
    assert model.identity.prediction.name == "epsilon"
    assert "CLIP text encoder" in model.identity.evidence
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_velocity_is_read_from_the_scheduler(copy):
    file = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "prediction_type": "v_prediction"}), encoding="utf-8")
    assert load_base_model(copy).identity.prediction.name == "v_prediction"


def test_text_encoder_names_of_either_transformers_are_read(copy, nano_model):
    file = copy / TEXT_ENCODER_FILE
    tensors = load_file(file)
    assert all(name.startswith("text_model.") for name in tensors)
    save_file({n.removeprefix("text_model."): tensor for n, tensor in tensors.items()}, file)
    old, new = (load_base_model(p).networks["text_encoder"] for p in (copy, nano_model))
    for name, tensor in new.state_dict().items():
        assert torch.equal(old.state_dict()[name], tensor)


def remove_tensor(folder):
    rewrite(folder / UNET_FILE, lambda t: t.pop("conv_in.weight"))


def reshape_tensor(folder):
    rewrite(folder / UNET_FILE, lambda t: t.update({"conv_out.bias": torch.zeros(3, 3)}))


def truncate(folder):
    file = folder / UNET_FILE
    file.write_bytes(file.read_bytes()[:1000])


def remove_part(folder):
    shutil.rmtree(folder / "vae")


def break_json(folder):
    (folder / "unet" / "config.json").write_text("{", encoding="utf-8")


def make_inpainting(folder):
    rewrite(folder / UNET_FILE, lambda t: t.update({"conv_in.weight": torch.zeros(8, 9, 3, 3)}))


def make_foreign(folder):
    file = folder / "text_encoder" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "hidden_act": "relu"}), encoding="utf-8")


def remove_index(folder):
    (folder / "model_index.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_tensor, "conv_in is missing"),
        (reshape_tensor, r"conv_out.bias is \(3, 3\), expected \(4,\)"),
        (truncate, "damaged or cut short"),
        (remove_part, "incomplete"),
        (break_json, "cannot be read as JSON"),
        (make_inpainting, "inpainting: its U-Net takes 9 channels"),
        (make_foreign, "not a model of a family"),
        (remove_index, "without model_index.json"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_damaged_models_are_explained(copy, damage, words):
    damage(copy)
    with pytest.raises(ModelError, match=words):
        load_base_model(copy)


def test_an_export_keeps_frozen_parts_bit_for_bit(nano_model, tmp_path):
    model = load_base_model(nano_model)
    trained = {name: tensor + 1 for name, tensor in model.unet.state_dict().items()}
    contents = trained_contents(model, {"unet": trained}, {}, trained_dtype=torch.float16)
    write_model(contents, tmp_path / "out", "diffusers", About("out"))
    for file in (VAE_FILE, TEXT_ENCODER_FILE):
        assert (tmp_path / "out" / file).read_bytes() == (nano_model / file).read_bytes()
    written = load_file(tmp_path / "out" / UNET_FILE)
    assert all(torch.equal(written[n], t.half()) for n, t in trained.items())


def test_an_export_between_base_and_result_is_what_merging_the_two_gives(nano_model, tmp_path):
    """An export between base and result equals `impasto merge`; unchanged tensors stay
    identical."""
    model = load_base_model(nano_model)
    base = model.unet.state_dict()
    moved = next(iter(base))
    trained = {name: tensor + (name == moved) for name, tensor in base.items()}
    read = open_model(nano_model, OpenOptions())
    exports = {
        ratio: trained_contents(
            model, {"unet": trained}, {}, trained_dtype=torch.float32, merged=merged
        )
        for ratio, merged in ((1.0, None), (0.9, MergedWithBase(read.components, 0.9)))
    }
    for ratio, contents in exports.items():
        write_model(contents, tmp_path / str(ratio), "diffusers", About("out"))
    ends = (str(nano_model), str(tmp_path / "1.0"))
    mixture = Mixture(ends, FORMULAS["weighted-sum"], 0.9)
    output = Output(tmp_path / "merged", "diffusers", {ComponentKind.UNET: torch.float32})
    merge_models(mixture, output, OpenOptions())
    ours, theirs = (load_file(tmp_path / name / UNET_FILE) for name in ("0.9", "merged"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6)
        assert torch.equal(tensor, base[name]) is (name != moved)


@pytest.fixture(scope="module")
def drawer(nano_model):
    """Return a function that draws with the nano model without changing it."""
    return Sampler.of(load_base_model(nano_model))


@pytest.mark.parametrize(("sampler", "scale"), [("ddim", 5.0), ("euler", 1.0), ("dpmpp_2m", 3.0)])
def test_samples_equal_diffusers_pipeline(nano_model, drawer, sampler, scale):
    """Impasto's sampling loop against diffusers' own, from the same initial noise."""
    import diffusers

    prompt = Prompt("a red ball", "blue", 3, 64, 32, 5, scale, sampler)
    ours = np.asarray(drawer.draw(prompt)).astype(int)

    pipeline = StableDiffusionPipeline.from_pretrained(nano_model)
    pipeline.scheduler = getattr(diffusers, SAMPLERS[sampler]).from_config(
        pipeline.scheduler.config
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 4, 8), generator=torch.Generator().manual_seed(3))
    theirs = pipeline(
        prompt.text, negative_prompt="blue", latents=noise, num_inference_steps=5,
        guidance_scale=scale, width=64, height=32,
    ).images[0]  # fmt: skip
    assert abs(ours - np.asarray(theirs).astype(int)).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_repeats_itself_and_leaves_torchs_randomness_alone(drawer, sampler):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (
        np.asarray(drawer.draw(Prompt("x", width=32, height=32, steps=4, sampler=sampler)))
        for _ in range(2)
    )
    assert np.array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_samplers_are_named(drawer):
    with pytest.raises(ConfigError, match="no sampler 'magic'"):
        drawer.draw(Prompt("x", sampler="magic"))


def test_settings_are_in_the_file(tmp_path):
    prompt = Prompt("a cat, (sitting)", "blurry", 5, 64, 32, 4, 2.5, "euler")
    save_png(Image.new("RGB", (64, 32)), tmp_path / "a.png", prompt)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"] == (
            "a cat, (sitting)\nNegative prompt: blurry\n"
            "Steps: 4, Sampler: euler, CFG scale: 2.5, Seed: 5, Size: 64x32"
        )


def test_a_grid_holds_every_picture():
    images = [Image.new("RGB", (8, 4), (40 * i, 0, 0)) for i in range(5)]
    grid = make_grid(images, 2, gap=2)
    assert grid.size == (18, 16)
    corners = [(i % 2 * 10, i // 2 * 6) for i in range(5)]
    assert [grid.getpixel(corner)[0] for corner in corners] == [0, 40, 80, 120, 160]


@pytest.mark.parametrize(("name", "millions"), [("tiny", 5.056), ("sd1", 859.5), ("sd2", 865.9)])
def test_architectures_have_the_known_sizes(name, millions):
    """SD 1's U-Net has 859.52 M parameters, SD 2's 865.91 M."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(find_architecture(name).configs[0])
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
