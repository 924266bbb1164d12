"""Files of flags as written by kohya_ss' forms, and flags with empty values."""

import os
import tomllib

import pytest

from impasto.config.load import build_run_config
from impasto.errors import ConfigError
from impasto.sdscripts import drop_in
from impasto.sdscripts.flag import FINE_TUNE, SDXL_TRAIN
from impasto.sdscripts.importing import command_to_toml
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.settings import build_settings
from impasto.sdscripts.translate import translate

NEEDED = ["--pretrained_model_name_or_path=xl.safetensors", "--output_dir=out",
          "--train_data_dir=pictures", "--resolution=1024", "--seed=1"]  # fmt: skip
FORM = """
async_upload = false
bucket_reso_steps = 64
block_lr = ""
caption_dropout_every_n_epochs = 0
caption_dropout_rate = 0
caption_extension = ".txt"
clip_skip = 1
dataset_config = ""
dynamo_backend = "no"
enable_bucket = true
fp8_base = false
full_bf16 = true
gradient_accumulation_steps = 1
huber_c = 0.1
huber_schedule = "snr"
huggingface_repo_id = ""
keep_tokens = 0
learning_rate = 1e-05
learning_rate_te = 1e-05
learning_rate_te1 = 0
learning_rate_te2 = 0
loss_type = "l2"
lr_scheduler = "constant"
lr_scheduler_args = []
lr_scheduler_type = ""
lr_warmup_steps = 0
max_bucket_reso = 2048
max_data_loader_n_workers = 0
max_token_length = 75
max_train_steps = 1600
min_bucket_reso = 256
min_snr_gamma = 0
mixed_precision = "bf16"
multires_noise_discount = 0.3
noise_offset_random_strength = false
noise_offset_type = "Original"
optimizer_args = []
optimizer_type = "AdamW8bit"
output_dir = "out"
output_name = "last"
persistent_data_loader_workers = 0
pretrained_model_name_or_path = "xl.safetensors"
resolution = "1024,1024"
resume = ""
sample_every_n_steps = 0
sample_prompts = ""
sample_sampler = "euler_a"
save_every_n_epochs = 1
save_model_as = "safetensors"
save_precision = "bf16"
t5xxl_max_token_length = 512
train_batch_size = 1
train_data_dir = "pictures"
train_text_encoder = false
v2 = false
v_pred_like_loss = 0
vae = ""
vae_batch_size = 1
wandb_run_name = "last"
xformers = true
"""


OF_FINE_TUNE = """
caption_extension = ".txt"
dataset_repeats = 2
dynamo_backend = "no"
enable_bucket = true
in_json = "meta_lat.json"
learning_rate = 1e-05
learning_rate_te = 1e-05
lr_scheduler = "constant"
lr_scheduler_args = []
max_data_loader_n_workers = 0
max_timestep = 1000
max_train_epochs = 1
max_train_steps = 4
noise_offset_type = "Original"
optimizer_type = "AdamW8bit"
output_dir = "out"
pretrained_model_name_or_path = "sd15.safetensors"
resolution = "512,512"
train_data_dir = "pictures"
wandb_api_key = "123abc"
wandb_run_name = "last"
"""
"""The flags of the form "Finetuning" for SD 1.5, with a text encoder rate, trained or not."""


@pytest.fixture
def form(tmp_path):
    file = tmp_path / "config_finetune.toml"
    file.write_text(FORM, encoding="utf-8")
    return file


def test_a_file_of_a_form_is_taken(form):
    told = []
    flags = parse_flags(SDXL_TRAIN, [f"--config_file={form}"], told.append)
    config = build_settings(SDXL_TRAIN, flags, translate(SDXL_TRAIN, flags).tree)
    assert (config.optimizer.kind, config.optimizer.lr) == ("adamw8bit", 1e-5)
    assert config.training.weight_dtype == "bf16"
    assert not config.method.train_text_encoder
    ignored = ["learning_rate_te", "noise_offset_type", "t5xxl_max_token_length"]
    assert [line.partition(" in ")[0] for line in told] == ignored
    assert all(line.endswith("has no such flag, so it has no effect.") for line in told)
    assert not {"resume", "v2", "vae", "block_lr", "persistent_data_loader_workers"} & set(flags)


def test_what_has_no_effect_is_said_by_the_command(form, monkeypatch):
    said = []
    monkeypatch.setattr(drop_in, "_train", lambda script, flags, console: None)
    monkeypatch.setattr("impasto.cli.console.Console.note", lambda console, text: said.append(text))
    drop_in.run(SDXL_TRAIN, [f"--config_file={form}"])
    assert any(line.startswith(f"noise_offset_type in {form}: ") for line in said)


