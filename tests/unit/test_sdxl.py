"""SDXL is distinguished from similar models, and its files describe themselves."""

import json

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from two_encoders import write_model

from impasto.checkpoints.kinds import BASE_MODEL, kind_of
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.config.compatibility import goes_together
from impasto.config.load import build_run_config
from impasto.errors import ModelError
from impasto.models.families import FAMILIES, RELATIVES, SDXL, SDXL_V, file_layouts
from impasto.models.reading.configs import configs_from
from impasto.models.reading.identity import Clues, Identity, identify
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.architectures import ARCHITECTURES, meta_model_of_architecture
from impasto.models.writing.conversion import convert_model
from impasto.models.writing.inspection import inspect_model
from impasto.progress import SilentProgress
from impasto.training.builders.processes import facts_of
from impasto.training.planning.advice import advice_on
from impasto.training.planning.exposure import Exposure

ENCODERS = (("text_encoder", "CLIP"), ("text_encoder_2", "OpenCLIP"))
USUAL = Exposure(200, 1.0, 40.0, (10, 120))


def shaped(*shape):
    return LazyTensor.of(torch.zeros(shape))


def clues(depths=(0, 2, 10), channels=4, encoders=ENCODERS, first=320, **others):
    unet = {
        "conv_in.weight": shaped(first, channels, 3, 3),
        "add_embedding.linear_1.weight": shaped(8, 8),
        "down_blocks.0.resnets.0.conv1.weight": shaped(8, 8, 3, 3),
    }
    for level, depth in enumerate(depths):
        for number in range(depth):
            start = f"down_blocks.{level}.attentions.0"
            unet[f"{start}.proj_in.weight"] = shaped(8, 8)
            unet[f"{start}.transformer_blocks.{number}.attn2.to_k.weight"] = shaped(8, 2048)
    return Clues("model", unet, encoders, **others)


@pytest.mark.parametrize(
    ("found", "family", "because"),
    [
        (clues(), SDXL, "no tensor v_pred in the file"),
        (clues(marks=frozenset({"v_pred"})), SDXL_V, "a tensor v_pred in the file"),
        (clues(scheduler_config={"prediction_type": "v_prediction"}), SDXL_V, "scheduler"),
        (clues(scheduler_config={}), SDXL, "scheduler"),
        (clues(metadata={"modelspec.prediction_type": "v"}), SDXL_V, "modelspec"),
        (clues(prediction_name="v_prediction"), SDXL_V, "model.prediction_type"),
        (clues(family_key="sdxl-v"), SDXL_V, "model.family"),
        (
            clues(family_key="sdxl", marks=frozenset({"v_pred"})),
            SDXL,
            "against the model's own statement (a tensor v_pred",
        ),
        (clues(depths=(0, 1, 2), first=64), SDXL, "no tensor"),  # a separate small one
    ],
)
def test_noise_and_velocity_are_told_apart(found, family, because):
    identity = identify(found)
    assert (identity.family, identity.prediction) == (family, family.prediction)
    assert because in identity.evidence


def test_a_word_against_what_the_model_says_is_warned_of():
    values = {
        "output_dir": "run", "model": {"path": "m"}, "dataset": {"image_dir": "."},
        "training": {"max_steps": 1},
    }  # fmt: skip
    config = build_run_config(values, source="test")
    marked = frozenset({"v_pred"})
    for family_key, warnings in (("sdxl", 1), ("sdxl-v", 0), (None, 0)):
        identity = identify(clues(marks=marked, family_key=family_key))
        found = advice_on(config, identity, torch.device("cpu"), USUAL, weights=1000)
        assert sum("a model forgets what it has learned" in line for line in found) == warnings
        assert ("a tensor v_pred" in identity.contradicted_by) == bool(warnings)


@pytest.mark.parametrize(
    ("family_key", "layer", "is_warned"),
    [("sd1", 2, False), ("sd2-v", 2, True), ("sd2-v", 1, False), ("sdxl", 1, True)],
)
def test_another_layer_of_the_text_is_warned_of(family_key, layer, is_warned):
    values = {
        "output_dir": "run", "model": {"path": "m", "clip_skip": layer},
        "dataset": {"image_dir": "."}, "training": {"max_steps": 1},
    }  # fmt: skip
    config = build_run_config(values, source="test", begun=True)
    family = next(family for family in FAMILIES if family.key == family_key)
    identity = Identity(family, family.prediction, "")
    found = advice_on(config, identity, torch.device("cpu"), USUAL, weights=1000)
    own = family.text_encoders[0].text.layer
    told = f"clip_skip is {layer}, but {family.generation} was trained at layer {own} from the end"
    assert any(told in line for line in found) == is_warned


