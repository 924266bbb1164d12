"""LoRAs extracted from two models and merged again: values, names, errors, and refusals."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as utils
from loras import FULL, TO_Q, as_file, extracted, merge, of_a_lora, tuned
from nano_sdxl import write_sdxl_file
from safetensors.torch import load_file, save_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.errors import ConfigError, ModelError
from impasto.models import families
from impasto.models.merging.extraction import ExtractionRules, extract
from impasto.models.merging.low_rank import RankRule, decompose
from impasto.models.networks.loading import load_meta_model
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.architectures import write_random_model
from impasto.models.writing.conversion import convert_model


@pytest.fixture(scope="module")
def base(nano_model, tmp_path_factory):
    return as_file(nano_model, tmp_path_factory.mktemp("base") / "base.safetensors")


def distance(first, second):
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def test_the_nearest_matrices_of_a_rank_are_those_of_the_singular_values():
    """Checked against torch's decomposition, for both orientations, and by fraction of energy."""
    for rows, columns in ((12, 30), (30, 12)):
        matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        for rank in (1, 5, 12):
            found = decompose(matrix, RankRule(most=rank))
            assert found.rank == rank
            wanted = (u[:, :rank] * s[:rank]) @ v[:rank]
            torch.testing.assert_close(found.up @ found.down, wanted, rtol=1e-9, atol=1e-9)
        share = (s[:4].square().sum() / s.square().sum()).item()
        assert decompose(matrix, RankRule(energy=share - 1e-6)).rank == 4
        assert decompose(matrix, RankRule(energy=share + 1e-6)).rank == 5
        assert decompose(matrix, RankRule(most=2, energy=share)).rank == 2
        assert decompose(matrix, RankRule(energy=1.0)).rank == 12


def test_a_matrix_of_a_low_rank_is_found_whole():
    thin = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrix = thin @ thin.T
    found = decompose(matrix, RankRule(energy=1 - 1e-9))
    assert found.rank == 3
    torch.testing.assert_close(found.up @ found.down, matrix, rtol=1e-9, atol=1e-9)
    assert decompose(matrix, RankRule()).down.isfinite().all()


