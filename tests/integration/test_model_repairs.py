"""Wrong, missing or unusual parts of a model's files: every verb handles them and reports it."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from component_files import UNET_FILE
from safetensors.torch import load_file, save_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.cli.main import impasto as commands
from impasto.diffusion.schedule import NoiseSchedule
from impasto.errors import ModelError
from impasto.models.families import by_kind
from impasto.models.networks.loading import load_base_model
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.reading.recorded import trained_clip_skip
from impasto.models.writing.conversion import convert_model, form_of

UNET, VAE = "model.diffusion_model.", "first_stage_model."
POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.fixture(scope="module")
def source(nano_model, tmp_path_factory):
    """The nano model as one float32 file. Read-only by agreement."""
    file = tmp_path_factory.mktemp("models") / "model.safetensors"
    convert(nano_model, file)
    return file


@pytest.fixture
def changed(source, tmp_path):
    """Write the nano model as a file with other tensors or metadata."""

    def write(change, **texts):
        tensors = load_file(source)
        change(tensors)
        metadata = {**open_tensor_file(source).metadata, **texts}
        target = tmp_path / "changed.safetensors"
        save_file(tensors, target, metadata)
        return target

    return write


def convert(source, target, dtypes=None, **options):
    options = OpenOptions(**options)
    asked = by_kind(dtypes or {})
    return convert_model(str(source), target, form_of(target, None), asked, options)


def impasto(*words):
    """Run a command in this process."""
    return CliRunner().invoke(commands, [str(word) for word in words])


@pytest.mark.parametrize(
    "name", [UNET + "middle_block.1.norm.weight", VAE + "decoder.conv_out.bias",
             "cond_stage_model.transformer.text_model.final_layer_norm.bias"],
)  # fmt: skip
def test_a_missing_tensor_ends_every_verb(changed, tmp_path, name):
    file = changed(lambda tensors: tensors.pop(name))
    for act in (lambda: convert(file, tmp_path / "o.safetensors"), lambda: load_base_model(file)):
        with pytest.raises(ModelError, match="missing: "):
            act()
    assert not (tmp_path / "o.safetensors").exists()
    shown = impasto("inspect", file, "--no-hash")
    assert shown.exit_code == 0
    assert "missing: " in shown.output


def test_a_missing_tensor_of_a_folder_ends_conversion_with_its_exit_code(nano_model, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(nano_model, folder)
    tensors = load_file(folder / UNET_FILE)
    del tensors["conv_out.bias"]
    save_file(tensors, folder / UNET_FILE)
    result = impasto("convert", folder, tmp_path / "o.safetensors")
    assert result.exception.exit_code == 4
    assert "conv_out.bias" in str(result.exception)


@pytest.mark.parametrize("prefix", [UNET, VAE, "cond_stage_model.transformer.text_model."])
def test_a_useless_tensor_inside_a_part_is_left_out_with_a_note(changed, tmp_path, prefix):
    file = changed(lambda tensors: tensors.update({f"{prefix}extra.weight": torch.zeros(2)}))
    assert "extra.weight" in convert(file, tmp_path / "o.safetensors")["Note"]
    assert f"{prefix}extra.weight" not in load_file(tmp_path / "o.safetensors")
    assert any("extra.weight" in note for note in load_base_model(file).contents.notes)


def test_whole_numbers_are_no_weights(changed):
    name = UNET + "time_embed.0.weight"
    file = changed(lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(ModelError, match="int8, expected floating-point"):
        load_base_model(file)


@pytest.mark.parametrize("what", ["float", "wrong", "right"])
def test_position_ids_of_merges_are_put_right(changed, tmp_path, what):
    right = torch.arange(77)[None]
    given = {"float": right.float(), "wrong": right.half() - 0.2, "right": right}[what]
    file = changed(lambda tensors: tensors.update({POSITION_IDS: given}))
    summary = convert(file, tmp_path / "o.safetensors")
    found = load_file(tmp_path / "o.safetensors")[POSITION_IDS]
    assert torch.equal(found, right)
    assert ("position ids" in summary.get("Note", "")) == (what != "right")


def test_schedule_buffers_keep_their_precision(changed, tmp_path):
    buffer = torch.linspace(0.999, 0.001, 1000)
    file = changed(lambda tensors: tensors.update({"alphas_cumprod": buffer}))
    half = dict.fromkeys(("unet", "vae", "text_encoder"), torch.float16)
    convert(file, tmp_path / "o.safetensors", half)
    assert torch.equal(load_file(tmp_path / "o.safetensors")["alphas_cumprod"], buffer)


def test_scaled_fp8_is_put_back_in_a_folder_too(nano_model, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(nano_model, folder)
    tensors = load_file(folder / UNET_FILE)
    name = "time_embedding.linear_1.weight"
    plain = tensors[name].float()
    scale = plain.abs().max() / 400
    tensors |= {name: (plain / scale).to(torch.float8_e4m3fn),
                "time_embedding.linear_1.weight_scale": scale}  # fmt: skip
    save_file(tensors, folder / UNET_FILE)
    found = open_model(folder).components["unet"][name].read()
    assert (found - plain).abs().max() < 0.07 * plain.abs().max()


def test_plain_fp8_is_kept_as_it_is(changed, tmp_path):
    name = UNET + "time_embed.0.weight"
    stored = {}

    def change(tensors):
        tensors[name] = stored[name] = tensors[name].to(torch.float8_e4m3fn)

    convert(changed(change), tmp_path / "o.safetensors")
    written = load_file(tmp_path / "o.safetensors")[name]
    assert torch.equal(written.float(), stored[name].float())


def test_a_vae_of_stability_leaves_its_average_out(nano_model, source, tmp_path):
    file = source
    tensors = {n.removeprefix(VAE): t for n, t in load_file(file).items() if n.startswith(VAE)}
    tensors |= {"model_ema.decay": torch.tensor(0.99), "loss.logvar": torch.zeros(1)}
    save_file(tensors, tmp_path / "vae.safetensors", open_tensor_file(file).metadata)
    model = load_base_model(nano_model, OpenOptions(vae=str(tmp_path / "vae.safetensors")))
    assert not any("left out" in note for note in model.contents.notes)
    one_file = str(nano_model / "vae" / "diffusion_pytorch_model.safetensors")
    load_base_model(file, OpenOptions(vae=one_file))


def test_a_variant_that_is_not_there_is_refused_with_those_that_are(nano_model, source, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(nano_model, folder)
    with pytest.raises(ModelError, match="only the main files"):
        open_model(folder, OpenOptions(variant="bf16"))
    fp16 = folder / UNET_FILE.replace(".safetensors", ".fp16.safetensors")
    shutil.copy(folder / UNET_FILE, fp16)
    with pytest.raises(ModelError, match="it has fp16 and the main files"):
        open_model(folder, OpenOptions(variant="bf16"))
    notes = open_model(folder, OpenOptions(variant="fp16")).notes
    assert any("no fp16 files of the vae" in note for note in notes)
    with pytest.raises(ModelError, match="is one file and has no variants"):
        open_model(source, OpenOptions(variant="fp16"))


def test_marks_in_a_file_are_used(changed):
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    marked = changed(lambda tensors: tensors.update(marks), **{"modelspec.prediction_type": ""})
    contents = open_model(marked)
    assert contents.identity.prediction.name == "v_prediction"
    assert "v_pred" in contents.identity.evidence
    assert contents.scheduler_config["rescale_betas_zero_snr"] is True
    assert contents.notes == ()


def with_schedule(schedule, dtype=torch.float32):
    """Add a noise schedule to a file's tensors, as LDM's own programs do."""
    return lambda tensors: tensors.update(alphas_cumprod=schedule.alphas_cumprod.to(dtype))


def test_the_noise_schedule_in_a_file_counts_as_in_a1111(changed):
    own = NoiseSchedule.scaled_linear()
    velocity = {"modelspec.prediction_type": "v"}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        plain = open_model(changed(with_schedule(own, dtype), **velocity))
        assert plain.notes == ()
        assert "rescale_betas_zero_snr" not in plain.scheduler_config
        rescaled = open_model(changed(with_schedule(own.to_zero_terminal_snr(), dtype), **velocity))
        assert rescaled.notes == ()
        assert rescaled.scheduler_config["rescale_betas_zero_snr"] is True
    noise = open_model(changed(with_schedule(own.to_zero_terminal_snr())))
    assert "rescale_betas_zero_snr" not in noise.scheduler_config
    assert (
        "from 0.9991 to 0, that of Stable Diffusion 1000 from 0.9991 to 0.00466" in noise.notes[0]
    )
    other = NoiseSchedule.scaled_linear(0.0015, 0.0195)
    (note,) = open_model(changed(with_schedule(other), **velocity)).notes
    assert note.startswith("stores another noise schedule than the one used: its alphas_cumprod")


def test_the_users_word_counts_and_the_files_is_told(changed):
    file = changed(lambda _: None, **{"modelspec.prediction_type": "v"})
    identity = open_model(file, OpenOptions(prediction_type="epsilon")).identity
    assert identity.prediction.name == "epsilon"
    assert "against the model's own statement" in identity.evidence


@pytest.mark.parametrize(("said", "layer"), [("2", 2), ("99", None), ("x", None), ("", None)])
def test_the_encoder_layer_of_a_file(changed, said, layer):
    file = changed(lambda _: None, **{"modelspec.encoder_layer": said})
    assert trained_clip_skip(open_model(file)) == layer


def test_training_goes_by_what_the_model_records(changed, run_file, tmp_path):
    texts = {"modelspec.encoder_layer": "2", "modelspec.resolution": "1024x1024"}
    file = changed(lambda _: None, **texts)
    result = impasto(
        "train",
        run_file(saving={"format": "safetensors"}, training={"max_steps": 1}),
        "--set",
        f"model.path={json.dumps(str(file))}",
    )
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "Using clip skip 2: " in said
    assert "trained at 1024x1024" in said
    run = tmp_path / "run"
    assert "clip_skip = 2" in (run / "config.toml").read_text(encoding="utf-8")
    exported = next((run / "export").glob("*.safetensors"))
    metadata = open_tensor_file(exported).metadata
    assert metadata["modelspec.encoder_layer"] == "2"
    assert str(tmp_path) not in json.dumps(dict(metadata))
    assert str(tmp_path) not in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["num_hidden_layers", "layers_per_block"])
def test_metadata_that_asks_for_100000_layers_is_refused(changed, key):
    configs = {}

    def change(_):
        pass

    file = changed(change)
    configs = json.loads(open_tensor_file(file).metadata["impasto.configs"])
    for config in configs.values():
        if key in config:
            config[key] = 100_000
    file = changed(change, **{"impasto.configs": json.dumps(configs)})
    with pytest.raises(ModelError, match="100000; expected 200 at most"):
        load_base_model(file)
