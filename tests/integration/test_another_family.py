"""A family that consists of a table row alone passes all steps that SD 1 passes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import draw_images
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from PIL import Image
from runs import exported, killed_copy
from safetensors.torch import load_file
from two_encoders import TWO, with_row, without_row, write_model

from impasto import files
from impasto.checkpoints.keymap import layout_of
from impasto.checkpoints.kinds import BASE_MODEL, kind_of
from impasto.checkpoints.ldm import merge_ldm, split_ldm
from impasto.checkpoints.reading import open_tensor_file
from impasto.cli.console import Console
from impasto.cli.plan import show_plan
from impasto.data.records import Box, Geometry, Size
from impasto.errors import ConfigError, ModelError
from impasto.models import families
from impasto.models.families import FAMILIES
from impasto.models.family import SizeConditioning
from impasto.models.networks.loading import load_base_model, state_dicts
from impasto.models.networks.making import make_network
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.reading.configs import configs_from
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.text.text_conditioner import ClipTextConditioner
from impasto.models.text.text_states import TextStates
from impasto.models.tokenization.tokens import TextLayout
from impasto.models.writing.conversion import convert_model
from impasto.models.writing.inspection import inspect_model
from impasto.progress import SilentProgress
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler
from impasto.training.builders.methods import build_trainable
from impasto.training.trainer import resume, train

pytestmark = pytest.mark.usefixtures("row")


@pytest.fixture
def row(monkeypatch):
    with_row(monkeypatch)


@pytest.fixture(scope="module")
def two_model(tmp_path_factory, nano_architecture):
    return write_model(nano_architecture, tmp_path_factory.mktemp("models") / "two")


@pytest.fixture
def two_config(train_config, two_model, tmp_path):
    def build(**changes):
        return train_config(model={"path": str(two_model)}, **changes)

    return build


def test_it_is_told_from_the_others_by_its_marks(two_model):
    contents = open_model(two_model)
    assert contents.identity.family is TWO
    for words in (
        "CLIP and OpenCLIP text encoders",
        "linear before attention",
        "a pooled text and sizes too",
    ):
        assert words in contents.identity.evidence
    model = load_base_model(two_model)
    assert list(model.networks) == ["unet", "vae", "text_encoder", "text_encoder_2"]
    assert list(model.tokenizers) == ["text_encoder", "text_encoder_2"]
    assert model.scaling_factor == 0.13025


def test_without_its_row_it_is_refused_by_name(two_model, monkeypatch):
    without_row(monkeypatch)
    with pytest.raises(ModelError, match=r"StableDiffusionXLPipeline with .*text_encoder_2"):
        open_model(two_model)


def test_diffusers_reads_what_is_written_and_encodes_the_same(two_model):
    """The states are those of both penultimate layers, without a norm, and the second's
    projection."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(two_model)
    expected, _, pooled, _ = pipeline.encode_prompt(
        ["a red ball", "!"], device=torch.device("cpu"), do_classifier_free_guidance=False
    )
    model = load_base_model(two_model)
    tokens, states = build_tokens(model, TextLayout()), TextStates.of(model)
    conditioner = ClipTextConditioner(tokens, states, states.shape, sizes=TWO.sizes)
    with pytest.raises(ValueError, match="0 geometries for 2 captions"):
        conditioner(["a red ball", "!"])
    found = conditioner(["a red ball", "!"], [Geometry.whole(Size(64, 64))] * 2)
    torch.testing.assert_close(found.arguments["encoder_hidden_states"][0], expected[0])
    torch.testing.assert_close(found.arguments["added_cond_kwargs"]["text_embeds"][0], pooled[0])
    assert [t("a").ids[0][-1] for t in tokens] == [49407, 0]


def test_numbers_of_sizes_are_those_of_the_paper(two_model):
    pipeline = StableDiffusionXLPipeline.from_pretrained(two_model)
    expected = pipeline._get_add_time_ids((600, 800), (8, 16), (512, 768), torch.float32, 20)
    found = TWO.sizes.numbers(Geometry(Size(800, 600), Box(16, 8, Size(768, 512))))
    assert list(found) == expected[0].tolist()


