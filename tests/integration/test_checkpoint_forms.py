"""Every form of a model, read and written: equal to diffusers, and bit-identical after a round
trip.
"""

import json
import shutil

import pytest
import torch
from component_files import COMPONENT_FILES, TEXT_ENCODER_FILE, UNET_FILE, VAE_FILE
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.cli.main import impasto as commands
from impasto.errors import ConfigError, ModelError
from impasto.models.families import by_kind
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.conversion import convert_model, form_of

COMPONENTS = ("unet", "vae", "text_encoder")
CLIP = "cond_stage_model.transformer."


def convert(source, target, dtypes=None, **options):
    form = form_of(target, options.pop("form", None))
    overwrite = options.pop("overwrite", False)
    return convert_model(
        str(source),
        target,
        form,
        by_kind(dtypes or {}),
        OpenOptions(**options),
        overwrite=overwrite,
    )


def read(file):
    return {n: t.read().clone() for n, t in open_tensor_file(file).tensors.items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def call(*words):
    commands.main(args=[str(word) for word in words], standalone_mode=False)


def weights(model):
    networks = getattr(model, "networks", None) or {
        part: getattr(model, part) for part in COMPONENTS
    }
    return {
        f"{part}.{name}": tensor
        for part in COMPONENTS
        for name, tensor in networks[part].state_dict().items()
    }


def test_our_files_equal_diffusers_reading_of_them(either_model, ldm_file):
    """Files that Impasto wrote have the same tensors when read by diffusers and by Impasto."""
    file = ldm_file(either_model)
    ours = load_base_model(file)
    theirs = StableDiffusionPipeline.from_single_file(
        str(file), config=str(either_model), local_files_only=True
    )
    source = load_base_model(either_model)
    assert_same(weights(ours), weights(source))
    assert_same(weights(theirs), weights(source))


def test_diffusers_draws_the_same_from_our_file(either_model, ldm_file):
    unet = UNet2DConditionModel.from_single_file(
        str(ldm_file(either_model)), config=str(either_model), subfolder="unet",
        local_files_only=True,
    ).eval()  # fmt: skip
    ours = load_base_model(either_model).unet
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, 77, 16)
    with torch.no_grad():
        expected, found = (m(x, t, encoder_hidden_states=context).sample for m in (ours, unet))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back_is_bit_identical(either_model, ldm_file, tmp_path, dtype):
    """LDM -> Diffusers -> LDM -> ckpt -> LDM is bit-identical, including unused tensors."""
    first, source = tmp_path / "first.safetensors", ldm_file(either_model)
    tensors = {n: t.to(dtype) for n, t in read(source).items()}
    for name in list(tensors):  # tensors with defaults get other values here
        if ".resblocks.3." in name or name.endswith("text_projection"):
            tensors[name] = torch.randn(tensors[name].shape).to(dtype)
    tensors["alphas_cumprod"] = torch.rand(1000)
    if CLIP + "text_model.final_layer_norm.bias" in tensors:
        tensors[CLIP + "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, first, open_tensor_file(source).metadata)
    convert(first, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "second.safetensors")
    convert(tmp_path / "second.safetensors", tmp_path / "third.ckpt")
    convert(tmp_path / "third.ckpt", tmp_path / "fourth.safetensors")
    for name in ("second.safetensors", "third.ckpt", "fourth.safetensors"):
        assert_same(read(tmp_path / name), tensors)
    StableDiffusionPipeline.from_pretrained(tmp_path / "folder")  # diffusers reads it too


def test_averaged_weights_are_chosen_and_never_written_again(
    nano_model, ldm_file, tmp_path, capsys
):
    file = tmp_path / "ema.safetensors"
    plain = read(ldm_file(nano_model))
    prefix = "model.diffusion_model."
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
        for name, tensor in plain.items()
        if name.startswith(prefix)
    }
    extra = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    metadata = open_tensor_file(tmp_path / "model.safetensors").metadata
    save_file({**plain, **averaged, **extra}, file, metadata)
    convert(file, tmp_path / "auto.safetensors")
    convert(file, tmp_path / "ema-out.safetensors", weights="ema")
    assert_same(read(tmp_path / "auto.safetensors"), plain)
    found = read(tmp_path / "ema-out.safetensors")
    assert found.keys() == plain.keys()
    for name, tensor in plain.items():
        expected = tensor + 1 if name.startswith(prefix) else tensor
        assert torch.equal(found[name], expected), name
    with pytest.raises(ConfigError, match="contradict"):
        call("convert", file, tmp_path / "x.ckpt", "--ema", "--weights", "plain")
    call("convert", file, tmp_path / "by-flag.ckpt", "--ema", "--dtype", "fp16")
    assert f"{len(averaged)} tensors" in capsys.readouterr().out  # the averaged weights are named
    by_flag = read(tmp_path / "by-flag.ckpt")
    assert all(torch.equal(by_flag[name], tensor.half()) for name, tensor in found.items())
    with pytest.raises(ModelError, match="no averaged"):
        open_model(tmp_path / "auto.safetensors", OpenOptions(weights="ema"))
    with pytest.raises(ModelError, match="no averaged"):
        open_model(nano_model, OpenOptions(weights="ema"))


