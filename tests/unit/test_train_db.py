"""sd-scripts' DreamBooth command as settings: its flags, folders and text encoder."""

import json
from pathlib import Path

import pytest
from conftest import GOLDEN

from impasto.config.load import build_run_config
from impasto.errors import ConfigError, OtherFamilyError
from impasto.sdscripts.flag import TRAIN_DB
from impasto.sdscripts.flags import flags_of
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.settings import build_settings, in_terms_of
from impasto.sdscripts.translate import translate

NEEDED = ["--pretrained_model_name_or_path=sd15.safetensors", "--output_dir=out",
          "--train_data_dir=pictures", "--resolution=512", "--seed=1"]  # fmt: skip
RECORDED = json.loads((GOLDEN / "train_db_flags.json").read_text(encoding="utf-8"))
FORM = """
bucket_no_upscale = true
caption_extension = ".txt"
dynamo_backend = "no"
enable_bucket = true
epoch = 1
learning_rate = 1e-05
learning_rate_te = 1e-06
lr_scheduler_args = []
max_data_loader_n_workers = 0
max_timestep = 1000
max_train_steps = 4
noise_offset_type = "Original"
optimizer_args = []
optimizer_type = "AdamW8bit"
output_dir = "out"
output_name = "last"
pretrained_model_name_or_path = "sd15.safetensors"
prior_loss_weight = 1
reg_data_dir = ""
resolution = "512,512"
stop_text_encoder_training = 3
train_data_dir = "pictures"
v2 = false
wandb_run_name = "last"
xformers = true
"""
"""The flags of kohya_ss' form "Dreambooth" for SD 1.5, without most of its defaults."""


def settings(*words, needed=NEEDED):
    return translate(TRAIN_DB, parse_flags(TRAIN_DB, [*needed, *words]))


def method_of(*words):
    return build_run_config(settings(*words).tree, source="test").method


def test_every_flag_of_the_parser_has_a_row():
    assert len(RECORDED) == 169
    assert {name: flag.kind for name, flag in flags_of(TRAIN_DB).items()} == {
        name: row["kind"] for name, row in RECORDED.items()
    }


@pytest.mark.parametrize(
    ("words", "learns", "until"),
    [
        ([], True, None),
        (["--stop_text_encoder_training=300"], True, 300),
        (["--stop_text_encoder_training=0"], False, None),
        (["--stop_text_encoder_training=-1"], False, None),
    ],
)
def test_the_text_encoder_learns_until_it_is_stopped(words, learns, until):
    method = method_of(*words)
    assert (method.train_text_encoder, method.text_encoder_until_step) == (learns, until)


def test_the_text_encoder_has_a_rate_of_its_own_while_it_learns():
    assert method_of("--learning_rate_te=1e-6").text_encoder_lr == 1e-6
    found = settings("--learning_rate_te=1e-6", "--stop_text_encoder_training=-1")
    assert "text_encoder_lr" not in found.tree["method"]
    assert "--learning_rate_te: it has no effect, as the text encoder is not trained." in (
        found.notices
    )


def test_folders_of_the_class_are_weighed(tmp_path):
    for name in ("train/10_sks frog", "reg/1_animal"):
        (tmp_path / name).mkdir(parents=True)
    folders = [f"--train_data_dir={tmp_path / 'train'}", f"--reg_data_dir={tmp_path / 'reg'}"]
    found = settings(*folders, "--prior_loss_weight=0.5")
    (dataset,) = build_run_config(found.tree, source="test").dataset.entries
    assert dataset.prior_loss_weight == 0.5
    assert [(s.num_repeats, s.class_tokens, s.is_reg) for s in dataset.subsets] == [
        (10, "sks frog", False), (1, "animal", True),
    ]  # fmt: skip
    alone = settings(folders[0], "--prior_loss_weight=0.5")
    assert "prior_loss_weight" not in alone.tree["dataset"]
    assert "--prior_loss_weight: it has no effect without regularisation images." in alone.notices


