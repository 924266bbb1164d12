"""Common mistakes in the input of an SDXL run are reported, or harmless."""

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from two_encoders import write_model

from impasto import files
from impasto.checkpoints.kinds import lacking
from impasto.checkpoints.ldm import split_ldm
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.data.caching.text_store import TextStore
from impasto.errors import ModelError
from impasto.models.families import SDXL, SDXL_V, file_layouts
from impasto.models.networks.loading import load_base_model, load_meta_model
from impasto.models.reading import known_vaes
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.architectures import write_random_model
from impasto.models.writing.conversion import convert_model
from impasto.training.planning.advice import advice_on
from impasto.training.planning.exposure import Exposure

FIRST, SECOND = "conditioner.embedders.0.", "conditioner.embedders.1."
POSITIONS = f"{FIRST}transformer.text_model.embeddings.position_ids"
VAE = "first_stage_model."
USUAL = Exposure(200, 1.0, 40.0, (10, 120))


@pytest.fixture(scope="module")
def places(tmp_path_factory, nano_architecture):
    """A nano SDXL and a nano SD 1 with a VAE of the same shapes, each as a folder and as a file."""
    base = tmp_path_factory.mktemp("models")
    write_model(nano_architecture, base / "sdxl", SDXL)
    write_model(nano_architecture, base / "velocity", SDXL_V)
    write_random_model(nano_architecture, base / "sd1", seed=0, dtype=torch.float32)
    for name in ("sdxl", "velocity", "sd1"):
        convert_model(
            str(base / name), base / f"{name}.safetensors", "safetensors", {}, OpenOptions()
        )
    return base


@pytest.fixture
def changed(places, tmp_path):
    """Write a model's file with some tensors removed and others added."""

    def write(kept, added=None, name="sdxl"):
        with safe_open(places / f"{name}.safetensors", "pt") as file:
            metadata = file.metadata()
        tensors = load_file(places / f"{name}.safetensors")
        file = tmp_path / "changed.safetensors"
        save_file(
            {**{n: t for n, t in tensors.items() if kept(n)}, **(added or {})}, file, metadata
        )
        return file

    return write


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ((FIRST,), "part of an SDXL checkpoint: it has no text_encoder. Give the whole model"),
        ((SECOND,), "part of an SDXL checkpoint: it has no text_encoder_2. Give"),
        ((FIRST, SECOND), "it has no text_encoder and no text_encoder_2. Give"),
        ((SECOND, VAE), "it has no vae and no text_encoder_2. Give"),
    ],
)
def test_a_file_without_a_text_encoder_says_which(changed, gone, words):
    file = changed(lambda name: not name.startswith(gone))
    with pytest.raises(ModelError, match=words):
        open_model(file)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
def test_a_folder_without_a_text_encoder_says_which(places, tmp_path, name, listed):
    """If `model_index.json` omits it too, the folder is still not taken for SD 1."""
    folder = shutil.copytree(places / "sdxl", tmp_path / "model")
    shutil.rmtree(folder / name)
    if not listed:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        index[name] = [None, None]
        (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match=rf"incomplete: .*{name}.config\.json is missing"):
        open_model(folder)


def test_the_folder_of_the_refiner_is_named(places, tmp_path):
    folder = shutil.copytree(places / "sdxl", tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index |= {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "requires_aesthetics_score": True,
        "text_encoder": [None, None],
        "tokenizer": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match="is the SDXL refiner, which finishes"):
        open_model(folder)


def rewritten(file, **values):
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, **values}), encoding="utf-8")


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (
            {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5},
            r"is Playground 2\.5, whose noise is scaled differently",
        ),
        (
            {
                "_class_name": "EDMEulerScheduler",
                "sigma_data": 1.0,
                "prediction_type": "v_prediction",
            },
            "is an SDXL checkpoint of EDM's velocity",
        ),
        ({"sigma_data": 0.5}, r"is Playground 2\.5"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "prediction_type": None},
            r"is a model of rectified flow .*\(its scheduler is FlowMatchEulerDiscreteScheduler\)",
        ),
        ({"_class_name": "PeRFlowScheduler"}, "is a model of rectified flow"),
        ({"prediction_type": "flow_prediction"}, "is a model of rectified flow"),
        ({"use_flow_sigmas": True}, "is a model of rectified flow"),
    ],
)
def test_a_folder_with_other_noise_is_named(places, tmp_path, scheduler, words):
    """A folder with SDXL's tensors and another noise schedule would start a run with wrong
    noise."""
    folder = shutil.copytree(places / "sdxl", tmp_path / "model")
    rewritten(folder / "scheduler" / "scheduler_config.json", **scheduler)
    for said in (None, "epsilon"):  # the user's setting does not help
        with pytest.raises(ModelError, match=words):
            open_model(folder, OpenOptions(prediction_type=said))