def as_safetensors(folder, target, tmp_path):
    convert(folder, target.with_suffix(".safetensors"))
    return target.with_suffix(".safetensors")


def as_ckpt(folder, target, tmp_path, **options):
    file = as_safetensors(folder, target.with_name("between"), tmp_path)
    content = {"state_dict": read(file), "impasto_metadata": dict(open_tensor_file(file).metadata)}
    torch.save(content, target.with_suffix(".ckpt"), **options)
    return target.with_suffix(".ckpt")


def as_legacy_ckpt(folder, target, tmp_path):
    return as_ckpt(folder, target, tmp_path, _use_new_zipfile_serialization=False)


def as_nested_ckpt(folder, target, tmp_path):
    """Write the first form of SD 1 files: no `text_model.`, an outer dict, parameters, counters."""
    content = torch.load(as_ckpt(folder, target, tmp_path), weights_only=True)
    state = {
        name.replace("transformer.text_model.", "transformer."): torch.nn.Parameter(tensor)
        for name, tensor in content.pop("state_dict").items()
    }
    file = target.with_suffix(".ckpt")
    torch.save({**content, "global_step": 1, "state_dict": {"state_dict": state}}, file)
    return file


def as_half_file(folder, target, tmp_path):
    file = target.with_suffix(".safetensors")
    convert(folder, file, dict.fromkeys(COMPONENTS, torch.float16))
    return file


def as_bin_folder(folder, target, tmp_path):
    """Write an old Diffusers folder: `.bin`, the VAE's former attention names, `pytorch_model`."""
    shutil.copytree(folder, target)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for file in COMPONENT_FILES.values():
        tensors = load_file(target / file)
        for new_name, old_name in old.items():
            tensors = {
                name.replace(
                    f"mid_block.attentions.0.{new_name}.", f"mid_block.attentions.0.{old_name}."
                )
                if file == VAE_FILE
                else name: tensor
                for name, tensor in tensors.items()
            }
        stem = "pytorch_model" if file == TEXT_ENCODER_FILE else "diffusion_pytorch_model"
        torch.save(tensors, (target / file).with_name(f"{stem}.bin"))
        (target / file).unlink()
    return target


def as_fp16_variant(folder, target, tmp_path):
    shutil.copytree(folder, target)
    for file in COMPONENT_FILES.values():
        tensors = {name: tensor.half() for name, tensor in load_file(target / file).items()}
        save_file(tensors, (target / file).with_suffix(".fp16.safetensors"))
        (target / file).unlink()
    return target


def as_hub_id(folder, target, tmp_path):
    """Write a downloaded copy into the Hub's cache, where it is found without a network."""
    repository = tmp_path / "hub" / "models--someone--nano"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    return "someone/nano"


