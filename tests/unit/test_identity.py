"""What a model is: each source of evidence, their priority, and the case without any."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.cli.convert import convert
from impasto.cli.main import main
from impasto.config.run import ModelConfig
from impasto.diffusion.prediction import PREDICTIONS
from impasto.errors import ModelError
from impasto.models.families import FAMILIES
from impasto.models.reading.identity import TELLING_TENSOR, Clues, identify
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.studio.pages.model_forms import CONVERT_CHOICES


def shaped(*shape):
    return LazyTensor.of(torch.zeros(shape))


def clues(generation=2, width=1024, channels=4, first=320, **others):
    entry = (first, first) if generation == 2 else (first, first, 1, 1)
    unet = {
        "conv_in.weight": shaped(first, channels, 3, 3),
        "down_blocks.0.attentions.0.proj_in.weight": shaped(*entry),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": shaped(first, width),
        **others.pop("more", {}),
    }
    dialect = "OpenCLIP" if others.pop("open_clip", generation == 2) else "CLIP"
    return Clues("model", unet, (("text_encoder", dialect),), **others)


def telling(deviation):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    values = (values - values.mean()) / values.std(correction=0) * deviation
    return {TELLING_TENSOR: LazyTensor.of(values)}


@pytest.mark.parametrize(
    ("found", "family", "prediction", "because"),
    [
        (clues(1, 768), "sd1", "epsilon", "unless stated otherwise"),
        (clues(1, 768, metadata={"modelspec.prediction_type": "v"}), "sd1", "v_prediction", "file"),
        (clues(metadata={"modelspec.prediction_type": "v"}), "sd2-v", "v_prediction", "modelspec"),
        (clues(metadata={"modelspec.prediction_type": "epsilon"}), "sd2-base", "epsilon", "file"),
        (
            clues(1, 768, metadata={"modelspec.architecture": "stable-diffusion-v1"}),
            "sd1",
            "epsilon",
            "unless stated otherwise",
        ),
        (clues(metadata={"modelspec.predict_key": "v"}), "sd2-v", "v_prediction", "predict_key"),
        (clues(metadata={"modelspec.prediction_type": "v-zsnr"}), "sd2-v", "v_prediction", "file"),
        (
            clues(metadata={"modelspec.architecture": "stable-diffusion-v2-512"}),
            "sd2-base",
            "epsilon",
            "architecture",
        ),
        (clues(counters={"global_step": 875000}), "sd2-base", "epsilon", "global_step 875000"),
        (clues(counters={"global_step": 110000}), "sd2-v", "v_prediction", "global_step 110000"),
        (clues(more=telling(0.2)), "sd2-v", "v_prediction", "guessed: spread"),
        (clues(more=telling(0.05)), "sd2-base", "epsilon", "guessed: spread"),
        (
            clues(scheduler_config={"prediction_type": "v_prediction"}),
            "sd2-v",
            "v_prediction",
            "sch",
        ),
        (clues(scheduler_config={}), "sd2-base", "epsilon", "without prediction_type"),
        (clues(prediction_name="epsilon", more=telling(0.2)), "sd2-base", "epsilon", "model.pred"),
        (clues(family_key="sd2-v", more=telling(0.05)), "sd2-v", "v_prediction", "model.family"),
        (clues(family_key="sd2-v", prediction_name="epsilon"), "sd2-v", "epsilon", "model.pred"),
    ],
)
def test_each_witness(found, family, prediction, because):
    identity = identify(found)
    assert (identity.family.key, identity.prediction.name) == (family, prediction)
    assert because in identity.evidence


def test_a_word_on_the_prediction_that_nobody_knows_is_no_silence():
    found = clues(1, 768, metadata={"modelspec.prediction_type": "flow"})
    with pytest.raises(ModelError, match="is 'flow', which Impasto does not know"):
        identify(found)
    said = dataclasses.replace(found, prediction_name="epsilon")
    assert identify(said).prediction.name == "epsilon"


@pytest.mark.parametrize(
    "open_one",
    [
        clues(),
        clues(more=telling(0.0)),
        clues(more=telling(0.091)),
        clues(counters={"global_step": 5}),
    ],
    ids=["nothing known", "untrained", "near the threshold", "an unknown count"],
)
def test_where_nobody_knows_the_two_choices_are_named(open_one):
    with pytest.raises(ModelError, match=r"epsilon .*v_prediction .*model\.prediction_type"):
        identify(open_one)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (clues(channels=9), "inpainting: its U-Net takes 9 channels"),
        (clues(channels=8), "InstructPix2Pix"),
        (clues(channels=5), "depth"),
        (clues(more={"time_embedding.cond_proj.weight": shaped(320, 256)}), "latent consistency"),
        (clues(1, 768, family_key="sd2-v"), "model.family says sd2-v, but the tensors"),
        (clues(2, 2048), "not a model of a family .*2048"),
        (clues(1, 768, open_clip=True), "OpenCLIP text encoder, .* SD 1.x: CLIP text"),
        (clues(scheduler_config={"prediction_type": "sample"}), "prediction_type is 'sample'"),
        (Clues("model", {}, ()), "conv_in is missing"),
        (Clues("model", {"conv_in.weight": shaped(8, 4, 3, 3)}, ()), "without cross-"),
    ],
)
def test_what_is_not_trained_is_refused_with_a_sentence(found, words):
    with pytest.raises(ModelError, match=words):
        identify(found)


def test_settings_options_and_forms_know_the_tables():
    fields = ModelConfig.model_fields
    assert set(fields["family"].annotation.__args__[0].__args__) == {f.key for f in FAMILIES}
    (option,) = (p for p in convert.params if p.name == "family")
    assert set(option.type.choices) == {f.key for f in FAMILIES}
    assert set(CONVERT_CHOICES["family"]) == {f.key for f in FAMILIES}
    assert set(fields["prediction_type"].annotation.__args__[0].__args__) == PREDICTIONS.keys()


def test_a_file_without_texts_needs_a_word_or_its_yaml(nano_sd2_model, ldm_file, tmp_path, capsys):
    """SD 2 without its metadata is an error; a sidecar or the user's setting resolves it."""
    from impasto.models.reading.configs import CONFIGS_KEY

    file = ldm_file(nano_sd2_model)
    bare = tmp_path / "bare.safetensors"
    metadata = open_tensor_file(file).metadata
    save_file(load_file(file), bare, {CONFIGS_KEY: metadata[CONFIGS_KEY]})
    with pytest.raises(ModelError, match=r"epsilon.*v_prediction"):
        open_model(bare)
    main(["inspect", str(bare)])
    assert "Cannot be used" in capsys.readouterr().out
    sidecar = bare.with_suffix(".yaml")
    for text, expected in (("v", "v_prediction"), ("eps", "epsilon")):
        sidecar.write_text(f"model:\n  params:\n    parameterization: {text}\n", encoding="utf-8")
        identity = open_model(bare).identity
        assert identity.prediction.name == expected
        assert "bare.yaml" in identity.evidence
    sidecar.write_text("model: [", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read as YAML"):
        open_model(bare)
    sidecar.unlink()
    opened = open_model(bare, OpenOptions(prediction_type="v_prediction"))
    assert opened.identity.family.key == "sd2-v"
    assert opened.scheduler_config["prediction_type"] == "v_prediction"


def test_a_small_model_without_its_configuration_is_not_guessed(nano_model, ldm_file, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(ldm_file(nano_model)), bare)
    with pytest.raises(ModelError, match="attention heads and groups"):
        open_model(bare)


def refused(capsys, *words):
    """Return the exit code and the message of a refusal."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return caught.value.code, capsys.readouterr().err


def test_inspect_describes_what_is_no_base_model(tmp_path, capsys):
    file = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1)}, file, {"ss_network_dim": "8"})
    main(["inspect", str(file)])
    said = capsys.readouterr().out
    assert "LoRA" in said
    assert "ss_network_dim" in said
    code, reason = refused(capsys, "convert", file, tmp_path / "out.safetensors")
    assert code == 4
    assert "LoRA" in reason
    assert not (tmp_path / "out.safetensors").exists()


def test_a_hub_id_without_a_network_is_explained(capsys):
    for name in ("nobody/nothing", "nobody/Some_Model_V5.1_noVAE@main"):
        code, reason = refused(capsys, "inspect", name)
        assert code == 4
        assert "Hugging Face Hub" in reason
        assert "path of a local copy" in reason.replace("\n", " ")
    _, reason = refused(capsys, "inspect", "models/gone.safetensors")
    assert "models/gone.safetensors does not exist" in reason