@pytest.mark.parametrize(
    "entry", [{"latents_mean": [0.1] * 4}, {"latents_std": [1.5] * 4}, {"shift_factor": 0.0609}]
)
def test_a_vae_that_shifts_latents_is_refused(places, tmp_path, entry):
    folder = shutil.copytree(places / "sdxl", tmp_path / "model")
    config = folder / "vae" / "config.json"
    rewritten(config, latents_mean=None, latents_std=None, shift_factor=None)
    open_model(folder)  # as in newer diffusers
    rewritten(config, **entry)
    with pytest.raises(ModelError, match=f"configuration has {next(iter(entry))}"):
        open_model(folder)
    for vae in (folder, folder / "vae", folder / "vae" / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(ModelError, match=f"configuration has {next(iter(entry))}"):
            open_model(places / "sdxl", OpenOptions(vae=str(vae)))


@pytest.mark.parametrize("given", ["sd1", "sd1/vae", "sd1.safetensors", "bare metadata"])
@pytest.mark.parametrize("base", ["sdxl", "sdxl.safetensors"])
def test_the_vae_of_sd_1_is_refused(places, tmp_path, given, base):
    """SD 1's VAE has the same shapes: a run would start, and learn other latents."""
    path = places / given
    if given == "bare metadata":  # from another trainer, without Impasto's configurations
        path = tmp_path / "other.safetensors"
        save_file(load_file(places / "sd1.safetensors"), path)
    with pytest.raises(ModelError, match=r"latents by 0\.18215, the model by 0\.13025.*of SDXL\."):
        load_base_model(places / base, OpenOptions(vae=str(path)))
    with pytest.raises(ModelError, match=r"latents by 0\.13025, the model by 0\.18215.*of SD 1"):
        load_base_model(places / "sd1", OpenOptions(vae=str(places / base)))


def test_a_vae_whose_configuration_has_no_scaling_factor_is_doubted_not_refused(places, tmp_path):
    """Early diffusers wrote none; the other model's factor applies, whichever of them lacks it."""
    folder = shutil.copytree(places / "sdxl", tmp_path / "silent")
    written = folder / "vae" / "config.json"
    config = json.loads(written.read_text(encoding="utf-8"))
    del config["scaling_factor"]
    written.write_text(json.dumps(config), encoding="utf-8")
    doubt = "says which models this VAE is for"
    for vae in (folder, folder / "vae", folder / "vae" / "diffusion_pytorch_model.safetensors"):
        contents = open_model(places / "sdxl", OpenOptions(vae=str(vae)))
        assert any(doubt in note for note in contents.notes)
        assert contents.configs["vae"]["scaling_factor"] == SDXL.scaling_factor
        plain = open_model(places / "sd1", OpenOptions(vae=str(vae)))
        assert plain.configs["vae"]["scaling_factor"] == 0.18215
    for source, vae, factor in (
        (places / "sdxl", folder, SDXL.scaling_factor),
        (places / "sd1", folder, 0.18215),
        (folder, places / "sdxl", SDXL.scaling_factor),
    ):
        assert load_meta_model(source, OpenOptions(vae=str(vae))).scaling_factor == factor
    for value in (None, "0.13025", True, 0, -1.0):
        written.write_text(json.dumps({**config, "scaling_factor": value}), encoding="utf-8")
        for source, options in (
            (folder, OpenOptions()),
            (places / "sdxl", OpenOptions(vae=str(folder))),
        ):
            with pytest.raises(ModelError, match=r"its scaling_factor is .*expected a number"):
                load_meta_model(source, options)


def test_the_u_net_of_a_diffusers_folder_is_named(places):
    """The names are those of `unet/diffusion_pytorch_model.safetensors`, not of a single file."""
    file = places / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
    assert "add_embedding.linear_1.weight" in load_file(file)
    assert lacking(open_tensor_file(file), file_layouts()) == ()
    with pytest.raises(ModelError, match=r"is the U-Net of a Diffusers folder of SDXL, not"):
        open_model(file)


def test_a_bare_vae_is_told_by_its_content_or_doubted(places, tmp_path, monkeypatch):
    inside = {
        name.removeprefix(VAE): tensor
        for name, tensor in load_file(places / "sd1.safetensors").items()
        if name.startswith(VAE)
    }
    bare = tmp_path / "vae.safetensors"
    save_file(inside, bare)
    options = OpenOptions(vae=str(bare))
    doubt = "nothing in .*vae.safetensors says which models"
    assert any(re.search(doubt, note) for note in open_model(places / "sdxl", options).notes)
    assert not any(re.search(doubt, note) for note in open_model(places / "sd1", options).notes)
    for called, scaling in (("one of SD 1", known_vaes.SD), ("one of SDXL", known_vaes.SDXL)):
        monkeypatch.setitem(known_vaes.KNOWN, files.sha256_of(bare), (called, scaling))
        right, wrong = ("sd1", "sdxl") if scaling == known_vaes.SD else ("sdxl", "sd1")
        assert not any(re.search(doubt, note) for note in open_model(places / right, options).notes)
        with pytest.raises(ModelError, match=rf"\({called}\) scales latents by {scaling}"):
            open_model(places / wrong, options)
    save_file(inside, bare, {"modelspec.architecture": "stable-diffusion-v1/vae"})
    with pytest.raises(ModelError, match=r"of SD 1\.x, as its file says"):
        open_model(places / "sdxl", options)


def test_a_marked_file_against_settings_that_say_epsilon_is_warned_of(places, train_config):
    file = places / "velocity.safetensors"
    assert "v_pred" in load_file(file)
    contents = open_model(file, OpenOptions(prediction_type="epsilon"))
    assert contents.identity.prediction.name == "epsilon"
    config = train_config(model={"path": str(file), "prediction_type": "epsilon"})
    told = advice_on(config, contents.identity, torch.device("cpu"), USUAL, weights=1000)
    assert any("predicts epsilon, but its file says otherwise (modelspec" in line for line in told)
    usual = advice_on(config, open_model(file).identity, torch.device("cpu"), USUAL, weights=1000)
    assert not any("but its file says otherwise" in line for line in usual)


def test_a_file_that_contradicts_itself_asks_for_a_word(changed):
    """A merge's metadata may be from the other parent: ComfyUI goes by the mark."""
    file = changed(lambda _: True, {"v_pred": torch.zeros(0)})
    with pytest.raises(ModelError, match=r"contradicts itself.*epsilon.*v_prediction.*set model\."):
        open_model(file)
    for word in ("epsilon", "v_prediction"):
        found = open_model(file, OpenOptions(prediction_type=word))
        assert found.identity.prediction.name == word


@pytest.fixture(scope="module")
def plain(places):
    """The networks of the unchanged file."""
    return load_base_model(places / "sdxl.safetensors").networks


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.float32])
def test_position_ids_make_no_difference(changed, places, plain, tmp_path, dtype):
    """The published file has 2,515 tensors, sd-scripts' 2,514: without position ids."""
    positions = torch.arange(77)[None].to(dtype)
    file = changed(lambda _: True, {POSITIONS: positions})
    with_ids = load_base_model(file)
    for name, network in plain.items():
        other = with_ids.networks[name].state_dict()
        assert all(torch.equal(tensor, other[key]) for key, tensor in network.state_dict().items())
    again = tmp_path / "again.safetensors"
    convert_model(str(file), again, "safetensors", {}, OpenOptions())
    written = load_file(again)
    assert torch.equal(written[POSITIONS], torch.arange(77)[None])
    assert not written[POSITIONS].dtype.is_floating_point
    assert POSITIONS not in load_file(places / "sdxl.safetensors")