FORMS = {
    form.__name__: form
    for form in (
        as_safetensors, as_ckpt, as_legacy_ckpt, as_nested_ckpt, as_half_file, as_bin_folder,
        as_fp16_variant, as_hub_id,
    )
}  # fmt: skip


@pytest.fixture(scope="session")
def half_model(tmp_path_factory, nano_architecture):
    """A model whose values are exact in float16, so that all forms have the same values."""
    from impasto.models.writing.architectures import write_random_model

    folder = tmp_path_factory.mktemp("half")
    write_random_model(nano_architecture, folder / "half", seed=0, dtype=torch.float16)
    convert(folder / "half", folder / "float", dict.fromkeys(COMPONENTS, torch.float32))
    return folder / "float"


@pytest.fixture(scope="module")
def expected(half_model):
    """The opened model; not to be changed."""
    return load_base_model(half_model)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_model(half_model, expected, form, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = load_base_model(FORMS[form](half_model, tmp_path / "model", tmp_path))
    assert_same(weights(found), weights(expected))
    assert found.identity.family is expected.identity.family
    assert found.identity.prediction is expected.identity.prediction
    assert torch.equal(found.schedule.alphas_cumprod, expected.schedule.alphas_cumprod)
    assert found.scaling_factor == expected.scaling_factor
    assert found.tokenizers.keys() == expected.tokenizers.keys()


@pytest.mark.usefixtures("fresh_accelerate")
def test_training_takes_files_folders_and_ids_with_the_same_first_loss(
    half_model, train_config, tmp_path, monkeypatch
):
    from impasto.training.trainer import train

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    losses = {}
    forms = {form.__name__: form for form in (as_nested_ckpt, as_hub_id)}
    for name, form in {"as it is": lambda *_: half_model, **forms}.items():
        (tmp_path / name).mkdir()
        source = form(half_model, tmp_path / name / "model", tmp_path)
        run = train(
            train_config(
                output_dir=str(tmp_path / name / "run"),
                model={"path": str(source), "clip_skip": 2},
                training={"max_steps": 1},
            )
        )
        losses[name] = [r["loss"] for r in run.read_metrics() if "loss" in r]
    assert len(losses) == 3
    assert len(losses["as it is"]) == 1
    assert all(found == losses["as it is"] for found in losses.values()), losses


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("form", ["safetensors", "ckpt", "diffusers"])
def test_a_run_writes_each_form_and_samples_come_from_it(form, train_config, tmp_path, nano_model):
    from impasto.training.trainer import train

    run = train(
        train_config(
            training={"max_steps": 2},
            model={"clip_skip": 2, "max_tokens": 150, "token_join": "kohya"},
            saving={
                "format": form,
                "export_dtype": "fp16",
                "vae_dtype": "bf16",
                "metadata": {"author": "somebody", "license": "CC0"},
            },
        )
    )
    exported = open_model(run.exported_model())
    assert exported.dtypes() == {"unet": "float16", "vae": "bfloat16", "text_encoder": "float32"}
    said = exported.metadata
    assert said["modelspec.encoder_layer"] == "2"
    assert said["modelspec.author"] == "somebody"
    assert said["modelspec.resolution"] == "80x80"
    assert said["modelspec.prediction_type"] == "epsilon"
    assert said["modelspec.architecture"] == "stable-diffusion-v1"
    summary = json.loads(said["impasto.training"])
    assert (summary["steps"], summary["images"]) == (2, 13)
    assert summary["trained_parts"] == ["unet"]
    assert str(tmp_path) not in json.dumps(dict(said)), "a path of this machine would be published"
    source = read(nano_model / TEXT_ENCODER_FILE)
    for name, tensor in exported.components["text_encoder"].items():
        assert torch.equal(tensor.read(), source[f"text_model.{name}"])
    call(
        "sample", run.path, "a red (ball:1.2)", "--width", 32, "--height", 32, "--steps", 2,
        "--out", tmp_path / "samples",
    )  # fmt: skip
    assert (tmp_path / "samples" / "0000-1.png").stat().st_size > 500


def test_another_vae_in_each_form(nano_model, ldm_file, tmp_path):
    other = shutil.copytree(nano_model, tmp_path / "other")
    tensors = {name: tensor + 1 for name, tensor in load_file(other / VAE_FILE).items()}
    save_file(tensors, other / VAE_FILE)
    bare = tmp_path / "vae.pt"
    prefix = "first_stage_model."
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in read(ldm_file(other)).items()
        if name.startswith(prefix)
    }
    torch.save({"state_dict": {**inside, "loss.logvar": torch.zeros(1)}}, bare)
    expected = {name: tensor.float() for name, tensor in tensors.items()}
    for vae in (other, other / "vae", ldm_file(other, "again.safetensors"), bare):
        model = load_base_model(nano_model, OpenOptions(vae=str(vae)))
        assert_same(dict(model.vae.state_dict()), expected)
        assert torch.equal(
            model.unet.conv_in.bias, load_file(nano_model / UNET_FILE)["conv_in.bias"]
        )