def test_an_image_may_count_as_one_that_is_drawn():
    cut = Geometry(Size(800, 600), Box(16, 8, Size(768, 512)))
    assert replace(TWO.sizes, as_drawn=True).numbers(cut) == (512, 768, 0, 0, 512, 768)


def test_sizes_are_refused_where_a_model_is_told_none(train_config, nano_model):
    config = train_config(model={"path": str(nano_model), "size_conditioning": "target"})
    with pytest.raises(ConfigError, match=r"size_conditioning target has no effect.*SD 1\.x"):
        build_trainable(config, load_base_model(nano_model))


def test_a_drawn_image_is_what_the_pipeline_draws(two_model):
    pipeline = StableDiffusionXLPipeline.from_pretrained(two_model)
    prompt = Prompt("a red ball", "grey", 3, 64, 64, 3, 5.0, "ddim")
    ours = Sampler.of(load_base_model(two_model)).draw(prompt)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    theirs = pipeline(
        "a red ball", negative_prompt="grey", width=64, height=64, num_inference_steps=3,
        guidance_scale=5.0, latents=latents, output_type="pt",
    ).images  # fmt: skip
    pixels = torch.from_numpy(np.asarray(ours).copy()) / 255
    torch.testing.assert_close(pixels, theirs[0].permute(1, 2, 0), atol=0.01, rtol=0)


def test_one_file_and_back_is_the_same(two_model, tmp_path):
    file, again = tmp_path / "two.safetensors", tmp_path / "again"
    convert_model(str(two_model), file, "safetensors", {}, OpenOptions())
    opened = open_tensor_file(file)
    assert kind_of(opened, families.file_layouts()) is BASE_MODEL
    for name in (
        "model.diffusion_model.label_emb.0.0.weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.transformer.resblocks.2.attn.in_proj_weight",
        "conditioner.embedders.1.model.logit_scale",
    ):
        assert name in opened.tensors
    projection = load_file(two_model / "text_encoder_2/model.safetensors")["text_projection.weight"]
    in_file = opened.tensors["conditioner.embedders.1.model.text_projection"].read()
    assert torch.equal(in_file, projection.T)
    convert_model(str(file), again, "diffusers", {}, OpenOptions())
    for part in TWO.components:
        before, after = load_file(two_model / part.file), load_file(again / part.file)
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert json.loads((again / "model_index.json").read_text()) == json.loads(
        (two_model / "model_index.json").read_text()
    )
    assert inspect_model(str(file), OpenOptions(), SilentProgress(), hashing=False)["Parts"].keys()


@pytest.mark.usefixtures("fresh_accelerate")
def test_all_its_networks_learn_are_exported_and_resumed(two_config, two_model, tmp_path):
    run = train(
        two_config(
            method={"train_text_encoder": True},
            training={"max_steps": 3},
            validation={"split": 0.25, "timesteps": 1, "standard_error": 0, "training_images": 1},
            previews={
                "prompts": ["a red ball"], "at_first": False, "width": 32, "height": 32, "steps": 1,
            },
            saving={"state_every_steps": 2, "keep_states": 9},
        )
    )  # fmt: skip
    model = run.exported_model()
    for part in TWO.components:
        before, after = load_file(two_model / part.file), load_file(model / part.file)
        assert before.keys() == after.keys()
        moved = any(not torch.equal(t, after[n]) for n, t in before.items())
        assert moved == (part.name != "vae"), part.name
    first = load_file(model / "text_encoder/model.safetensors")
    base = load_file(two_model / "text_encoder/model.safetensors")
    for name in ("text_model.final_layer_norm.weight", "text_model.encoder.layers.2.mlp.fc1.bias"):
        assert torch.equal(first[name], base[name])  # no other result depends on these
    (sample,) = (run.samples / "step-00000003").glob("*.png")
    assert sample.stat().st_size > 0
    again = resume(killed_copy(run.path, tmp_path / "killed", after=2))
    assert exported(again) == exported(run)