def test_txt_files_that_are_read_without_being_asked_for_are_told(tmp_path):
    (tmp_path / "train/10_sks frog").mkdir(parents=True)
    folder = f"--train_data_dir={tmp_path / 'train'}"

    def told(*words):
        return [n for n in settings(folder, *words).notices if "caption_extension" in n]

    assert not told()
    (tmp_path / "train/10_sks frog/a.TXT").write_text("a frog", encoding="utf-8")
    assert ["--caption_extension was not given: captions are read from" in n for n in told()] == [
        True
    ]
    assert not told("--caption_extension=.txt")
    assert not told("--caption_extention=.caption")


def test_the_weight_goes_with_a_dataset_configuration(tmp_path):
    file = tmp_path / "data.toml"
    file.write_text(
        "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'a'\n"
        "[[datasets.subsets]]\nimage_dir = 'b'\nis_reg = true\n",
        encoding="utf-8",
    )
    needed = [*NEEDED[:2], f"--dataset_config={file}", "--seed=1"]
    found = settings("--prior_loss_weight=0.5", needed=needed)
    (dataset,) = build_run_config(found.tree, source="test").dataset.entries
    assert dataset.prior_loss_weight == 0.5


def test_subsets_that_repeat_a_folder_are_told(tmp_path):
    """sd-scripts ignores all but the first subset of a folder within a dataset, but not in two."""
    file = tmp_path / "data.toml"
    subset = "[[datasets.subsets]]\nimage_dir = '{}'\nnum_repeats = {}\n"
    needed = [*NEEDED[:2], f"--dataset_config={file}", "--seed=1"]
    for subsets, is_told in (
        ((("cats", 2), ("cats", 5)), True),
        ((("cats", 2), ("dogs", 5)), False),
        ((("cats", 0), ("cats", 5)), False),
    ):
        lines = [subset.format(*given) for given in subsets]
        text = "[[datasets]]\nresolution = 512\n" + "".join(lines)
        for content, expected in ((text, is_told), ("[[datasets]]\n".join(["", *lines]), False)):
            file.write_text("[general]\nresolution = 512\n" + content, encoding="utf-8")
            found = settings(needed=needed)
            told = [n for n in found.notices if "several subsets of one dataset name cats" in n]
            assert bool(told) == expected


def test_the_file_of_a_form_is_taken(tmp_path):
    file = tmp_path / "config_dreambooth.toml"
    file.write_text(FORM, encoding="utf-8")
    told = []
    flags = parse_flags(TRAIN_DB, [f"--config_file={file}"], told.append)
    config = build_settings(TRAIN_DB, flags, translate(TRAIN_DB, flags).tree)
    assert (config.method.train_text_encoder, config.method.text_encoder_until_step) == (True, 3)
    assert (config.method.text_encoder_lr, config.optimizer.kind) == (1e-6, "adamw8bit")
    assert config.dataset.entries[0].subsets[0].caption_extension == ".txt"
    assert [line.partition(" in ")[0] for line in told] == ["epoch", "noise_offset_type"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--no_token_padding"], "padded to 77 tokens"),
        (["--in_json=meta.json"], r"no flag --in_json\. fine_tune\.py has it"),
        (["--train_text_encoder"], r"no flag --train_text_encoder\. fine_tune\.py has it"),
        (["--reg_data_dir=reg"], "Give --dataset_config, or --train_data_dir"),
    ],
)
def test_what_cannot_be_is_explained(words, expected):
    needed = [word for word in NEEDED if "train_data_dir" not in word]
    with pytest.raises(ConfigError, match=expected):
        settings(*words, needed=needed if "reg" in words[0] else NEEDED)


def test_wandb_has_the_project_of_that_command():
    assert settings("--log_with=wandb").tree["logging"]["wandb_project"] == "dreambooth"


def test_another_family_has_another_command():
    error = OtherFamilyError("x", source="xl.safetensors", families=("sdxl",))
    assert "Run sdxl_train.py with these flags" in str(in_terms_of(TRAIN_DB, error))
    assert Path(__file__).parents[2].joinpath("train_db.py").is_file()