def test_a_new_run_has_no_clip_skip_on_sdxl_and_one_that_was_begun_goes_on():
    values = {
        "output_dir": "run", "model": {"path": "m", "clip_skip": 1},
        "dataset": {"image_dir": "."}, "training": {"max_steps": 1},
    }  # fmt: skip
    known = {
        family.key: facts_of(
            build_run_config(values, source="test"),
            processes=1,
            identity=Identity(family, family.prediction, ""),
        )
        for family in FAMILIES
    }
    refused = {"sdxl", "sdxl-v"}
    for key, facts in known.items():
        assert goes_together(build_run_config(values, source="test", begun=True), facts)
        assert goes_together(build_run_config(values, source="test"), facts) == (key not in refused)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        *((clues(depths), f"is {name}, which was made") for depths, name in RELATIVES.items()),
        (clues(depths=(0, 3, 10)), "not a model of a family .*0 [+] 2 [+] 10 transformer blocks"),
        (clues(channels=9), "inpainting"),
        (clues(encoders=ENCODERS[1:]), "not a model of a family"),
    ],
)  # fmt: skip
def test_what_is_like_it_is_refused_by_name(found, words):
    with pytest.raises(ModelError, match=words):
        identify(found)


WHOLE = (
    "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight",
    "model.diffusion_model.label_emb.0.0.weight",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
    "conditioner.embedders.1.model.positional_embedding",
)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (WHOLE, BASE_MODEL.name),
        ((*WHOLE, "edm_mean", "edm_std"), "Playground 2.5"),
        ((*WHOLE, "edm_vpred.sigma_max"), "EDM's velocity"),
        ((*WHOLE[:3], "conditioner.embedders.0.model.ln_final.weight"), "refiner"),
        (WHOLE[:4], "part of an SDXL checkpoint"),
    ],
)
def test_files_are_told_by_their_names(tmp_path, names, words):
    save_file({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors")
    found = kind_of(open_tensor_file(tmp_path / "x.safetensors"), file_layouts())
    assert words in found.name


def test_the_full_size_is_that_of_the_recorded_file(golden):
    """Every tensor of a model from `init sdxl` has its name and shape in the format."""
    model = meta_model_of_architecture(ARCHITECTURES["sdxl"])
    written = {name: t.shape for name, t in model.contents.ldm_tensors().items()}
    recorded = {name: tuple(row["shape"]) for name, row in golden("sdxl_map.json").items()}
    assert written == recorded
    parts = model.contents.components
    found = configs_from(parts, SDXL, "x")
    for name, config in ARCHITECTURES["sdxl"].by_name.items():
        assert {key: found[name].get(key) for key in config} == config
    assert sum(torch.Size(t.shape).numel() for t in parts["unet"].values()) == 2_567_463_684


@pytest.fixture(scope="module")
def small(tmp_path_factory, nano_architecture):
    """A folder of a velocity model whose schedule ends in pure noise, and its single file."""
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    write_model(nano_architecture, folder, SDXL_V)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text(encoding="utf-8"))
    config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler.write_text(json.dumps(config), encoding="utf-8")
    file = folder.with_suffix(".safetensors")
    convert_model(str(folder), file, "safetensors", {}, OpenOptions())
    return folder, file


def test_a_file_is_marked_and_its_folder_says_so(small, tmp_path):
    folder, file = small
    tensors = load_file(file)
    assert {n: t.numel() for n, t in tensors.items() if "." not in n} == {"v_pred": 0, "ztsnr": 0}
    bare = tmp_path / "bare.safetensors"  # as from other trainers: without Impasto's metadata
    marks = open_tensor_file(file).metadata
    save_file(tensors, bare, {"impasto.configs": marks["impasto.configs"]})
    contents = open_model(bare)
    assert contents.identity.family is SDXL_V
    assert contents.scheduler_config["rescale_betas_zero_snr"] is True
    again = tmp_path / "again"
    convert_model(str(bare), again, "diffusers", {}, OpenOptions())
    scheduler = json.loads(
        (again / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
    )
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"] is True
    StableDiffusionXLPipeline.from_pretrained(again)
    for first in folder.glob("*/*.safetensors"):
        ours, theirs = load_file(again / first.relative_to(folder)), load_file(first)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_inspect_shows_the_marks(small):
    found = inspect_model(str(small[1]), OpenOptions(), SilentProgress())
    assert found["File"]["Marked by"] == "ztsnr, v_pred"
    assert found["Model"]["Family"] == "SDXL v-pred"
    assert "zero terminal SNR" in found["Model"]["Schedule"]


def test_a_model_that_predicts_noise_has_no_mark(small, tmp_path):
    folder, _ = small
    file = tmp_path / "noise.safetensors"
    asked = OpenOptions(prediction_type="epsilon")
    convert_model(str(folder), file, "safetensors", {}, asked)
    assert "v_pred" not in load_file(file)