def test_it_is_planned(two_config, capsys):
    with files.dry_run():
        show_plan(two_config(training={"max_steps": 4}), Console())
    said = capsys.readouterr().out
    assert "Two encoders" in said
    assert "Memory, at most while" in said


@pytest.mark.usefixtures("fresh_accelerate")
def test_remembered_text_changes_nothing(two_config, tmp_path):
    runs = [
        train(
            two_config(
                output_dir=str(tmp_path / str(on_disk)),
                training={"max_steps": 2, "cache_text_to_disk": on_disk},
            )
        )
        for on_disk in (False, True)
    ]
    records = [[r["loss"] for r in run.read_metrics()] for run in runs]
    torch.testing.assert_close(*map(torch.tensor, records), atol=1e-6, rtol=1e-6)


def test_sizes_reach_the_network(train_config, two_model, tmp_path):
    """The same pixels with another stated size give another loss, unless sizes are not given."""
    losses = []
    for side, told in ((64, "original"), (256, "original"), (256, "target")):
        folder = draw_images(tmp_path / str(side), 4)
        for path in folder.glob("*.png"):
            Image.open(path).convert("L").convert("RGB").resize((side, side)).save(path)
        run = train(
            train_config(
                model={"path": str(two_model), "size_conditioning": told},
                dataset={"image_dir": str(folder)},
                output_dir=str(tmp_path / f"{told}{side}"),
                training={"max_steps": 1},
                saving={"keep_final_state": False},
            )
        )
        losses += [r["loss"] for r in run.read_metrics()]
    as_it_is, larger, larger_and_not_told = losses
    assert larger != pytest.approx(as_it_is, rel=1e-4), "resizing rounds the pixels"
    assert larger_and_not_told == pytest.approx(as_it_is, rel=1e-4)


def test_the_memory_of_all_its_networks_is_foretold(two_config, two_model):
    from impasto.models.networks.loading import load_meta_model
    from impasto.training.planning.memory import FootprintPredictor

    config = two_config(method={"train_text_encoder": True})
    meter = FootprintPredictor(lambda: load_meta_model(two_model), "cpu")
    assert meter.footprint(config, Size(64, 64), 4).total > 0


def test_a_full_size_file_tells_its_configurations_by_shapes(monkeypatch):
    """A file's configuration follows from its shapes, for SDXL's 1,680 U-Net names as in
    diffusers."""
    row = replace(TWO, sizes=SizeConditioning(256))
    monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, row))
    text = {"vocab_size": 49408, "max_position_embeddings": 77}
    configs = {
        "unet": {
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
            "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "transformer_layers_per_block": [1, 2, 10],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
            "scaling_factor": 0.13025,
        },
        "text_encoder": {**text, "hidden_size": 768, "intermediate_size": 3072,
                         "num_hidden_layers": 12, "num_attention_heads": 12},
        "text_encoder_2": {**text, "hidden_size": 1280, "intermediate_size": 5120,
                           "num_hidden_layers": 32, "num_attention_heads": 20,
                           "projection_dim": 1280, "hidden_act": "gelu"},
    }  # fmt: skip
    with torch.device("meta"):
        modules = {part.name: make_network(part, configs[part.name]) for part in row.components}
    parts = state_dicts(modules)
    in_file = merge_ldm(parts, {}, row.layout)
    layout = layout_of(in_file, families.file_layouts())
    assert layout == row.layout
    taken = split_ldm(in_file, layout)
    assert taken.foreign == ()
    for part, tensors in parts.items():
        shapes = {name: tensor.shape for name, tensor in taken.components[part].items()}
        assert shapes == {name: tensor.shape for name, tensor in tensors.items()}
    told = configs_from(taken.components, row, "file")
    for part, config in configs.items():
        assert {key: told[part][key] for key in config} == config
    theirs = convert_ldm_unet_checkpoint(
        {name: torch.empty(tensor.shape, device="meta") for name, tensor in in_file.items()},
        dict(modules["unet"].config),
    )
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == {
        name: tensor.shape for name, tensor in parts["unet"].items()
    }
