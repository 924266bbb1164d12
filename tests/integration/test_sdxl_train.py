"""sd-scripts' SDXL command as in its guide, on a nano model: training and saved files."""

from pathlib import Path

import pytest
import torch
from conftest import draw_images
from nano_sdxl import write_sdxl_file
from safetensors.torch import load_file
from support.warm import running

from impasto.config.setting_files import read_toml
from impasto.errors import ModelError, RunError
from impasto.models.families import SDXL
from impasto.models.networks.loading import load_base_model
from impasto.sdscripts import drop_in as program
from impasto.sdscripts.flag import FINE_TUNE, SDXL_TRAIN
from impasto.sdscripts.sdxl_rules import BLOCKS

SCRIPT = Path(__file__).parents[2] / "sdxl_train.py"
UNET, FIRST, SECOND = (
    "model.diffusion_model.", "conditioner.embedders.0.", "conditioner.embedders.1.",
)  # fmt: skip


@pytest.fixture(scope="module")
def sdxl_file(tmp_path_factory, nano_architecture):
    """A single file of a nano SDXL. Read-only by agreement."""
    return write_sdxl_file(nano_architecture, tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors")


@pytest.fixture
def words(tmp_path, sdxl_file):
    """Return the flags of the guide's command, without those that a test changes."""
    images = draw_images(tmp_path / "images", 4)
    (tmp_path / "dataset.toml").write_text(
        f"""
[[datasets]]
resolution = 64
batch_size = 2

  [[datasets.subsets]]
  image_dir = "{images.as_posix()}"
  caption_extension = ".txt"
""",
        encoding="utf-8",
    )
    return [
        f"--pretrained_model_name_or_path={sdxl_file}",
        f"--dataset_config={tmp_path / 'dataset.toml'}",
        f"--output_dir={tmp_path / 'out'}",
        "--output_name=mine",
        "--save_model_as=safetensors",
        "--max_train_steps=2",
        "--seed=1",
    ]


SMALL = 0.02
GUIDE = [
    "--learning_rate=4e-7",
    "--optimizer_type=adafactor",
    "--optimizer_args", "scale_parameter=False", "relative_step=False", "warmup_init=False",
    "--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", "100",
    "--mixed_precision=bf16", "--full_bf16", "--fused_backward_pass", "--gradient_checkpointing",
    "--cache_latents", "--no_half_vae", "--sdpa",
]  # fmt: skip


@pytest.fixture
def with_gpu(monkeypatch):
    """Apply the requested options as if a GPU were present."""
    monkeypatch.setattr(
        program, "_machine", lambda: {"without_gpu": None, "has_tensorboard": False}
    )


def changed(before, after):
    return {name for name in before if not torch.equal(before[name].to(after[name]), after[name])}


def test_the_literal_command_of_the_guide(tmp_path, words, sdxl_file):
    done = running.run(SCRIPT, *words, *GUIDE)
    assert done.returncode == 0, done.stderr
    assert "SDXL, predicts epsilon" in done.stdout
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"mine-run", "mine.safetensors"}
    before, after = load_file(sdxl_file), load_file(out / "mine.safetensors")
    assert before.keys() == after.keys()
    assert {t.dtype for name, t in after.items() if name.startswith(UNET)} == {torch.bfloat16}
    others = [name for name in before if not name.startswith(UNET)]
    assert others
    assert all(torch.equal(before[name], after[name]) for name in others)
    assert load_base_model(out / "mine.safetensors").identity.family is SDXL