def test_every_tensor_of_either_full_size_file_has_its_place(golden):
    recorded = golden("sdxl_map.json")
    tensors = {
        name: LazyTensor.of(torch.empty(row["shape"], device="meta"))
        for name, row in recorded.items()
    }
    assert len(tensors) == 2514
    plain = split_ldm(tensors, SDXL.layout)
    published = split_ldm(
        {**tensors, POSITIONS: LazyTensor.of(torch.arange(77)[None])}, SDXL.layout
    )
    assert plain.foreign == published.foreign == ()
    assert set(published.ldm_only) - set(plain.ldm_only) == {POSITIONS}
    assert {part: set(names) for part, names in plain.components.items()} == {
        part: set(names) for part, names in published.components.items()
    }


def test_texts_of_sd_1_in_the_same_folder_are_not_those_of_sdxl(tmp_path):
    """One cache folder serves both: keys depend on the encoders, not only on the captions."""
    ids, states = [(1,) * 77, (2,) * 77], torch.randn(2, 77, 16)
    sd1 = TextStore(tmp_path, "encoder of SD 1")
    sd1.write(ids, states)
    sdxl = TextStore(tmp_path, "encoders of SDXL")
    both = [chunk * 2 for chunk in ids]
    assert not any(chunk in sdxl for chunk in (*ids, *both))
    packed = torch.randn(2, 77 * 40 + 20)
    sdxl.write(both, packed)
    again = TextStore(tmp_path, "encoder of SD 1")
    for number in (0, 1):
        assert torch.equal(sdxl.read(both[number]), packed[number])
        assert torch.equal(again.read(ids[number]), states[number])
        assert both[number] not in again