class Whole(NamedTuple):
    """A model, a changed copy, and the complete difference of its layers as a LoRA."""

    family: str
    source: Path
    model: Path
    lora: Path
    rows: dict[str, str]


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def whole(request, nano_architecture, nano_model, nano_sd2_model, tmp_path_factory):
    """One for each family. Read-only by agreement."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sdxl":
        source = write_sdxl_file(nano_architecture, folder / "source.safetensors")
    else:
        base = {"sd1": nano_model, "sd2": nano_sd2_model}[request.param]
        source = as_file(base, folder / "source.safetensors")
    model = tuned(source, folder / "tuned.safetensors", of=of_a_lora)
    rows, _ = extracted(source, model, folder / "l.safetensors")
    return Whole(request.param, source, model, folder / "l.safetensors", rows)


def test_at_full_rank_the_model_comes_back(whole, tmp_path):
    family = whole.family
    assert whole.rows["Error"].startswith("0.00 %")
    assert "In all" not in whole.rows
    merge(whole.source, [whole.lora], tmp_path / "back.safetensors")
    again, wanted = (open_model(file) for file in (tmp_path / "back.safetensors", whole.model))
    for part, tensors in wanted.components.items():
        own = {name: tensor.read() for name, tensor in again.components[part].items()}
        assert distance({name: t.read() for name, t in tensors.items()}, own) < 1e-6, part
    names = set(load_file(whole.lora))
    starts = {name.split("_")[1] for name in names}
    assert starts == {"sdxl": {"unet", "te1", "te2"}}.get(family, {"unet", "te"})
    if family == "sdxl":
        block = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight"
        assert block in names
    else:
        assert f"{TO_Q}.lora_down.weight" in names
    text = "te2" if family == "sdxl" else "te"
    assert f"lora_{text}_text_model_encoder_layers_0_self_attn_q_proj.alpha" in names


def test_ranks_errors_and_metadata(base, tmp_path):
    """The reported error is that of the file's product against the difference, in float64."""
    model = tuned(base, tmp_path / "tuned.safetensors")
    rules = ExtractionRules(4, 2)
    rows, worst = extracted(base, model, tmp_path / "l.safetensors", rules)
    tensors = load_file(tmp_path / "l.safetensors")
    texts = dict(open_tensor_file(tmp_path / "l.safetensors").metadata)
    assert tensors[f"{TO_Q}.lora_down.weight"].shape[0] == 4
    assert tensors[f"{TO_Q}.alpha"] == 4
    assert tensors["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"].shape == (2, 16, 3, 3)
    assert tensors["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"].shape == (16, 2, 1, 1)
    assert tensors["lora_unet_mid_block_resnets_0_time_emb_proj.lora_down.weight"].shape[0] == 4
    record = json.loads(texts["impasto.extracted"])
    first, second = (
        open_model(file).components[families.SD1.unet.name][
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
        ].read().double()
        for file in (base, model)
    )  # fmt: skip
    change = second - first
    up, down = (tensors[f"{TO_Q}.lora_{half}.weight"].double() for half in ("up", "down"))
    error = (change - up @ down).norm() / change.norm()
    assert record["layers"][TO_Q] == [4, pytest.approx(float(error), abs=2e-6)]
    assert 0 < record["error"] < record["error_with_what_is_left_out"] < 1
    assert rows["Error"].startswith(f"{100 * record['error']:.2f} %")
    assert rows["In all"].startswith(f"{100 * record['error_with_what_is_left_out']:.2f} %")
    assert len(worst) == 5
    assert texts["ss_network_module"] == "networks.lora"
    assert (texts["ss_network_dim"], texts["ss_network_alpha"]) == ("4", "4")
    assert json.loads(texts["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "4"}
    assert (texts["ss_base_model_version"], texts["ss_v2"]) == ("sd_v1", "False")
    assert texts["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert str(tmp_path) not in json.dumps(texts)


def test_energy_without_convolutions_and_text_encoders(base, tmp_path):
    model = tuned(base, tmp_path / "tuned.safetensors")
    rules = ExtractionRules(None, 0, energy=0.9, with_text=False)
    extraction = extract(open_model(base), open_model(model), rules)
    assert extraction.layers
    assert all("_attentions_" in name for name in extraction.layers)
    assert all(layer.error**2 < 0.1 + 1e-3 for layer in extraction.layers.values())
    assert {*extraction.outside} == {part.name for part in families.SD1.components}
    assert {*extraction.unasked} == {families.SD1.unet.name, families.SD1.text_encoders[0].name}
    everything = extract(open_model(base), open_model(model), ExtractionRules(None, None))
    assert not everything.unasked
    assert everything.outside == extraction.outside


def test_what_differs_by_rounding_alone_is_unchanged(base, tmp_path):
    """Untrained weights are the same in float16 and in float32."""
    half, marked = tmp_path / "half.safetensors", "transformer_blocks.0.attn1.to_q"
    model = tuned(base, tmp_path / "tuned.safetensors", of=lambda name: marked in name)
    dtypes = dict.fromkeys(families.BY_SETTING.values(), torch.float16)
    convert_model(str(model), half, "safetensors", dtypes, OpenOptions())
    extraction = extract(open_model(base), open_model(half), FULL)
    assert all("attn1_to_q" in name for name in extraction.layers)
    assert extraction.unchanged > 10
    assert not extraction.outside


@pytest.fixture(scope="module")
def halves(base, tmp_path_factory):
    """The model in float16 and in bfloat16."""
    folder = tmp_path_factory.mktemp("halves")
    files = [folder / f"{word}.safetensors" for word in ("fp16", "bf16")]
    for file, dtype in zip(files, (torch.float16, torch.bfloat16), strict=True):
        dtypes = dict.fromkeys(families.BY_SETTING.values(), dtype)
        convert_model(str(base), file, "safetensors", dtypes, OpenOptions())
    return files


@pytest.mark.parametrize("order", [1, -1])
def test_float16_and_bfloat16_of_one_model_are_the_same(halves, tmp_path, order):
    """Neither is a rounding of the other: both round float32, by half an ulp each."""
    first, second = halves[::order]
    with pytest.raises(ModelError, match="are the same in all"):
        extract(open_model(first), open_model(second), FULL)
    marked = "transformer_blocks.0.attn1.to_q"
    model = tuned(second, tmp_path / "tuned.safetensors", of=lambda name: marked in name)
    extraction = extract(open_model(first), open_model(model), FULL)
    assert extraction.layers
    assert all("attn1_to_q" in name for name in extraction.layers)


def test_the_same_model_twice_and_ranks_no_layer_has_are_refused(base, tmp_path):
    target = tmp_path / "l.safetensors"
    with pytest.raises(ModelError, match="are the same in all"):
        extracted(base, tuned(base, tmp_path / "same.safetensors", size=0), target)
    model = tuned(base, tmp_path / "tuned.safetensors")
    with pytest.raises(ConfigError, match=r"--rank 500 is above .* the widest has 16"):
        extracted(base, model, target, ExtractionRules(500, 4))
    usual = ExtractionRules(64, 64, asked=())
    assert extract(open_model(base), open_model(model), usual).layers[TO_Q].rank == 8
    with pytest.raises(ConfigError, match=r"--conv-rank 500 is above .* the widest has 16"):
        extracted(base, model, target, ExtractionRules(4, 500))
    with pytest.raises(ConfigError, match="is the source itself"):
        extracted(base, model, base)
    assert not target.exists()


def test_nan_in_a_model_leaves_no_file(base, tmp_path):
    tensors = load_file(base)
    tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"][0] = math.nan
    broken = tmp_path / "broken.safetensors"
    save_file(tensors, broken, dict(open_tensor_file(base).metadata))
    with pytest.raises(ModelError, match=r"broken\.safetensors .*final_layer_norm\.bias holds NaN"):
        extracted(base, broken, tmp_path / "l.safetensors")
    assert not (tmp_path / "l.safetensors").exists()


def test_diffusers_finds_the_layer_of_every_key(whole):
    """diffusers' conversion of sd-scripts' names gives modules of the network."""
    tensors, networks = load_file(whole.lora), load_meta_model(whole.source).networks
    layers = len(tensors) // 3
    if whole.family == "sdxl":
        tensors = utils._maybe_map_sgm_blocks_to_diffusers(tensors, networks["unet"].config)
    theirs, alphas = utils._convert_non_diffusers_lora_to_diffusers(dict(tensors))
    modules = {
        f"{part}.{name}".replace(f"{part}.text_model.", f"{part}.")
        for part, network in networks.items()
        for name, _ in network.named_modules()
    }
    found = {re.sub(r"\.(lora_linear_layer|lora)\.(up|down)\.weight$", "", key) for key in theirs}
    found = {name.replace(".text_model.", ".").replace(".processor", "") for name in found}
    found = {re.sub(r"\.to_(q|k|v|out)_lora\.(up|down)\.weight$", r".to_\1", n) for n in found}
    found = {re.sub(r"self_attn\.to_(\w+)$", r"self_attn.\1_proj", name) for name in found}
    found = {name + ".0" if name.endswith(".to_out") else name for name in found}
    assert len(found) == len(alphas) == layers
    assert found <= modules


def test_two_sizes_of_model_do_not_meet(base, nano_architecture, tmp_path):
    unet, vae, text = nano_architecture.configs
    other = replace(nano_architecture, configs=(unet, vae, {**text, "num_hidden_layers": 2}))
    write_random_model(other, tmp_path / "o", seed=0, dtype=torch.float32)
    with pytest.raises(ModelError, match="does not have the same tensors"):
        extracted(base, tmp_path / "o", tmp_path / "l.safetensors")