@pytest.mark.usefixtures("fresh_accelerate", "with_gpu")
def test_blocks_have_rates_of_their_own_and_texts_are_kept(tmp_path, words, sdxl_file, capsys):
    rates = ["1e-2"] * len(BLOCKS)
    frozen = [0, 5, 11, 15, 22]
    for number in frozen:
        rates[number] = "0"
    rates[10] = "1e-1"
    flags = [word for word in GUIDE if not word.startswith(("--learning_rate", "--lr_", "100"))]
    program.run(
        SDXL_TRAIN,
        [
            *words,
            *(word for word in flags if word != "constant_with_warmup"),
            f"--block_lr={','.join(rates)}",
            "--cache_text_encoder_outputs",
            "--cache_text_encoder_outputs_to_disk",
            "--save_precision=float",
        ],
    )
    kept = read_toml(tmp_path / "out" / "mine-run" / "config.toml")
    training = kept["training"]
    assert (training["weight_dtype"], training["optimizer_in_backward"]) == ("bf16", "last_norm")
    assert list((tmp_path / "images" / ".impasto" / "texts").iterdir())
    assert "--fused_backward_pass: each weight changes" in capsys.readouterr().out
    before, after = load_file(sdxl_file), load_file(tmp_path / "out" / "mine.safetensors")
    moved = {_block(name) for name in changed(_rounded(before), after) if name.startswith(UNET)}
    assert moved == set(range(len(BLOCKS))) - set(frozen)
    usual, larger = (_step(before, after, lambda name, n=n: _is_of(name, n), 0.5) for n in (3, 10))
    assert 5 < larger / usual < 20


def _rounded(tensors):
    """Round weights as they are stored in 16 bits while training."""
    return {
        name: tensor.bfloat16().float() if name.startswith(UNET) else tensor
        for name, tensor in tensors.items()
    }


def _is_of(name, number):
    return name.startswith(UNET) and _block(name) == number


def _step(before, after, chosen, quantile):
    """Return how far small weights have moved: near 0, 16 bits are exact enough."""
    moved = [
        (after[name].float() - tensor.float())[tensor.abs() < SMALL].abs().flatten()
        for name, tensor in before.items()
        if chosen(name)
    ]
    return float(torch.cat(moved).quantile(quantile))


def _block(name):
    """Return the number of a block by sd-scripts' `get_block_params_to_optimize`."""
    first, *rest = name.removeprefix(UNET).split(".")
    starts = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}
    if first in ("time_embed", "label_emb"):
        return 0
    return 22 if first == "out" else starts[first] + int(rest[0])


@pytest.mark.usefixtures("fresh_accelerate", "with_gpu")
def test_each_text_encoder_has_a_rate_of_its_own(tmp_path, words, sdxl_file):
    flags = [
        "--train_text_encoder", "--learning_rate=1e-3", "--learning_rate_te1=1e-2",
        "--learning_rate_te2=0", "--mixed_precision=bf16", "--full_bf16", "--v_parameterization",
        "--zero_terminal_snr",
    ]  # fmt: skip
    program.run(SDXL_TRAIN, [*words, *flags])
    before, after = load_file(sdxl_file), load_file(tmp_path / "out" / "mine.safetensors")
    moved = changed(before, after)
    assert any(name.startswith(FIRST) for name in moved)
    text = _step(before, after, lambda name: name.startswith(FIRST) and ".mlp." in name, 0.9)
    unet = _step(before, after, lambda name: name.startswith(UNET), 0.9)
    assert text == pytest.approx(2e-2, rel=0.3)  # two steps of AdamW at --learning_rate_te1
    assert unet == pytest.approx(2e-3, rel=0.3)
    second = [name for name in before if name.startswith(SECOND)]
    assert all(torch.equal(before[name], after[name]) for name in second)
    assert after.keys() - before.keys() == {"v_pred", "ztsnr"}
    with pytest.raises(RunError, match=r"sdxl-v, which fine_tune\.py does not.*sdxl_train\.py"):
        run = tmp_path / "out" / "mine-run"
        program.run(FINE_TUNE, [f"--resume={run}", "--max_train_steps=4"])


@pytest.mark.usefixtures("fresh_accelerate", "with_gpu")
def test_the_other_command_is_named_for_a_model_of_the_other_family(
    tmp_path, words, nano_model, nano_sd2_model
):
    other = f"--pretrained_model_name_or_path={nano_model}"
    for script, flags, expected in (
        (FINE_TUNE, words, r"model of SDXL, which fine_tune\.py does not train\. Run sdxl_train"),
        (SDXL_TRAIN, [*words, other], r"model of SD 1\.x, which sdxl_train\.py .* Run fine_tune"),
        (FINE_TUNE, [*words, other, "--v2"], r"model of SD 1\.x\. Remove --v2"),
        (FINE_TUNE, [*words, other.replace(str(nano_model), str(nano_sd2_model))], "Add --v2"),
    ):
        with pytest.raises(ModelError, match=expected):
            program.run(script, flags)
    assert not list((tmp_path / "out").iterdir())