def test_what_has_no_effect_is_a_comment_of_imported_settings(form):
    text = command_to_toml(["sdxl_train.py", f"--config_file={form}"])
    assert "# noise_offset_type in " in text
    assert build_run_config(tomllib.loads(text), source="test").optimizer.kind == "adamw8bit"


@pytest.mark.parametrize(
    ("script", "line", "near"),
    [
        (SDXL_TRAIN, "learning_rates = 1", "learning_rate"),
        (SDXL_TRAIN, "shufle_caption = true", "shuffle_caption"),
        (FINE_TUNE, "save_presision = 'fp16'", "save_precision"),
    ],
)
def test_a_slip_in_a_file_is_refused(tmp_path, script, line, near):
    file = tmp_path / "flags.toml"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"flags\.toml: .*The nearest is --{near}\."):
        parse_flags(script, [f"--config_file={file}"])


@pytest.mark.parametrize("name", ["block_lr", "lr_scheduler_type", "resume", "config_file"])
def test_an_empty_text_is_not_given(name):
    given = parse_flags(SDXL_TRAIN, [*NEEDED, f"--{name}="])
    assert given == parse_flags(SDXL_TRAIN, NEEDED)


@pytest.mark.parametrize("name", ["min_snr_gamma", "v_pred_like_loss", "sample_every_n_epochs"])
def test_a_zero_is_off_where_it_is_there(name):
    assert parse_flags(SDXL_TRAIN, [*NEEDED, f"--{name}=0"]) == parse_flags(SDXL_TRAIN, NEEDED)


def test_the_name_of_a_file_of_flags_has_its_ending_added(tmp_path):
    """A missing suffix is added, also after a dot; an existing file with another suffix is read."""
    files = {"run_v1.5.toml": 5, "flags.txt": 6, "both.txt": 7, "both.txt.toml": 8}
    for name, steps in files.items():
        (tmp_path / name).write_text(f"max_train_steps = {steps}", encoding="utf-8")
    for name, steps in (("run_v1.5", 5), ("run_v1.5.toml", 5), ("flags.txt", 6), ("both.txt", 8)):
        found = parse_flags(SDXL_TRAIN, [f"--config_file={tmp_path / name}"])
        assert found == {"max_train_steps": steps}
    with pytest.raises(ConfigError, match=r"run_v2\.toml"):
        parse_flags(SDXL_TRAIN, [f"--config_file={tmp_path / 'run_v2'}"])


def test_an_empty_text_takes_back_what_the_file_says(tmp_path):
    file = tmp_path / "flags.toml"
    file.write_text("block_lr = '1'\nresume = 'run'", encoding="utf-8")
    words = [f"--config_file={file}", "--block_lr=", "--resume="]
    assert parse_flags(SDXL_TRAIN, words) == {}
    assert parse_flags(SDXL_TRAIN, words[:1]) == {"block_lr": "1", "resume": "run"}


def test_a_rate_of_a_text_encoder_that_does_not_learn_is_told(tmp_path):
    """kohya_ss' form always writes one."""
    file = tmp_path / "config_finetune.toml"
    file.write_text(OF_FINE_TUNE, encoding="utf-8")
    flags = parse_flags(FINE_TUNE, [f"--config_file={file}"])
    found = translate(FINE_TUNE, flags)
    config = build_settings(SDXL_TRAIN, flags, found.tree)
    assert (config.method.train_text_encoder, config.method.text_encoder_lr) == (False, None)
    assert "--learning_rate_te: it has no effect, as the text encoder is not trained." in (
        found.notices
    )


def test_a_key_of_wandb_is_for_the_process_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(drop_in, "_train", lambda script, flags, console: None)
    monkeypatch.setenv("WANDB_API_KEY", "of before")
    line = [*NEEDED, "--log_with=wandb", "--wandb_api_key=123abc"]
    drop_in.run(SDXL_TRAIN, line)
    assert os.environ["WANDB_API_KEY"] == "123abc"


@pytest.mark.parametrize("name", ["--wandb_api_key", "--wandb_api", "--wandb_a"])
def test_a_key_of_wandb_is_in_no_comment(name):
    """A prefix of a flag is accepted as the flag, so it must be removed too."""
    for words in ([f"{name}=123abc"], [name, "123abc"]):
        text = command_to_toml(["sdxl_train.py", *NEEDED, "--log_with=wandb", *words])
        assert "123abc" not in text
        assert "# --wandb_api_key: " in text