def test_a_file_without_a_vae_takes_the_one_that_is_named(nano_model, ldm_file, tmp_path):
    file, bare = ldm_file(nano_model), tmp_path / "no-vae.safetensors"
    kept = {n: t for n, t in read(file).items() if not n.startswith("first_stage_model")}
    save_file(kept, bare, open_tensor_file(file).metadata)
    with pytest.raises(ModelError, match=r"no vae\. Give one with model\.vae"):
        open_model(bare)
    model = load_base_model(bare, OpenOptions(vae=str(nano_model)))
    assert_same(weights(model), weights(load_base_model(nano_model)))


def test_the_main_file_of_a_folder_may_be_the_average(nano_model, tmp_path):
    """A folder's main file may contain the average, with `non_ema` beside it, as in SD 1.5's."""
    folder = shutil.copytree(nano_model, tmp_path / "model")
    plain = {name: tensor + 1 for name, tensor in load_file(folder / UNET_FILE).items()}
    save_file(plain, (folder / UNET_FILE).with_suffix(".non_ema.safetensors"))
    for weights_word, shift in (("auto", 0), ("ema", 0), ("plain", 1)):
        opened = open_model(folder, OpenOptions(weights=weights_word))
        found = opened.components["unet"]["conv_in.bias"].read()
        expected = load_file(nano_model / UNET_FILE)["conv_in.bias"] + shift
        assert torch.equal(found, expected), weights_word


def test_a_target_in_the_way_is_left_alone(nano_model, tmp_path):
    target = tmp_path / "out.safetensors"
    target.write_text("precious", encoding="utf-8")
    with pytest.raises(ConfigError, match="already exists"):
        convert(nano_model, target)
    with pytest.raises(ConfigError, match="the source itself"):
        convert(nano_model, nano_model)
    with pytest.raises(ConfigError, match="--to says ckpt"):
        convert(nano_model, target, form="ckpt")
    assert target.read_text(encoding="utf-8") == "precious"
    convert(nano_model, target, overwrite=True)
    assert open_model(target).form == "LDM file (safetensors)"


def test_a_failed_conversion_leaves_nothing(nano_model, ldm_file, tmp_path):
    broken = tmp_path / "broken.safetensors"
    tensors = read(ldm_file(nano_model))
    name = next(n for n in tensors if n.startswith("first_stage_model"))
    tensors[name] = tensors[name] * float("nan")
    save_file(tensors, broken, open_tensor_file(tmp_path / "model.safetensors").metadata)
    before = sorted(p.name for p in tmp_path.iterdir())
    for target in (tmp_path / "out.safetensors", tmp_path / "out.ckpt", tmp_path / "out"):
        with pytest.raises(ModelError, match="NaN"):
            convert(broken, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_source_that_is_replaced_meanwhile_is_noticed(nano_model, ldm_file, tmp_path):
    file = ldm_file(nano_model)
    copy = shutil.copy(file, tmp_path / "copy.safetensors")
    contents = open_model(file)
    copy.replace(file)
    with pytest.raises(ModelError, match="was changed, replaced or removed"):
        contents.components["unet"]["conv_in.bias"].read()
